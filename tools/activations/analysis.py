"""Analysis of a model: activations of its network, importance of units, and codes of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from composers.base import Composer
from composers.latents import Latents, Layout
from datamodules.batch import Observation, Samples
from datamodules.domain import Grid
from modalities.images import image_codes, image_samples, input_size
from tools.activations.components import Components, flattened, principal_components
from tools.activations.images import crops, fitted
from tools.activations.layers import LayerMaps, Spread, activation_maps, spreads
from tools.activations.units import UnitAblation, ablate_units


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings of the figures.

    Args:
        layer: Hidden layer to analyse, counted from 0; by default the first layer of the first model that depends on the
            image.
        num_units: Number of units to show per layer.
        num_rows: Number of images to show; statistics are computed over all images.
        size: Coordinates along each side of an activation map.
        crops: Number of crops of each image whose codes are shown too; with steps, they are refined as well, which takes time.
        steps: Refinement steps of the codes; 0 for the predicted codes.

    Raises:
        ValueError: If a value is out of range.
    """

    layer: int | None = None
    num_units: int = 6
    num_rows: int = 3
    size: int = 128
    crops: int = 16
    steps: int = 0

    def __post_init__(self) -> None:
        """Raise a `ValueError` for values out of range."""
        for name, minimum in {"num_units": 1, "num_rows": 1, "size": 2, "crops": 0, "steps": 0}.items():
            if (value := getattr(self, name)) < minimum:
                raise ValueError(f"{name} is {value}; it must be at least {minimum}.")


class ModelAnalysis:
    """Analyse a model of square colour images.

    Args:
        name: Name of the model in figures and tables.
        composer: The model, in evaluation mode.
        images: Images ``(3, H, W)`` uint8 of any size, by name.
        settings: Settings of the figures.
        layer: Hidden layer to analyse; ``settings.layer`` if None.

    Attributes:
        layer: The layer to analyse, counted from 0.
        modulated: Hidden layers that are modulated per image.
        size: Pixels along each side of the images that the model takes.

    Raises:
        ValueError: If the model is not one of square colour images, its network does not expose its layers, the layer does
            not exist, or it has fewer units than are to be shown.
    """

    def __init__(
        self,
        name: str,
        composer: Composer,
        images: Mapping[str, Tensor],
        settings: AnalysisSettings,
        layer: int | None = None,
    ) -> None:
        self.name = name
        self.composer = composer
        self.network = composer.network
        self.settings = settings
        self.size = _input_size(name, composer)
        self._originals = images
        self.images = {title: fitted(image, self.size) for title, image in images.items()}
        hidden = self._hidden_layers()
        slots = {slot.rpartition(".")[2] for slot in self.network.slots}
        self.modulated = [index for index in hidden if str(index) in slots]
        if layer is None:
            layer = settings.layer
        if layer is None:
            layer = next((index for index, activations in hidden.items() if activations.dim() == 3), min(hidden))
        self.layer = layer
        if self.layer not in hidden:
            raise ValueError(
                f"layer is {self.layer}; the hidden layers of {name} are {min(hidden)} to {max(hidden)}: choose one with "
                "--layer."
            )
        self._neighbours = [index for index in range(self.layer - 1, self.layer + 2) if index in hidden]
        fewest = min(hidden[index].shape[-1] for index in self._neighbours)
        if settings.num_units > fewest:
            raise ValueError(
                f"num_units is {settings.num_units}; a layer of {name} has {fewest} units: choose at most {fewest}."
            )

    def _hidden_layers(self) -> Mapping[int, Tensor]:
        """Return the activations of all hidden layers at one coordinate for the prediction of the first image."""
        observation = self._observation(next(iter(self.images.values())).unsqueeze(0))
        with torch.no_grad():
            modulations = self.composer.modulate(observation)
        try:
            hidden = self.network.activations(modulations, self._coords[:1])
        except ValueError as error:
            raise ValueError(f"{self.name} cannot be analysed: {error}") from error
        if not hidden:
            raise ValueError(f"{self.name} cannot be analysed: its network has no hidden layer.")
        return hidden

    def _observation(self, squares: Tensor) -> Observation:
        """Return the observation of images ``(B, 3, S, S)`` uint8."""
        squares = squares.to(self.composer.device)
        return Observation(squares.float() / 255, image_samples(squares))

    @property
    def shown(self) -> dict[str, Tensor]:
        """Images to show, at the input size of the model."""
        return dict(list(self.images.items())[: self.settings.num_rows])

    @property
    def owners(self) -> list[int]:
        """Index of the image that every code of `components` belongs to."""
        indices = range(len(self.images))
        return [*indices, *(index for index in indices for _ in range(self.settings.crops))]

    @cached_property
    def codes(self) -> Latents:
        """Codes of all images."""
        return self._codes(list(self.images.values()))

    @cached_property
    def layout(self) -> Layout:
        """Layout of the codes."""
        return self.composer.layout(self._observation(next(iter(self.images.values())).unsqueeze(0)))

    def modulations(self, images: slice = slice(None)) -> Any:
        """Return the modulations of some images."""
        with torch.no_grad():
            return self.composer.compose({name: latent[images] for name, latent in self.codes.items()}, self.layout)

    @cached_property
    def spreads(self) -> dict[int, Spread]:
        """Variance of the activations of every hidden layer."""
        return spreads(self.network, self._coords, self.modulations())

    @property
    def shares(self) -> dict[int, float | None]:
        """Share of the variance of every hidden layer that is between images; None for a single image."""
        return {layer: spread.share if len(self.images) > 1 else None for layer, spread in self.spreads.items()}

    def layers(self) -> list[LayerMaps]:
        """Return the units with the largest variance, over images and coordinates, of the layer and its neighbours."""
        count, shares = self.settings.num_units, self.shares
        units = {layer: self.spreads[layer].total.topk(count).indices.tolist() for layer in self._neighbours}
        maps = self._maps(units)
        return [
            LayerMaps(layer, layer in self.modulated, shares[layer], units[layer], maps[layer])
            for layer in self._neighbours
        ]

    def units(self) -> UnitAblation:
        """Return the importance of the units of the layer."""
        samples = image_samples(torch.stack(list(self.images.values())).to(self.composer.device))
        assert samples.values is not None
        psnrs, losses = [], []
        for index, values in enumerate(samples.values.split(1)):  # one image at a time bounds the memory
            modulations = self.modulations(slice(index, index + 1))
            psnr, lost = ablate_units(self.network, self.layer, Samples(samples.coords, values), modulations)
            psnrs.append(psnr)
            losses.append(lost)
        lost = torch.stack(losses)
        order = lost.mean(0).argsort(descending=True, stable=True)
        maps = self._maps({self.layer: order[: self.settings.num_units].tolist()})[self.layer]
        return UnitAblation(torch.stack(psnrs).mean().item(), order.tolist(), lost[:, order].cpu(), maps)

    def components(self) -> Components:
        """Return the principal components of the codes of all images and their crops."""
        count, codes = self.settings.crops, flattened(self.codes)
        if count:
            squares = [crop for image in self._originals.values() for crop in crops(image, self.size, count)]
            codes = torch.cat([codes, flattened(self._codes(squares))])
        return principal_components(codes.cpu())

    @property
    def _coords(self) -> Tensor:
        """Coordinates of activation maps."""
        return Grid.unit(2).coords((self.settings.size, self.settings.size), device=self.composer.device)

    def _codes(self, squares: Sequence[Tensor]) -> Latents:
        """Return the codes of images at the input size of the model, after the refinement steps of the settings."""
        refinement = self.composer.refinement.with_steps(self.settings.steps)
        return image_codes(self.composer, torch.stack(list(squares)), refinement)

    def _maps(self, units: Mapping[int, list[int]]) -> dict[int, Tensor]:
        """Return the activation maps ``(b, U, h, w)`` of units, by layer, for the images to show."""
        modulations = self.modulations(slice(self.settings.num_rows))
        maps = activation_maps(self.network, self._coords, modulations, units)
        return {layer: values.mT.unflatten(-1, (self.settings.size, -1)) for layer, values in maps.items()}


def _input_size(name: str, composer: Composer) -> int:
    """Return the pixels along each side of the images that a model takes."""
    if (dims := (composer.network.coord_dim, composer.network.value_dim)) != (2, 3):
        raise ValueError(
            f"{name} has {dims[1]} values at coordinates of {dims[0]} dimensions; colour images have 3 values at 2."
        )
    try:
        return input_size(composer)
    except ValueError as error:
        raise ValueError(f"{name} cannot be analysed: {error}") from error
