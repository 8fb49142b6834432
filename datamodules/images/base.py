"""What data sets of images have in common: splits of files, decoded once, cut on the device."""

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
from datamodules.randomness import generator_at
from datamodules.spec import DataSpec
from datamodules.storage.cache import cached
from datamodules.storage.download import Source
from datamodules.storage.folders import NamedFile, Split, splits_of, tell_left_out
from datamodules.storage.images import Preparation, RandomCrop, quiet, read_image
from datamodules.storage.parallel import unreadable_of
from modalities.images import Images

_NAMED = 5  # files that a message names


class Uncut(Signal):
    """A whole image, of any size, of which a piece is cut on the device."""


class UncutBatch(NamedTuple):
    """Whole images of any sizes, one after the other.

    Attributes:
        pixels: Of all images, ``(sum of 3 H W,)`` uint8.
        shapes: ``(3, H, W)`` of each.
        name: Of each.
        seed: Where the random draws of each come from.
    """

    pixels: Tensor
    shapes: list[tuple[int, ...]]
    name: list[str]
    seed: list[int]


class DecodedImages(Dataset[Signal]):
    """Images that are read and prepared whenever they are asked for.

    Args:
        files: The images.
        preparation: What is done to each.
    """

    def __init__(self, files: Sequence[NamedFile], preparation: Preparation) -> None:
        self.files = list(files)
        self.preparation = preparation

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> Signal:
        """Return image ``index``, or raise a ``ValueError`` that names its file and the way out."""
        name, path = self.files[index]
        try:
            pixels = read_image(path).pixels
        except ValueError as error:
            raise ValueError(f"{error} Or leave such images out: --data.init_args.on_bad_file skip.") from error
        return Signal(self.preparation(pixels), name)


class UncutImages(Dataset[Signal]):
    """The items of a data set as whole images, to be cut on the device.

    Args:
        images: The data set.
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
    """Return whole images one after the other as an `UncutBatch`, and any others stacked."""
    if not isinstance(items[0], Uncut):
        return default_collate(items)
    pixels = torch.cat([item.values.flatten() for item in items])
    shapes = [tuple(item.values.shape) for item in items]
    return UncutBatch(pixels, shapes, [item.name for item in items], [item.seed for item in items])


class ImageSet(CoordinateDataModule):
    """Images in files, cut and resized to squares.

    A subclass says which files a split has (`files`), how they are prepared (`preparation`), what is cut of them at random in
    training (``random_crop``), and what is published of them: how many there are, and of which size. Images are decoded once
    into a cache of uint8, memory-mapped; random crops and flips are made on the device.

    Args:
        size: Pixels along each side of an image as it is trained and evaluated on.
        root: Folder of the data sets.
        cache: Folder that keeps decoded images; if None, they are decoded every time.
        on_bad_file: What an unreadable image does: ``raise`` stops with its name, ``skip`` leaves it out and says so.
        partial: Whether a split may have fewer or more images than were published.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If a number is out of range; at set-up, if images are missing, unreadable or of another size.
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
            raise ValueError(f"size is {size}; an image has at least 1 pixel along each side.")
        super().__init__(**kwargs)
        self.size = size
        self.root = Path(root)
        self.cache = None if cache is None else Path(cache)
        self.on_bad_file = on_bad_file
        self.partial = partial

    @property
    def spec(self) -> DataSpec:
        """Square images in colour, on ``[-1, 1]`` along both axes."""
        return DataSpec(Grid.unit(2), 3, (3, self.size, self.size), self.modality, self.num_instances)

    @abstractmethod
    def files(self, split: Split) -> list[NamedFile]:
        """Return the images of a split that are there, in an order that is always the same.

        Raises:
            ValueError: If their folder is missing, with the way to get it.
        """

    def expected(self, split: Split) -> list[str] | None:
        """Return the names that a split should have; None where only their number is known, or nothing."""
        return None

    def count(self, split: Split) -> int | None:
        """Return how many images a split should have; None where that is not known."""
        names = self.expected(split)
        return self.published.get(split) if names is None else len(names)

    def preparation(self, split: Split) -> Preparation:
        """Return what is done to every image of a split: its short side is resized, and the square in the middle kept."""
        return Preparation(short_side=self.size, crop=self.size)

    def how_to_get(self) -> str:
        """Return how to get images by hand; empty where there is nothing to say."""
        return ""

    def fetch(self) -> None:
        """Download what can be downloaded, unless it is there."""

    def prepare_data(self) -> None:
        """Download and decode, on one process of every machine."""
        self.fetch()
        if self.cache is not None:
            for split in splits_of(self.trainer.state.fn if self.trainer else "fit"):
                self.images(split)

    def setup(self, stage: str) -> None:
        """Fill the splits of a stage."""
        for split in splits_of(stage):
            images = self.images(split)
            whole = split == "train" and self.random_crop is not None
            setattr(self, f"{split}_set", UncutImages(images) if whole else images)
        if self.skipped:
            tell_left_out(self.skipped, "images")

    def images(self, split: Split) -> Dataset[Signal]:
        """Return the images of a split, prepared.

        Raises:
            ValueError: If there are none, not as many as published, some of another size, or, unless they are skipped, some
                that cannot be read.
        """
        files, preparation = self.files(split), self.preparation(split)
        self._check(files, split)
        if self.cache is not None:
            found = cached(files, preparation, self.cache, type(self).__name__.lower())
            self._judge(found.skipped, len(files), split)
            return found
        if self.on_bad_file == "raise":
            return DecodedImages(files, preparation)
        skipped = unreadable(files)
        self._judge(skipped, len(files), split)
        return DecodedImages([file for file in files if str(file.path) not in skipped], preparation)

    def to_coordinates(self, batch: Signal | UncutBatch, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated images; of whole ones, random crops."""
        return super().to_coordinates(
            self._cut(batch) if isinstance(batch, UncutBatch) else batch, training=training, step=step
        )

    def _cut(self, batch: UncutBatch) -> Signal:
        """Return a random crop of every image, each drawn at its own address."""
        assert self.random_crop is not None
        images = batch.pixels.split([math.prod(shape) for shape in batch.shapes])
        crops = [
            self.random_crop(Signal(pixels.view(shape), name, seed), generator_at(seed, "crop")).values
            for pixels, *(shape, name, seed) in zip(images, *batch[1:], strict=True)
        ]
        return Signal(torch.stack(crops), batch.name, batch.seed)  # type: ignore[arg-type]

    def _check(self, files: Sequence[NamedFile], split: Split) -> None:
        """Refuse a split that is not what was published."""
        name = type(self).__name__
        if not files:
            raise ValueError(f"{name} has no images of the split {split} in {self.root}: {self._fix()}")
        wanted = self.count(split)
        if wanted not in (None, len(files)) and not self.partial:
            known = "published" if split in self.published else "expected"
            raise ValueError(
                f"{name} has {len(files):,} images of the split {split} in {self.root}, {known} are {wanted:,}: "
                f"{self._fix()} Or take what is there: --data.init_args.partial true."
            )
        if self.shape is not None:
            self._check_shape(files[0].path, self.shape)

    def _check_shape(self, path: Path, shape: tuple[int, int]) -> None:
        """Refuse images of another size than published, judged by one; whether it can be read is seen later."""
        try:
            with quiet, Image.open(path) as image:
                width, height = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            return
        if (height, width) != shape:
            raise ValueError(
                f"{path} has {height} x {width} pixels, the images of {type(self).__name__} have "
                f"{shape[0]} x {shape[1]}: {self._fix()}"
            )

    def _fix(self) -> str:
        """Return the command that says what is wrong and how to fix it."""
        return "python -m tools.check --config CONFIG says what is missing and where to get it."

    def _judge(self, skipped: Mapping[str, str], total: int, split: Split) -> None:
        """Refuse unreadable images, or note them."""
        if skipped and (self.on_bad_file == "raise" or len(skipped) == total):
            named = "".join(f"\n  {reason}" for reason in list(skipped.values())[:_NAMED])
            more = f"\n  and {len(skipped) - _NAMED:,} more" if len(skipped) > _NAMED else ""
            raise ValueError(
                f"{len(skipped):,} of {total:,} images of the split {split} cannot be read:{named}{more}\n"
                "Fix them, or leave them out: --data.init_args.on_bad_file skip."
            )
        self.skipped |= skipped


def unreadable(files: Sequence[NamedFile]) -> dict[str, str]:
    """Return why images cannot be read, by path, after reading all of them."""
    return unreadable_of(files, _reason, "reading images")


def _reason(file: NamedFile) -> str | None:
    """Return why an image cannot be read, or None."""
    try:
        read_image(file.path)
    except ValueError as error:
        return str(error)
    return None
