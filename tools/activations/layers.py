"""Activations of the hidden layers of a coordinate network, and how much of their variance is between instances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from composers.networks import CoordinateNetwork

M = TypeVar("M")
_MAX_FLOATS = 2**24  # of an evaluation, 64 MB


class Spread(NamedTuple):
    """Variance of the activations of a layer, per unit ``(O,)``.

    Attributes:
        between: Variance between instances at the same coordinate, averaged over coordinates.
        total: Variance over instances and coordinates, which includes ``between``.
    """

    between: Tensor
    total: Tensor

    @property
    def share(self) -> float:
        """Share of the layer's variance that is between instances, in [0, 1]; 0 if nothing varies.

        It is 0 for a layer that depends on coordinates only. For ``B`` independent instances it is at most about ``1 - 1 / B``,
        because variances are computed over these instances (divided by ``B``).
        """
        total = self.total.sum().item()
        return self.between.sum().item() / total if total else 0.0


class LayerMaps(NamedTuple):
    """Activation maps of some units of a layer.

    Attributes:
        layer: Index, counted from 0.
        modulated: Whether the layer is modulated per instance.
        share: Share of its variance that is between images; None for a single image.
        units: Indices of the units.
        maps: ``(b, U, h, w)`` of the first images.
    """

    layer: int
    modulated: bool
    share: float | None
    units: list[int]
    maps: Tensor


@torch.no_grad()
def spreads(network: CoordinateNetwork[M], coords: Tensor, modulations: M) -> dict[int, Spread]:
    """Return the variance of the activations of every hidden layer, computed in chunks of coordinates.

    Args:
        network: The coordinate network.
        coords: ``(N, D)``, shared by all instances.
        modulations: Modulations of the network.

    Raises:
        ValueError: If the network does not expose its layers.
    """
    sums: dict[int, Tensor] = {}
    for chunk in _chunks(network, coords, modulations):
        for layer, hidden in network.activations(modulations, chunk).items():
            activations = hidden.double()
            shared = activations.dim() == 2  # exactly zero variance, without rounding errors
            between = torch.zeros_like(activations) if shared else activations.var(0, correction=0)
            mean = activations if shared else activations.mean(0)
            moments = torch.stack([between.sum(0), mean.sum(0), mean.square().sum(0)])
            sums[layer] = sums[layer] + moments if layer in sums else moments
    return {layer: _spread(moments / len(coords)) for layer, moments in sums.items()}


def _spread(moments: Tensor) -> Spread:
    """Return the spread of a layer from means over coordinates: of the variance, of the mean, and of the squared mean."""
    between, mean, square = moments
    return Spread(between, between + (square - mean.square()).clamp(min=0))


@torch.no_grad()
def activation_maps(
    network: CoordinateNetwork[M], coords: Tensor, modulations: M, units: Mapping[int, Sequence[int]]
) -> dict[int, Tensor]:
    """Return the activations of some units, computed in chunks of coordinates.

    Args:
        network: The coordinate network.
        coords: ``(N, D)``, shared by all instances.
        modulations: Modulations of the network.
        units: Indices of the units by hidden layer.

    Returns:
        ``(B, N, len(units))`` by layer, on the CPU.

    Raises:
        ValueError: If the network does not expose its layers.
    """
    num_instances = _num_instances(network, coords, modulations)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in units}
    for chunk in _chunks(network, coords, modulations):
        activations = network.activations(modulations, chunk)
        for layer, indices in units.items():
            selected = activations[layer][..., list(indices)].cpu()
            parts[layer].append(selected.expand(num_instances, -1, -1))
    return {layer: torch.cat(part, 1) for layer, part in parts.items()}


def _num_instances(network: CoordinateNetwork[M], coords: Tensor, modulations: M) -> int:
    """Return the number of instances of modulations."""
    return len(network(coords[:1], modulations))


def _chunks(network: CoordinateNetwork[M], coords: Tensor, modulations: M) -> Iterator[Tensor]:
    """Yield coordinates in chunks that bound the memory of an evaluation."""
    floats = network.floats_per_coord * _num_instances(network, coords, modulations)
    yield from coords.split(max(1, _MAX_FLOATS // floats))
