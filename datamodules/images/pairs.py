"""Pairs of an image at a low and a high resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batch import Signal
from datamodules.images.augmentation import ImageAugmentation
from datamodules.images.degradation import Degradation
from datamodules.randomness import generator_at
from datamodules.storage.images import grey, resized

_ALL = torch.empty(0, dtype=torch.long)


class Pair(NamedTuple):
    """A raw item: an image at a low and a high resolution; or a collated batch of them.

    Attributes:
        low: ``(C, h, w)`` uint8, what a model observes.
        high: ``(C, H, W)`` uint8; in training the drawn pixels ``(C, N)``.
        drawn: ``(N,)``, indices of the drawn pixels in the image of the high resolution, row by row; empty if all are taken.
        size: ``(2,)``, rows and columns of the high resolution.
        scale: Scale of the high resolution, as stated by the data module.
        name: Name of the item in tables and files.
        seed: Seed of the random numbers of this item in this epoch; set by the loader.
        instance: Index of the item in the training set; set by the loader, -1 outside training.
    """

    low: Tensor
    high: Tensor
    drawn: Tensor
    size: Tensor
    scale: float
    name: str
    seed: int = 0
    instance: int = -1


class PairCrop:
    """Draw a scale and a crop of an image, and degrade the crop (LIIF, section 4; released training).

    Images that are too small for the largest scale draw scales up to the largest that they can serve.

    Args:
        size: Pixels along each side of the low resolution.
        scales: Range of the scale, which is uniform.
        degradation: Makes the low resolution.
        augment: Random changes of the crop of the high resolution; none if None.
        channels: 3 for colours, 1 for grey.
    """

    def __init__(
        self,
        size: int,
        scales: tuple[float, float],
        degradation: Degradation,
        augment: ImageAugmentation | None = None,
        channels: int = 3,
    ) -> None:
        self.size, self.scales, self.degradation, self.augment = size, scales, degradation, augment
        self.channels = channels

    def __call__(self, item: Signal, generator: torch.Generator) -> Pair:
        """Return a pair of a crop of ``item`` with all pixels of the high resolution.

        Raises:
            ValueError: If the image is smaller than a crop at the smallest scale.
        """
        rows, columns = item.values.shape[1:]
        low = self.scales[0]
        if min(rows, columns) < round(self.size * low):
            raise ValueError(_too_small(item.name, (rows, columns), self.size, low))
        high = max(low, min(self.scales[1], min(rows, columns) / self.size))
        scale = low + (high - low) * torch.rand((), generator=generator).item()
        side = min(round(self.size * scale), rows, columns)
        top, left = (int(torch.randint(extent - side + 1, (), generator=generator)) for extent in (rows, columns))
        values = item.values[:, top : top + side, left : left + side]
        crop = item._replace(values=grey(values) if self.channels == 1 else values)
        if self.augment is not None:
            crop = self.augment(crop, generator)
        small = self.degradation(crop.values.contiguous(), (self.size, self.size), generator)
        return Pair(small, crop.values, _ALL, torch.tensor([side, side]), scale, item.name)


class PairDraw:
    """Mirror and transpose a pair at random, and draw pixels of the high resolution without replacement.

    Args:
        num_queries: Number of pixels to draw.
        symmetries: Random symmetries: ``all`` eight of the square, ``mirror`` left and right, or ``none``.
    """

    def __init__(self, num_queries: int, symmetries: Literal["all", "mirror", "none"]) -> None:
        self.num_queries, self.symmetries = num_queries, symmetries

    def __call__(self, item: Pair, generator: torch.Generator) -> Pair:
        """Return the changed pair."""
        low, high = item.low, item.high
        rows, columns, transpose = (torch.rand(3, generator=generator) < 0.5).tolist()
        if self.symmetries != "none" and columns:
            low, high = low.flip(-1), high.flip(-1)
        if self.symmetries == "all" and rows:
            low, high = low.flip(-2), high.flip(-2)
        if self.symmetries == "all" and transpose:
            low, high = low.mT, high.mT
        pixels = high.flatten(1)
        drawn = torch.randperm(pixels.shape[1], generator=generator)[: self.num_queries]
        return item._replace(
            low=low.contiguous(), high=pixels[:, drawn], drawn=drawn, size=torch.tensor(high.shape[1:])
        )


class FixedPairs(Dataset[Pair]):
    """Whole images at fixed scales, for evaluation: all images at the first scale, then at the next.

    An image is cropped at its end to the multiple of the scale, and degraded with random numbers that depend only on its name.
    Where low-resolution images are published, they are taken, and images are cropped to their multiple.

    Args:
        images: The images.
        scales: The scales.
        degradation: Makes the low resolution.
        published: Published images of a low resolution by scale, in the order of ``images``.
        channels: 3 for colours, 1 for grey.
    """

    def __init__(
        self,
        images: Dataset[Signal],
        scales: Sequence[float],
        degradation: Degradation,
        published: Mapping[float, Dataset[Signal]],
        channels: int = 3,
    ) -> None:
        self.images, self.scales, self.degradation = images, tuple(scales), degradation
        self.published, self.channels = published, channels

    def __len__(self) -> int:
        """Return the number of pairs."""
        return length_of(self.images) * len(self.scales)

    def __getitem__(self, index: int) -> Pair:
        """Return pair ``index``.

        Raises:
            ValueError: If an image is smaller than the scale, or a published low resolution does not fit it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} pairs")
        scale, place = self.scales[index // length_of(self.images)], index % length_of(self.images)
        image = self.images[place]
        values = grey(image.values) if self.channels == 1 else image.values
        name = f"{image.name}-x{scale:g}"
        if scale in self.published:
            small = self.published[scale][place].values
            small = grey(small) if self.channels == 1 else small
            size = [round(extent * scale) for extent in small.shape[1:]]
            if any(not 0 <= extent - target < 2 * scale for extent, target in zip(values.shape[1:], size, strict=True)):
                raise ValueError(
                    f"The image {image.name} has {values.shape[1]} x {values.shape[2]} pixels, and its low resolution at scale "
                    f"{scale:g} {small.shape[1]} x {small.shape[2]}: these files do not belong together, replace them."
                )
        else:
            sizes = [low_resolution_side(extent, scale) for extent in values.shape[1:]]
            if min(sizes) < 1:
                raise ValueError(
                    f"The image {image.name} has {values.shape[1]} x {values.shape[2]} pixels, fewer than the scale {scale:g}: "
                    "remove it, or lower the scales."
                )
            size = [round(extent * scale) for extent in sizes]
            small = self.degradation(
                values[:, : size[0], : size[1]].contiguous(), (sizes[0], sizes[1]), generator_at(0, "degradation", name)
            )
        values = values[:, : size[0], : size[1]].contiguous()
        return Pair(small, values, _ALL, torch.tensor(size), scale, name)


class GradedPairs(Dataset[Pair]):
    """Whole square images whose scale grows with their index (LIIF, section 5.3, "size-varied ground-truths").

    Args:
        images: The images.
        size: Pixels along each side of the low resolution.
        scales: Scales of the first and the last image.
        degradation: Makes the low resolution.
        channels: 3 for colours, 1 for grey.
    """

    def __init__(
        self,
        images: Dataset[Signal],
        size: int,
        scales: tuple[float, float],
        degradation: Degradation,
        channels: int = 3,
    ) -> None:
        self.images, self.size, self.scales, self.degradation = images, size, scales, degradation
        self.channels = channels

    def __len__(self) -> int:
        """Return the number of images."""
        return length_of(self.images)

    def __getitem__(self, index: int) -> Pair:
        """Return the pair of image ``index``.

        Raises:
            ValueError: If the image is smaller than its target.
        """
        scale = graded_scale(self.scales, index, len(self))
        return _square_pair(self.images[index], self.size, scale, self.degradation, self.channels)


class SquarePairs(Dataset[Pair]):
    """Whole square images of one low resolution at fixed scales, for evaluation: all images at the first scale, then the next.

    The square is resized to ``scale`` times ``size``, so that models observe images of the size that they are trained on.

    Args:
        images: The images.
        size: Pixels along each side of the low resolution.
        scales: The scales.
        degradation: Makes the low resolution.
        channels: 3 for colours, 1 for grey.
    """

    def __init__(
        self,
        images: Dataset[Signal],
        size: int,
        scales: Sequence[float],
        degradation: Degradation,
        channels: int = 3,
    ) -> None:
        self.images, self.size, self.scales, self.degradation = images, size, tuple(scales), degradation
        self.channels = channels

    def __len__(self) -> int:
        """Return the number of pairs."""
        return length_of(self.images) * len(self.scales)

    def __getitem__(self, index: int) -> Pair:
        """Return pair ``index``.

        Raises:
            ValueError: If the image is smaller than its target.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} pairs")
        scale, place = self.scales[index // length_of(self.images)], index % length_of(self.images)
        pair = _square_pair(self.images[place], self.size, scale, self.degradation, self.channels)
        return pair._replace(scale=scale, name=f"{pair.name}-x{scale:g}")


class Repeated(Dataset[Signal]):
    """The images of a data set, several times per epoch.

    Args:
        images: The images.
        times: How often each is returned.
    """

    def __init__(self, images: Dataset[Signal], times: int) -> None:
        self.images, self.times = images, times

    def __len__(self) -> int:
        """Return the number of items."""
        return length_of(self.images) * self.times

    def __getitem__(self, index: int) -> Signal:
        """Return image ``index`` modulo the number of images."""
        return self.images[index % length_of(self.images)]


def graded_scale(scales: tuple[float, float], index: int, count: int) -> float:
    """Return the scale of image ``index`` of ``count``, which grows evenly from the first to the last of ``scales``."""
    low, high = scales
    return low + (high - low) * index / max(1, count - 1)


def check_shapes(images: Dataset[Signal], size: int, scales: tuple[float, float], graded: bool) -> None:
    """Check that images are large enough for training, where their data set states ``shapes``: names, rows and columns.

    Args:
        images: The images.
        size: Pixels along each side of the low resolution.
        scales: Range of the scale.
        graded: Whether every image has a scale of its own (`GradedPairs`) rather than any of the range.

    Raises:
        ValueError: If an image is smaller than a crop at the smallest scale, or at its own.
    """
    shapes = shapes_of(images)
    for index, (name, shape) in enumerate(shapes):
        scale = graded_scale(scales, index, len(shapes)) if graded else scales[0]
        if min(shape) < round(size * scale):
            raise ValueError(_too_small(name, shape, size, scale))


def shapes_of(images: Dataset[Signal]) -> Sequence[tuple[str, tuple[int, int]]]:
    """Return the names, and rows and columns, of images that are already decoded; empty for others."""
    shapes: Sequence[tuple[str, tuple[int, int]]] = getattr(images, "shapes", ())
    return shapes


def low_resolution_side(side: int, scale: float) -> int:
    """Return the pixels of a side at a low resolution, rounded down.

    Example:
        >>> low_resolution_side(33, 1.1), low_resolution_side(33, 2.0)
        (30, 16)
    """
    return math.floor(side / scale + 1e-9)


def length_of(images: Dataset[Signal]) -> int:
    """Return the number of items of a data set."""
    return len(cast(Sized, images))


def _too_small(name: str, shape: tuple[int, ...], size: int, scale: float) -> str:
    """Return the error message for an image that is too small."""
    side = round(size * scale)
    return (
        f"The image {name} has {shape[0]} x {shape[1]} pixels; size {size} at scale {scale:g} takes {side} x {side}: lower "
        "size or scales, or remove the image."
    )


def _square_pair(image: Signal, size: int, scale: float, degradation: Degradation, channels: int) -> Pair:
    """Return the central square of an image at ``size`` pixels and, resized, at ``scale`` times as many.

    Raises:
        ValueError: If the image is smaller than the larger square.
    """
    values = grey(image.values) if channels == 1 else image.values
    side, target = min(values.shape[1:]), round(size * scale)
    if side < target:
        raise ValueError(_too_small(image.name, tuple(values.shape[1:]), size, target / size))
    top, left = ((extent - side) // 2 for extent in values.shape[1:])
    square = values[:, top : top + side, left : left + side].contiguous()
    small = degradation(square, (size, size), generator_at(0, "degradation", image.name))
    large = resized(square, (target, target))
    return Pair(small, large, _ALL, torch.tensor([target, target]), target / size, image.name)
