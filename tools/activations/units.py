"""Ablation of single units: the PSNR that is lost if the activation of a unit is set to zero."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from composers.metrics import psnr_of_mse
from composers.networks import CoordinateNetwork
from datamodules.batch import Samples

M = TypeVar("M")
_MAX_FLOATS = 2**22  # of the values without some units, 16 MB


class UnitAblation(NamedTuple):
    """Importance of the units of a layer.

    Attributes:
        psnr: PSNR with all units in dB, the mean over images.
        order: Indices of the units ``(O,)``, the most important on average first.
        losses: PSNR in dB ``(B, O)`` that is lost without a unit, in this order.
        maps: Activation maps ``(b, U, h, w)`` of the first units in this order, of the first images.
    """

    psnr: float
    order: list[int]
    losses: Tensor
    maps: Tensor


@torch.no_grad()
def ablate_units(network: CoordinateNetwork[M], layer: int, samples: Samples, modulations: M) -> tuple[Tensor, Tensor]:
    """Set the units of a hidden layer to zero, one after the other, and evaluate the layers after it.

    Args:
        network: The coordinate network.
        layer: Index of the hidden layer, counted from 0.
        samples: Coordinates ``(N, D)`` and true values ``(1, N, C)`` of one instance.
        modulations: Modulations of this instance.

    Returns:
        The PSNR in dB with all units, a scalar, and the loss of PSNR without each unit ``(O,)`` in dB, which is negative for
        units that reduce the quality.

    Raises:
        ValueError: If the network does not expose its layers.
    """
    assert samples.values is not None
    width = network.activations(modulations, samples.coords[:1])[layer].shape[-1]
    units = torch.arange(width, device=samples.coords.device)
    psnrs = []
    for some in units.split(max(1, _MAX_FLOATS // samples.values.numel())):
        values = network.values_without(modulations, samples.coords, layer, some)
        psnrs.append(_psnr(values, samples.values))
    psnr = _psnr(network(samples.coords, modulations), samples.values)[0]
    return psnr, psnr - torch.cat(psnrs)


def _psnr(values: Tensor, target: Tensor) -> Tensor:
    """Return the PSNR ``(U,)`` of values ``(U, N, C)`` for a target ``(1, N, C)``."""
    return psnr_of_mse((values - target).square().mean((1, 2)))
