"""Handwritten digits as maps of signed distances, the first demonstration of MetaSDF (Sitzmann et al. 2020, section 4.1)."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples, Signal
from datamodules.domain import Grid
from datamodules.loading import InMemory
from datamodules.randomness import generator_at
from datamodules.spec import DataSpec
from modalities.distance_maps import DistanceMaps

SIZES = {"train": 1437, "val": 180, "test": 180}  # digits of every split
_THRESHOLD = 0.5
_DOMAIN = Grid(((-0.5, 0.5), (-0.5, 0.5)))  # the width is 1, the unit of distances


def signed_distances(inside: Tensor) -> Tensor:
    """Return the signed distances ``(H, W)`` of a region to its outline, negative inside, as a share of the width.

    The outline is between pixels: the centre of a pixel beside it is at half a pixel. Otherwise, the distance is that to the
    nearest pixel of the other side, minus half a pixel.

    Args:
        inside: ``(H, W)`` booleans.

    Raises:
        ValueError: If all pixels are inside, or none.

    Example:
        >>> (signed_distances(torch.tensor([[True, True, False, False]])) * 4).tolist()
        [[-1.5, -0.5, 0.5, 1.5]]
    """
    from scipy.ndimage import distance_transform_edt  # here, because it takes long to import

    if bool(inside.all()) or not bool(inside.any()):
        raise ValueError(
            f"inside has {int(inside.sum())} of {inside.numel()} pixels: a shape needs an inside and an outside."
        )
    region = inside.numpy()
    pixels = np.where(region, 0.5 - distance_transform_edt(region), distance_transform_edt(~region) - 0.5)
    return torch.from_numpy(pixels / inside.shape[1]).float()


@cache
def digits(size: int = 64) -> tuple[Signal, ...]:
    """Return the 1,797 digits bundled with scikit-learn as signed distances ``(1, size, size)``, in its order.

    The images of 8 x 8 pixels (UCI, optical recognition of handwritten digits, CC BY 4.0) are enlarged by bilinear
    interpolation, and what exceeds half of the full intensity is inside.

    Raises:
        ValueError: If scikit-learn is not installed.
    """
    try:
        loaded = importlib.import_module("sklearn.datasets").load_digits()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Digits reads images that are bundled with scikit-learn, and {error.name} is not installed: "
            "pip install scikit-learn."
        ) from error
    images = torch.from_numpy(loaded.images).float()[:, None] / 16
    inside = interpolate(images, (size, size), mode="bilinear", align_corners=False)[:, 0] > _THRESHOLD
    return tuple(
        Signal(signed_distances(region)[None], f"digit{label}-{index:04d}")
        for index, (region, label) in enumerate(zip(inside, loaded.target.tolist(), strict=True))
    )


class Digits(CoordinateDataModule):
    """Handwritten digits of scikit-learn as maps of signed distances, negative inside; requires no download.

    A model observes some pixels of a map, in training anew in every epoch, and is compared at the others. Coordinates are in
    [-0.5, 0.5], and distances in units of the width. The splits have 1,437, 180 and 180 digits and are the same for all seeds.

    In evaluation, the query is the complete map, whose mask leaves out the observed pixels. The signal that an encoder
    observes is a set of points ``(P, 3)``: coordinates, and the distance.

    Args:
        context: Observed pixels of a map: a ratio below 1.0, or a count.
        query_includes_context: Whether a model is also compared at the pixels that it observed, as published.
        size: Pixels along each side of a map.
        kwargs: Arguments of `CoordinateDataModule`; ``coordinate_subset`` is a subset of the pixels that are compared.

    Raises:
        ValueError: If a number is out of range, or ``coordinate_noise`` is set.
    """

    modality = DistanceMaps()

    def __init__(
        self,
        context: int | float = 0.05,
        query_includes_context: bool = False,
        size: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if size < 8:
            raise ValueError(f"size is {size}; it must be at least 8, the pixels of the original digits.")
        self.context = context
        self.context_points = round(context * size**2) if isinstance(context, float) else context
        if not 1 <= self.context_points < size**2:
            raise ValueError(
                f"context is {context}, {self.context_points} of the {size**2} pixels of a map: use a ratio or a count that "
                "leaves at least one pixel observed and one to compare."
            )
        if self.coordinate_noise != "none":
            raise ValueError(
                f"coordinate_noise is {self.coordinate_noise}; distances belong to the centres of pixels, so set it to none."
            )
        self.query_includes_context = query_includes_context
        self.size = size

    @property
    def spec(self) -> DataSpec:
        """Signed distances on [-0.5, 0.5]; the signal is the set of observed points with their distances."""
        return DataSpec(_DOMAIN, 1, (self.context_points, 3), self.modality, self.num_instances)

    @property
    def num_instances(self) -> int:
        """Number of training instances."""
        return SIZES["train"]

    def setup(self, stage: str) -> None:
        """Create the splits."""
        items = digits(self.size)
        order = torch.randperm(len(items), generator=generator_at("split of digits")).tolist()
        parts = torch.tensor(order).split(list(SIZES.values()))
        self.train_set, self.val_set, self.test_set = (InMemory([items[index] for index in part]) for part in parts)

    def random_items(self, count: int) -> Signal:
        """Return collated maps of random values, for benchmarks and tests that need no data."""
        items = Signal(torch.rand(count, 1, self.size, self.size) - 0.5, "random")
        names = [f"random-{index}" for index in range(count)]
        return items._replace(name=names, seed=torch.arange(count))  # type: ignore[arg-type]

    def to_coordinates(self, batch: Signal, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Draw the observed pixels of collated maps, and return them with those to compare.

        Args:
            batch: ``values (B, 1, H, W)``, and names, seeds and indices of the instances.
            training: Whether to draw by the seed of an item in its epoch, rather than by its name, and to apply the subset.
            step: Unused, because a batch shares no draws.
        """
        device, (height, width) = batch.values.device, batch.values.shape[2:]
        coords = self.spec.domain.coords((height, width), device=device)
        values = batch.values.flatten(2).mT  # (B, N, 1)
        addresses = torch.as_tensor(batch.seed).tolist() if training else list(batch.name)
        order = torch.stack(
            [torch.randperm(height * width, generator=generator_at("observed", address)) for address in addresses]
        ).to(device)
        observed, others = order.split((self.context_points, height * width - self.context_points), dim=1)
        samples = _at(coords, values, observed)
        assert samples.values is not None
        index = torch.as_tensor(batch.instance, device=device) if training else None
        observation = Observation(torch.cat((samples.coords, samples.values), dim=-1), samples, index)
        if training:
            query = _at(coords, values, self._compared(order, others))
            return CoordinateBatch(observation, query, None, list(batch.name))
        mask = None if self.query_includes_context else torch.ones(values.shape[:2], dtype=torch.bool, device=device)
        query = Samples(coords, values, None if mask is None else mask.scatter(1, observed, False))
        return CoordinateBatch(observation, query, (height, width), list(batch.name))

    def _compared(self, order: Tensor, others: Tensor) -> Tensor:
        """Return the pixels ``(B, K)`` that training compares, with observed ones in proportion where they are included."""
        candidates = order if self.query_includes_context else others
        if self.coordinate_subset is None:
            return candidates
        total, size = candidates.shape[1], self.coordinate_subset
        count = max(1, min(total, round(total * size) if isinstance(size, float) else size))
        if not self.query_includes_context:
            return candidates[:, total - count :]  # the order is random
        places = torch.arange(count, device=candidates.device) * total // count
        return candidates[:, places]  # evenly spaced, since the order begins with the observed pixels


def _at(coords: Tensor, values: Tensor, places: Tensor) -> Samples:
    """Return the samples at places ``(B, K)`` of coordinates ``(N, D)`` and values ``(B, N, C)``."""
    return Samples(coords[places], values.take_along_dim(places[..., None], dim=1))
