"""Photographs bundled with scikit-image, for first runs, tests and documentation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import skimage.data
import torch
from kornia.geometry.transform import resize
from matplotlib import get_data_path
from torch import Tensor

from datamodules.base import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.domain import Grid
from datamodules.images.augmentation import ImageAugmentation
from datamodules.images.native import NativeImages
from datamodules.loading import Chain, InMemory
from datamodules.spec import DataSpec
from datamodules.storage.folders import Split
from datamodules.storage.images import RandomCrop, read_image, resize_image
from modalities.images import Images

TRAINING_PHOTOGRAPHS = (
    "chelsea",
    "rocket",
    "hubble_deep_field",
    "retina",
    "immunohistochemistry",
    "stereo_motorcycle",
    "camera",
    "brick",
    "gravel",
    "grass",
    "coins",
    "moon",
)
MORE_PHOTOGRAPHS = ("clock", "page", "cell", "microaneurysms", "grace_hopper")
HELD_OUT_PHOTOGRAPHS = ("astronaut", "coffee")


@cache
def photograph(name: str) -> Tensor:
    """Return a photograph of scikit-image, or ``grace_hopper`` of matplotlib, as ``(3, H, W)`` uint8.

    Grey photographs have three equal channels.

    Example:
        >>> photograph("astronaut").shape
        torch.Size([3, 512, 512])
    """
    if name == "grace_hopper":
        return read_image(get_data_path() / Path("sample_data", "grace_hopper.jpg")).pixels
    loaded = getattr(skimage.data, name)()
    pixels = torch.from_numpy(loaded[0] if isinstance(loaded, tuple) else loaded)
    return pixels.expand(3, *pixels.shape) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


class Photographs(InMemory):
    """Images in memory, repeated to a given epoch length.

    Args:
        images: Names and pixels ``(3, H, W)`` uint8 of the images.
        length: Number of items in an epoch; the number of images if None.
    """

    def __init__(self, images: Sequence[tuple[str, Tensor]], length: int | None = None) -> None:
        super().__init__([Signal(pixels, name) for name, pixels in images], length)
        self.images = list(images)

    @property
    def shapes(self) -> list[tuple[str, tuple[int, int]]]:
        """Name, rows and columns of every image."""
        return [(name, (pixels.shape[1], pixels.shape[2])) for name, pixels in self.images]


class SamplePhotos(NativeImages, CoordinateDataModule):
    """Photographs of scikit-image (BSD-3; images in the public domain, CC0 or as stated there). Requires no download.

    Training uses random crops of twelve photographs at several scales. Validation and testing use ``astronaut`` and
    ``coffee``, each as the full image resized to a square and as 16 fixed crops, the central squares of a 4 x 4 grid.

    With ``detail`` above 1, training crops have more pixels than the model observes, so that a field is trained between the
    pixels of its input: a step compares either the observed pixels or, with probability 1/2, one of the finer pixels within
    each of them, at a position that is drawn anew.

    Args:
        size: Pixels along each side of an image.
        crops_per_epoch: Number of training crops in an epoch.
        scales: Shorter sides of the photographs that crops are taken from, in multiples of ``size``, at least 1.
        shuffle_colors: Whether to permute the colour channels of training crops at random, for more variety of colours.
        extended: Whether to train on four more images of scikit-image and on ``grace_hopper`` of matplotlib (public domain).
        augment: Further random changes of training crops; none if None.
        detail: Pixels of a training crop along each axis per pixel that the model observes. Photographs that are too small for
            a scale are left out of it.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If an argument is out of range.
    """

    modality = Images()

    def __init__(
        self,
        size: int = 64,
        crops_per_epoch: int = 1024,
        scales: Sequence[float] = (1.0, 1.5, 2.0, 3.0, 4.0),
        shuffle_colors: bool = False,
        extended: bool = False,
        augment: ImageAugmentation | None = None,
        detail: int = 1,
        **kwargs: Any,
    ) -> None:
        if size < 1 or crops_per_epoch < 1 or detail < 1 or not scales or min(scales) < 1:
            raise ValueError(
                f"size is {size}, crops_per_epoch {crops_per_epoch}, detail {detail}, scales {list(scales)}: "
                "all must be at least 1, and scales must not be empty."
            )
        super().__init__(**kwargs)
        self.size = size
        self.crops_per_epoch = crops_per_epoch
        self.scales = tuple(scales)
        self.extended = extended
        self.detail = detail
        crop = RandomCrop(size * detail, shuffle_colors=shuffle_colors)
        self.augmentation = crop if augment is None else Chain(crop, augment)

    @property
    def spec(self) -> DataSpec:
        """Square colour images with coordinates in ``[-1, 1]`` along both axes."""
        return DataSpec(Grid.unit(2), 3, (3, self.size, self.size), self.modality, self.num_instances)

    def setup(self, stage: str) -> None:
        """Resize the photographs, which takes about a second."""
        if stage == "fit":
            scaled = [
                (name, _scaled(photograph(name), round(self.size * self.detail * scale)))
                for scale in self.scales
                for name in TRAINING_PHOTOGRAPHS + (MORE_PHOTOGRAPHS if self.extended else ())
                if self.detail == 1 or self.size * self.detail * scale <= min(photograph(name).shape[1:])
            ]
            self.train_set = Photographs(scaled, self.crops_per_epoch)
        self.val_set = self.test_set = Photographs(
            [
                (label, resize_image(pixels, self.size, self.size))
                for name in HELD_OUT_PHOTOGRAPHS
                for label, pixels in _held_out(name).items()
            ]
        )
        self.notes["held-out items"] = (
            f"these {len(self.test_set)} images are two photographs and their crops, so that their spread is not that of "
            "independent images"
        )

    def native_images(self, split: Split) -> Photographs:
        """Return the photographs of a split: those of training, also resized to the shorter sides ``size`` times ``scales``.

        Photographs are not enlarged.
        """
        names: tuple[str, ...] = HELD_OUT_PHOTOGRAPHS if split != "train" else TRAINING_PHOTOGRAPHS
        names += MORE_PHOTOGRAPHS if split == "train" and self.extended else ()
        images = [(name, photograph(name)) for name in names]
        if split == "train":
            images += [
                (f"{name}-{side}", _scaled(image, side))
                for side in sorted({round(self.size * scale) for scale in self.scales})
                for name, image in images
                if side < min(image.shape[1:])
            ]
        return Photographs(images)

    def coarser(self, signal: Tensor) -> Tensor:
        """Return images ``(B, 3, H, W)`` resized by ``detail`` with the filter of the held-out images."""
        height, width = (side // self.detail for side in signal.shape[2:])
        return resize(signal, (height, width), interpolation="bilinear", antialias=True)

    def source_signal(self, name: str, shape: Sequence[int] | None = None) -> Tensor | None:
        """Return the photograph or crop of a held-out item ``(3, H, W)`` uint8; see `CoordinateDataModule.source_signal`."""
        pixels = _held_out(name.partition("-")[0])[name]
        if shape is None:
            return pixels
        height, width = shape
        return resize_image(pixels, height, width) if height <= pixels.shape[1] and width <= pixels.shape[2] else None


def _held_out(name: str) -> dict[str, Tensor]:
    """Return a photograph and its 16 fixed crops ``(3, h, w)`` by name, at their own resolution."""
    image = photograph(name)
    height, width = image.shape[1] // 4, image.shape[2] // 4
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crops = {
        f"{name}-{row}{column}": image[:, row * height + top :, column * width + left :][:, :side, :side]
        for row in range(4)
        for column in range(4)
    }
    return {name: image} | crops


def _scaled(image: Tensor, short_side: int) -> Tensor:
    """Return an image resized such that its shorter side has ``short_side`` pixels."""
    height, width = image.shape[1:]
    factor = short_side / min(height, width)
    return resize_image(image, round(height * factor), round(width * factor))
