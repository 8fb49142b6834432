"""Base class of image data modules: files per split, decoded once, cropped on the device."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Signal
from datamodules.domain import Grid
from datamodules.images.native import NativeImages
from datamodules.randomness import generator_at
from datamodules.spec import DataSpec
from datamodules.storage.cache import cached
from datamodules.storage.download import Source
from datamodules.storage.folders import NamedFile, Split, report_skipped, splits_of
from datamodules.storage.images import Preparation, RandomCrop, quiet, read_image
from datamodules.storage.parallel import unreadable_of
from modalities.images import Images

_HOW_TO_SKIP = "Pass --data.init_args.on_bad_file skip to skip such images, which checks all of them at set-up."
_MAX_LISTED = 5  # files listed in an error message
_HINT = "Run python -m tools.check --config CONFIG to see what is missing and how to get it."


class Uncut(Signal):
    """An uncropped image of any size; the crop is taken on the device."""


class UncutBatch(NamedTuple):
    """Uncropped images of different sizes, concatenated.

    Attributes:
        pixels: Pixels of all images, ``(sum of 3 H W,)`` uint8.
        shapes: ``(3, H, W)`` of every image.
        name: Name of every image.
        seed: Seed of the random draws of every image.
    """

    pixels: Tensor
    shapes: list[tuple[int, ...]]
    name: list[str]
    seed: list[int]


class DecodedImages(Dataset[Signal]):
    """Images that are decoded and preprocessed at every access.

    Args:
        files: Image files.
        preparation: Preprocessing of every image.
    """

    def __init__(self, files: Sequence[NamedFile], preparation: Preparation) -> None:
        self.files = list(files)
        self.preparation = preparation

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> Signal:
        """Return image ``index``, or raise a ``ValueError`` that names the file and the fix."""
        name, path = self.files[index]
        try:
            pixels = read_image(path).pixels
        except ValueError as error:
            raise ValueError(f"{error} {_HOW_TO_SKIP}") from error
        return Signal(self.preparation(pixels), name)


class UncutImages(Dataset[Signal]):
    """A data set whose images are cropped on the device.

    Args:
        images: The images.
    """

    def __init__(self, images: Dataset[Signal]) -> None:
        self.images = images

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Uncut:
        """Return image ``index``."""
        return Uncut(*self.images[index])


def collate_images(items: list[Signal]) -> Any:
    """Collate `Uncut` images into an `UncutBatch`, and other images by stacking them."""
    if not isinstance(items[0], Uncut):
        return default_collate(items)
    pixels = torch.cat([item.values.flatten() for item in items])
    shapes = [tuple(item.values.shape) for item in items]
    return UncutBatch(pixels, shapes, [item.name for item in items], [item.seed for item in items])


class ImageSet(NativeImages, CoordinateDataModule):
    """Base class for data sets of image files, resized and cropped to squares.

    A subclass defines the files of a split (`files`), their preprocessing (`preparation`), the random crop of training
    images (``random_crop``), and the published number and size of images (``published``, ``shape``). Images are decoded once
    into a uint8 cache on disk. Random crops and flips run on the device.

    Args:
        size: Pixels along each side of the images for training and evaluation.
        root: Folder of the data sets.
        cache: Folder for decoded images; if None, images are decoded at every access.
        on_bad_file: How to handle an unreadable image: ``raise`` an error that names it, or ``skip`` it with a warning.
        partial: Whether a split may have fewer or more images than published.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if images are missing, unreadable or have the wrong size.
    """

    modality = Images()
    published: ClassVar[Mapping[Split, int]] = {}
    shape: ClassVar[tuple[int, int] | None] = None
    source: ClassVar[Source | None] = None
    collate = staticmethod(collate_images)
    random_crop: RandomCrop | None = None

    def __init__(
        self,
        size: int = 178,
        root: str = "data",
        cache: str | None = "data/cache",
        on_bad_file: Literal["raise", "skip"] = "raise",
        partial: bool = False,
        **kwargs: Any,
    ) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, but must be at least 1.")
        super().__init__(**kwargs)
        self.size = size
        self.root = Path(root)
        self.cache = None if cache is None else Path(cache)
        self.on_bad_file = on_bad_file
        self.partial = partial

    @property
    def spec(self) -> DataSpec:
        """Square colour images with coordinates in ``[-1, 1]`` along both axes."""
        return DataSpec(Grid.unit(2), 3, (3, self.size, self.size), self.modality, self.num_instances)

    @abstractmethod
    def files(self, split: Split) -> list[NamedFile]:
        """Return the existing images of a split in a deterministic order.

        Raises:
            ValueError: If the folder is missing. The message says how to get the data.
        """

    def expected(self, split: Split) -> list[str] | None:
        """Return the names of all images of a split; None if they are unknown."""
        return None

    def count(self, split: Split) -> int | None:
        """Return the number of images that a split should have; None if it is unknown."""
        names = self.expected(split)
        return self.published.get(split) if names is None else len(names)

    def preparation(self, split: Split) -> Preparation:
        """Return the preprocessing of a split: resize the shorter side to ``size``, then take the central square."""
        return Preparation(short_side=self.size, crop=self.size)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The archives that are downloaded; empty if there are none."""
        return () if self.source is None else (self.source,)

    def related_files(self, split: Split) -> list[NamedFile]:
        """Return further image files that belong to the images of a split, and may be missing; none by default."""
        return []

    def how_to_replace(self, folder: Path) -> str:
        """Return the fix for missing or unreadable files of `related_files` in a folder."""
        return f"Obtain new copies of the images in {folder}."

    def how_to_get(self) -> str:
        """Return instructions for getting the images by hand; empty if there are none."""
        return ""

    def fetch(self) -> None:
        """Download the data set if it is missing and can be downloaded."""

    def prepare_data(self) -> None:
        """Download and decode the images, in one process per machine."""
        self.fetch()
        if self.cache is not None:
            for split in splits_of(self.trainer.state.fn if self.trainer else "fit"):
                self.images(split)

    def prepare_native(self, splits: Sequence[Split]) -> None:
        """Download the images, and decode those of some splits at their own resolution; see `NativeImages`."""
        self.fetch()
        if self.cache is not None:
            for split in splits:
                self.native_images(split)

    def setup(self, stage: str) -> None:
        """Create the data sets of a stage."""
        for split in splits_of(stage):
            images = self.images(split)
            is_cropped = split == "train" and self.random_crop is not None
            setattr(self, f"{split}_set", UncutImages(images) if is_cropped else images)
        if self.skipped:
            report_skipped(self.skipped, "images")

    def images(self, split: Split) -> Dataset[Signal]:
        """Return the preprocessed images of a split.

        Raises:
            ValueError: If images are missing, have the wrong size, or cannot be read and are not skipped.
        """
        return self._prepared(split, self.preparation(split))

    def native_images(self, split: Split) -> Dataset[Signal]:
        """Return the images of a split at their own resolution; see `NativeImages`."""
        return self._prepared(split, Preparation())

    def _prepared(self, split: Split, preparation: Preparation) -> Dataset[Signal]:
        """Return the images of a split after some preprocessing."""
        files = self.files(split)
        self._check_published(files, split)
        if self.cache is not None:
            images = cached(files, preparation, self.cache, type(self).__name__.lower())
            self._handle_unreadable(images.skipped, len(files), split)
            return images
        if self.on_bad_file == "raise":
            return DecodedImages(files, preparation)
        skipped = unreadable(files)
        self._handle_unreadable(skipped, len(files), split)
        return DecodedImages([file for file in files if str(file.path) not in skipped], preparation)

    def to_coordinates(self, batch: Signal | UncutBatch, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated images; an `UncutBatch` is cropped at random first."""
        return super().to_coordinates(
            self._random_crops(batch) if isinstance(batch, UncutBatch) else batch, training=training, step=step
        )

    def _random_crops(self, batch: UncutBatch) -> Signal:
        """Return a random crop of every image, drawn from the image's own seed."""
        assert self.random_crop is not None
        images = batch.pixels.split([math.prod(shape) for shape in batch.shapes])
        crops = [
            self.random_crop(Signal(pixels.view(shape), name, seed), generator_at(seed, "crop")).values
            for pixels, *(shape, name, seed) in zip(images, *batch[1:], strict=True)
        ]
        return Signal(torch.stack(crops), batch.name, batch.seed)  # type: ignore[arg-type]

    def _check_published(self, files: Sequence[NamedFile], split: Split) -> None:
        """Raise an error if the number of images, or the size of the first one, differs from what was published."""
        name = type(self).__name__
        if not files:
            raise ValueError(f"{name} has no images for split {split} in {self.root}. {_HINT}")
        expected = self.count(split)
        if expected is not None and expected != len(files) and not self.partial:
            raise ValueError(
                f"{name} has {len(files):,} images for split {split} in {self.root}, but {expected:,} are expected. {_HINT} "
                "Pass --data.init_args.partial true to use the images that are present."
            )
        if self.shape is None:
            return
        path = files[0].path
        try:
            with quiet, Image.open(path) as image:
                width, height = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            return  # unreadable images are handled when they are decoded
        if (height, width) != self.shape:
            raise ValueError(
                f"{path} has {height} x {width} pixels, but the images of {name} have {self.shape[0]} x {self.shape[1]}. "
                f"{_HINT}"
            )

    def _handle_unreadable(self, unreadable: Mapping[str, str], total: int, split: Split) -> None:
        """Record unreadable images as skipped, or raise an error if they must not be skipped or none is left."""
        if unreadable and (self.on_bad_file == "raise" or len(unreadable) == total):
            reasons = "".join(f"\n  {reason}" for reason in list(unreadable.values())[:_MAX_LISTED])
            more = f"\n  and {len(unreadable) - _MAX_LISTED:,} more" if len(unreadable) > _MAX_LISTED else ""
            raise ValueError(
                f"{len(unreadable):,} of {total:,} images for split {split} cannot be read:{reasons}{more}\n"
                "Fix these files, or pass --data.init_args.on_bad_file skip to skip them."
            )
        self.skipped |= unreadable


def unreadable(files: Sequence[NamedFile]) -> dict[str, str]:
    """Read all images and return the reasons why some cannot be read, by path."""
    return unreadable_of(files, _read_error, "reading images")


def _read_error(file: NamedFile) -> str | None:
    """Return why an image cannot be read; None if it can."""
    try:
        read_image(file.path)
    except ValueError as error:
        return str(error)
    return None
