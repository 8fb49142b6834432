"""What every unit of a layer is worth: the PSNR that is lost when it is switched off."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from composers.metrics import instance_mse, psnr_of_mse
from composers.networks import CoordinateMLP, Modulations
from datamodules.batch import Samples
from tools.activations.layers import some


class UnitCosts(NamedTuple):
    """What the units of the layer under study are worth.

    Attributes:
        psnr: With all units, the mean over images in dB.
        order: Units ``(O,)``, the costliest on average first.
        costs: PSNR in dB ``(B, O)`` lost without a unit, in that order.
        maps: Of the first units in that order, ``(b, U, h, w)`` of the first images.
    """

    psnr: float
    order: list[int]
    costs: Tensor
    maps: Tensor


@torch.no_grad()
def unit_costs(inr: CoordinateMLP, layer: int, samples: Samples, modulations: Modulations) -> tuple[Tensor, Tensor]:
    """Switch off the units of a hidden layer one by one: the activation is zero everywhere, what follows is recomputed.

    Args:
        inr: The coordinate network.
        layer: Which hidden layer, counted from 0.
        samples: Coordinates ``(N, D)`` and the true values ``(B, N, C)``.
        modulations: Of the same instances.

    Returns:
        The PSNR ``(B,)`` in dB with all units, and what is lost without each ``(B, O)`` in dB; negative where a unit harms.
    """
    assert samples.values is not None
    whole, losses = [], []
    for index, values in enumerate(samples.values.split(1)):  # one instance at a time bounds the memory
        own = some(modulations, slice(index, index + 1))
        one = Samples(samples.coords, values)
        hidden: Tensor = inr.encoding(samples.coords)
        for earlier in range(layer + 1):
            hidden = inr.apply_layer(earlier, hidden, own)
        psnr = _psnr(inr, layer, hidden, one, own)
        without = [_psnr(inr, layer, _without(hidden, unit), one, own) for unit in range(hidden.shape[-1])]
        whole.append(psnr)
        losses.append(psnr - torch.cat(without))
    return torch.cat(whole), torch.stack(losses)


def _without(hidden: Tensor, unit: int) -> Tensor:
    """Return activations in which one unit is zero."""
    return hidden.index_fill(-1, torch.tensor(unit, device=hidden.device), 0.0)


def _psnr(inr: CoordinateMLP, layer: int, hidden: Tensor, samples: Samples, modulations: Modulations) -> Tensor:
    """Return the PSNR ``(1,)`` that the layers after ``layer`` make of its activations."""
    for later in range(layer + 1, inr.num_layers):
        hidden = inr.apply_layer(later, hidden, modulations)
    return psnr_of_mse(instance_mse(hidden if hidden.dim() == 3 else hidden.unsqueeze(0), samples))
