"""The study of one model, or of two side by side, on the same pictures: what the sheets show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from composers.activations.activation_sheet import LayerMaps
from composers.activations.codes import Components, flat, principal_components
from composers.activations.layers import Spread, activation_maps, spreads
from composers.activations.pictures import crops, fitted
from composers.activations.subject import Subject
from composers.activations.unit_sheet import UnitCosts
from composers.activations.units import unit_costs
from composers.inr import Modulations
from datamodules.coordinates import grid


class Settings(NamedTuple):
    """How much is shown, and of which layer.

    Attributes:
        layer: The hidden layer under study, counted from 0; the first modulated one of the first model if None.
        num_units: Maps of each layer.
        num_rows: Pictures on the sheets, the first ones; numbers are of all.
        size: Coordinates along the longer side of a map.
        crops: Crops of each picture whose codes are drawn too.
        steps: Gradient steps that refine codes.
    """

    layer: int | None = None
    num_units: int = 6
    num_rows: int = 3
    size: int = 128
    crops: int = 16
    steps: int = 0


class Study:
    """What models make of pictures.

    Args:
        subjects: One model, or two.
        pictures: ``(3, H, W)`` uint8 of any size, by name.
        settings: How much is shown, and of which layer.

    Raises:
        ValueError: If a setting is out of range, a model has no such layer, or proportions differ.
    """

    def __init__(self, subjects: Sequence[Subject], pictures: Mapping[str, Tensor], settings: Settings) -> None:
        self.subjects = list(subjects)
        self.pictures = dict(pictures)
        self.settings = settings
        first = min(subjects[0].inr.modulated_layers, default=0)
        self.layer = first if settings.layer is None else settings.layer
        _check(settings)
        for subject in subjects:
            self._check_layers(subject)
            _check_proportions(subjects[0], subject)
        self.pixels = [torch.stack([fitted(picture, *of.shape) for picture in pictures.values()]) for of in subjects]
        self.codes = [of.codes(pixels, settings.steps) for of, pixels in zip(subjects, self.pixels, strict=True)]

    def _check_layers(self, subject: Subject) -> None:
        """Refuse a layer that a model does not have, and more units than there are."""
        last = subject.inr.num_layers - 2
        if not 0 <= self.layer <= last:
            raise ValueError(
                f"layer is {self.layer}; the hidden layers of {subject.name} are 0 to {last}: choose one with --layer."
            )
        fewest = min(subject.inr.layer_sizes[layer][1] for layer in self._shown(subject))
        if self.settings.num_units > fewest:
            raise ValueError(
                f"num_units is {self.settings.num_units}; a layer of {subject.name} has {fewest} units: show no more."
            )

    def _shown(self, subject: Subject) -> list[int]:
        """Return the layer under study and its hidden neighbours."""
        return [layer for layer in range(self.layer - 1, self.layer + 2) if 0 <= layer < subject.inr.num_layers - 1]

    @property
    def shown(self) -> dict[str, Tensor]:
        """The pictures that are shown, as the first model takes them."""
        return dict(list(self.whole.items())[: self.settings.num_rows])

    @property
    def whole(self) -> dict[str, Tensor]:
        """All pictures, as the first model takes them."""
        return dict(zip(self.pictures, self.pixels[0], strict=True))

    @property
    def owners(self) -> list[int]:
        """For every code of `components`, which picture it is or was cut from."""
        indices = range(len(self.pictures))
        return [*indices, *(index for index in indices for _ in range(self.settings.crops))]

    def layers(self, index: int) -> tuple[list[Spread], list[LayerMaps]]:
        """Return how all hidden layers of a model vary, and maps of the layer under study and its neighbours.

        The units of a layer are those whose maps vary most, over pictures and places together; the same for every picture.

        Args:
            index: Which model.
        """
        subject, several = self.subjects[index], len(self.pictures) > 1
        modulations = subject.modulations(self.codes[index])
        found = spreads(subject.inr, self._coords(subject), modulations)
        units = {
            layer: found[layer].total.topk(self.settings.num_units).indices.tolist() for layer in self._shown(subject)
        }
        maps = self._maps(subject, modulations, units)
        own = subject.inr.modulated_layers
        return found, [
            LayerMaps(layer, layer in own, found[layer].share if several else None, chosen, maps[layer])
            for layer, chosen in units.items()
        ]

    def units(self, index: int) -> UnitCosts:
        """Return what the units of the layer under study are worth to a model.

        Args:
            index: Which model.
        """
        subject = self.subjects[index]
        modulations = subject.modulations(self.codes[index])
        whole, lost = unit_costs(subject.inr, self.layer, subject.samples(self.pixels[index]), modulations)
        order = lost.mean(0).argsort(descending=True, stable=True)
        costliest = {self.layer: order[: self.settings.num_units].tolist()}
        maps = self._maps(subject, modulations, costliest)[self.layer]
        return UnitCosts(self.layer, whole.mean().item(), order.tolist(), lost[:, order].cpu(), maps)

    def components(self, index: int) -> Components:
        """Return the principal components of the codes of all pictures, then of their crops.

        Args:
            index: Which model.
        """
        subject, (_, _, _, _, number, steps) = self.subjects[index], self.settings
        codes = flat(self.codes[index])
        if number:
            cut = [crop for picture in self.pictures.values() for crop in crops(picture, *subject.shape, number)]
            codes = torch.cat([codes, flat(subject.codes(torch.stack(cut), steps))])
        return principal_components(codes.cpu())

    def _map_shape(self, subject: Subject) -> tuple[int, int]:
        """Return rows and columns of maps, in the proportions of the model's pictures."""
        height, width = (max(1, round(self.settings.size * side / max(subject.shape))) for side in subject.shape)
        return height, width

    def _coords(self, subject: Subject) -> Tensor:
        """Return the coordinates of maps."""
        return grid(self._map_shape(subject), device=subject.composer.device)

    def _maps(self, subject: Subject, modulations: Modulations, units: dict[int, list[int]]) -> dict[int, Tensor]:
        """Return the maps ``(b, U, h, w)`` of units by layer, for the pictures that are shown."""
        number = self.settings.num_rows
        shown = {
            layer: (weight[:number], None if bias is None else bias[:number])
            for layer, (weight, bias) in modulations.items()
        }
        maps = activation_maps(subject.inr, self._coords(subject), shown, units)
        return {layer: found.mT.unflatten(-1, self._map_shape(subject)) for layer, found in maps.items()}


def _check_proportions(first: Subject, second: Subject) -> None:
    """Refuse models that look at other windows of the same pictures; sizes may differ."""
    (height, width), (tall, wide) = first.shape, second.shape
    if height * wide != tall * width:
        raise ValueError(
            f"{first.name} takes pictures of {height} x {width} pixels and {second.name} of {tall} x {wide}: "
            "compare models of the same proportions."
        )


def _check(settings: Settings) -> None:
    """Refuse numbers out of range."""
    for name, least in {"num_units": 1, "num_rows": 1, "size": 2, "crops": 0, "steps": 0}.items():
        number = getattr(settings, name)
        if number < least:
            raise ValueError(f"{name} is {number}; it must be at least {least}.")
