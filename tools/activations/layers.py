"""What the hidden layers of a coordinate network make of coordinates, and how much of it differs between instances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from composers.networks import CoordinateMLP, Modulations, num_instances

_NUMBERS_AT_ONCE = 2**22  # activations of one layer; 16 MB


class Spread(NamedTuple):
    """Variance of the activations of a layer, per unit ``(O,)``.

    Attributes:
        between: At one place between instances, on average over places.
        total: Over instances and places together, of which ``between`` is a part.
    """

    between: Tensor
    total: Tensor

    @property
    def share(self) -> float:
        """The part of the layer's variance that lies between instances, in [0, 1]; 0 if nothing varies.

        It is 0 for a layer that knows coordinates alone. Of ``B`` unrelated instances it is about ``1 - 1 / B``, since
        variances are those of these instances (divided by ``B``).
        """
        total = self.total.sum().item()
        return self.between.sum().item() / total if total else 0.0


class LayerMaps(NamedTuple):
    """Maps of some units of a layer.

    Attributes:
        layer: Counted from 0.
        modulated: Whether its weights are the instance's own.
        share: Of its variance between images; None where there is one image only.
        units: Which ones, counted from 0.
        maps: ``(b, U, h, w)`` of the first images.
    """

    layer: int
    modulated: bool
    share: float | None
    units: list[int]
    maps: Tensor


def hidden_layers(inr: CoordinateMLP, coords: Tensor, modulations: Modulations) -> list[Tensor]:
    """Return the activations of every layer but the last.

    Args:
        inr: The coordinate network.
        coords: ``(N, D)`` shared by all instances, or ``(B, N, D)``.
        modulations: As for ``inr``.

    Returns:
        By layer ``(N, O)``, as long as activations are the same for all instances, or ``(B, N, O)``.
    """
    found = []
    hidden: Tensor = inr.encoding(coords)
    for layer in range(inr.num_layers - 1):
        hidden = inr.apply_layer(layer, hidden, modulations)
        found.append(hidden)
    return found


@torch.no_grad()
def spreads(inr: CoordinateMLP, coords: Tensor, modulations: Modulations) -> list[Spread]:
    """Return how the activations of every hidden layer vary, computed chunk by chunk.

    Args:
        inr: The coordinate network.
        coords: ``(N, D)``, shared by all instances.
        modulations: As for ``inr``.
    """
    sums = [torch.zeros(3, width, dtype=torch.float64, device=coords.device) for _, width in inr.layer_sizes[:-1]]
    for chunk in _chunks(inr, coords, modulations):
        for found, hidden in zip(sums, hidden_layers(inr, chunk, modulations), strict=True):
            each = hidden.double()
            shared = each.dim() == 2  # by construction, so that not even rounding differs
            between = torch.zeros_like(each) if shared else each.var(0, correction=0)
            mean = each if shared else each.mean(0)
            found += torch.stack([between.sum(0), mean.sum(0), mean.square().sum(0)])
    return [_spread(found / len(coords)) for found in sums]


def _spread(means: Tensor) -> Spread:
    """Return the spread of a layer from means over places: of the variance between instances, of their mean, of its square."""
    between, mean, square = means
    return Spread(between, between + (square - mean.square()).clamp(min=0))


@torch.no_grad()
def activation_maps(
    inr: CoordinateMLP, coords: Tensor, modulations: Modulations, units: Mapping[int, Sequence[int]]
) -> dict[int, Tensor]:
    """Return the activations of some units, computed chunk by chunk.

    Args:
        inr: The coordinate network.
        coords: ``(N, D)``, shared by all instances.
        modulations: As for ``inr``.
        units: Which ones, by hidden layer.

    Returns:
        By layer ``(B, N, len(units))``, on the CPU.
    """
    parts: dict[int, list[Tensor]] = {layer: [] for layer in units}
    for chunk in _chunks(inr, coords, modulations):
        found = hidden_layers(inr, chunk, modulations)
        for layer, wanted in units.items():
            chosen = found[layer][..., list(wanted)].cpu()
            parts[layer].append(chosen.expand(num_instances(modulations), -1, -1))
    return {layer: torch.cat(part, 1) for layer, part in parts.items()}


def some(modulations: Modulations, instances: slice) -> Modulations:
    """Return the modulations of some instances."""
    return {
        layer: (None if weight is None else weight[instances], None if bias is None else bias[instances])
        for layer, (weight, bias) in modulations.items()
    }


def _chunks(inr: CoordinateMLP, coords: Tensor, modulations: Modulations) -> Iterator[Tensor]:
    """Yield the coordinates in parts that bound the memory of a layer's activations."""
    widest = max(width for sizes in inr.layer_sizes for width in sizes)
    yield from coords.split(max(1, _NUMBERS_AT_ONCE // (widest * num_instances(modulations))))
