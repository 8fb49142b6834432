"""A model under study: what it makes of images, and what the figures show of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from composers.base import Composer
from composers.latents import Latents
from composers.networks import Modulations
from datamodules.domain import Grid
from modalities.images import input_size, square_codes, square_samples
from tools.activations.codes import Components, flat, principal_components
from tools.activations.images import crops, fitted
from tools.activations.layers import LayerMaps, Spread, activation_maps, some, spreads
from tools.activations.units import UnitCosts, unit_costs


@dataclass(frozen=True)
class StudySettings:
    """How much is shown, and of which layer.

    Args:
        layer: The hidden layer to look at, counted from 0; by default the first modulated one of the first model.
        num_units: Units of each layer that are shown.
        num_rows: Images that are shown, the first ones; numbers are of all.
        size: Coordinates along each side of a map.
        crops: Crops of each image whose codes are drawn too; with steps they are refined as well, which takes its time.
        steps: Gradient steps that refine codes first, 0 for the prediction.

    Raises:
        ValueError: If a number is out of range.
    """

    layer: int | None = None
    num_units: int = 6
    num_rows: int = 3
    size: int = 128
    crops: int = 16
    steps: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name, least in {"num_units": 1, "num_rows": 1, "size": 2, "crops": 0, "steps": 0}.items():
            if (number := getattr(self, name)) < least:
                raise ValueError(f"{name} is {number}; it must be at least {least}.")


class Subject:
    """A model of square images in colour, and what it makes of images.

    Args:
        name: What figures and tables call it.
        composer: The model, in evaluation mode.
        images: ``(3, H, W)`` uint8 of any size, by name.
        layer: The hidden layer under study, counted from 0.
        settings: How much is shown.

    Raises:
        ValueError: If the model is one of other signals, or has no such layer or fewer units.
    """

    def __init__(
        self, name: str, composer: Composer, images: Mapping[str, Tensor], layer: int, settings: StudySettings
    ) -> None:
        self.name = name
        self.composer = composer
        self.network = composer.network
        self.layer = layer
        self.settings = settings
        self.size = _size(name, composer)
        self._check_layers()
        self._originals = images
        self.images = {title: fitted(image, self.size) for title, image in images.items()}

    @property
    def shown(self) -> dict[str, Tensor]:
        """The images that are shown, as the model takes them."""
        return dict(list(self.images.items())[: self.settings.num_rows])

    @property
    def owners(self) -> list[int]:
        """For every code of `components`, which image it is or was cut from."""
        indices = range(len(self.images))
        return [*indices, *(index for index in indices for _ in range(self.settings.crops))]

    @cached_property
    def codes(self) -> Latents:
        """The codes of all images."""
        return self._codes(list(self.images.values()))

    @cached_property
    def modulations(self) -> Modulations:
        """The modulations of these codes."""
        with torch.no_grad():
            return self.composer.compose(self.codes)

    @cached_property
    def spreads(self) -> list[Spread]:
        """How the activations of every hidden layer vary."""
        return spreads(self.network, self._coords, self.modulations)

    @property
    def shares(self) -> list[float | None]:
        """The part of the variance of every hidden layer that lies between images; None of a single image."""
        return [spread.share if len(self.images) > 1 else None for spread in self.spreads]

    def layers(self) -> list[LayerMaps]:
        """Return the layer under study and its neighbours: the units that vary most, over images and places together."""
        number, own = self.settings.num_units, self.network.modulated_layers
        units = {layer: self.spreads[layer].total.topk(number).indices.tolist() for layer in self._neighbours}
        maps = self._maps(units)
        return [
            LayerMaps(layer, layer in own, self.shares[layer], units[layer], maps[layer]) for layer in self._neighbours
        ]

    def units(self) -> UnitCosts:
        """Return what the units of the layer under study are worth."""
        seen = square_samples(torch.stack(list(self.images.values())).to(self.composer.device))
        whole, lost = unit_costs(self.network, self.layer, seen, self.modulations)
        order = lost.mean(0).argsort(descending=True, stable=True)
        maps = self._maps({self.layer: order[: self.settings.num_units].tolist()})[self.layer]
        return UnitCosts(whole.mean().item(), order.tolist(), lost[:, order].cpu(), maps)

    def components(self) -> Components:
        """Return the principal components of the codes of all images, then of their crops."""
        number, codes = self.settings.crops, flat(self.codes)
        if number:
            cut = [crop for image in self._originals.values() for crop in crops(image, self.size, number)]
            codes = torch.cat([codes, flat(self._codes(cut))])
        return principal_components(codes.cpu())

    @property
    def _neighbours(self) -> list[int]:
        """The layer under study and the hidden ones beside it."""
        return [layer for layer in range(self.layer - 1, self.layer + 2) if 0 <= layer < self.network.num_layers - 1]

    @property
    def _coords(self) -> Tensor:
        """The coordinates of maps."""
        return Grid.unit(2).coords((self.settings.size, self.settings.size), device=self.composer.device)

    def _codes(self, squares: Sequence[Tensor]) -> Latents:
        """Return the codes of images as the model takes them, refined as far as the settings say."""
        refinement = self.composer.refinement.with_steps(self.settings.steps)
        return square_codes(self.composer, torch.stack(list(squares)), refinement)

    def _maps(self, units: Mapping[int, list[int]]) -> dict[int, Tensor]:
        """Return the maps ``(b, U, h, w)`` of units by layer, for the images that are shown."""
        shown = some(self.modulations, slice(self.settings.num_rows))
        maps = activation_maps(self.network, self._coords, shown, units)
        return {layer: found.mT.unflatten(-1, (self.settings.size, -1)) for layer, found in maps.items()}

    def _check_layers(self) -> None:
        """Refuse a layer that the model does not have, and more units than there are."""
        last = self.network.num_layers - 2
        if not 0 <= self.layer <= last:
            raise ValueError(
                f"layer is {self.layer}; the hidden layers of {self.name} are 0 to {last}: choose one with --layer."
            )
        fewest = min(self.network.layer_sizes[layer][1] for layer in self._neighbours)
        if self.settings.num_units > fewest:
            raise ValueError(
                f"num_units is {self.settings.num_units}; a layer of {self.name} has {fewest} units: show no more."
            )


def _size(name: str, composer: Composer) -> int:
    """Return the pixels along each side of the images that a model takes."""
    if (made := (composer.network.coord_dim, composer.network.value_dim)) != (2, 3):
        raise ValueError(f"{name} makes {made[1]} values at {made[0]} coordinates, not images in colour: 3 at 2.")
    try:
        return input_size(composer)
    except ValueError as error:
        raise ValueError(f"{name} cannot be looked at: {error}") from error
