"""Super-resolution: pairs of a low and a high resolution of the images of another data module (Chen et al., LIIF, 2021)."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples, Signal
from datamodules.domain import CellGrid, Domain
from datamodules.images.augmentation import ImageAugmentation
from datamodules.images.degradation import Bicubic, Degradation
from datamodules.images.native import NativeImages
from datamodules.images.pairs import (
    FixedPairs,
    GradedPairs,
    Pair,
    PairCrop,
    PairDraw,
    Repeated,
    SquarePairs,
    check_shapes,
    length_of,
    low_resolution_side,
    shapes_of,
)
from datamodules.loading import Augmentation, Chain
from datamodules.spec import DataSpec
from datamodules.storage.folders import Split, report_skipped, splits_of
from modalities.super_resolution import SuperResolvedImages

Border = Literal["none", "scale", "scale+6"]

_OPTIONS = "--data.init_args."


def with_options_of_images(message: str) -> str:
    """Return a message of a data module of images with its options as those of the argument ``images`` that wraps it.

    Example:
        >>> with_options_of_images("Pass --data.init_args.partial true.")
        'Pass --data.init_args.images.init_args.partial true.'
    """
    return message.replace(_OPTIONS, f"{_OPTIONS}images.init_args.")


@contextmanager
def _options_of_images() -> Iterator[None]:
    """Name the options of the wrapped data module correctly in errors that it raises."""
    try:
        yield
    except (ValueError, ConnectionError) as error:
        raise type(error)(with_options_of_images(str(error))) from error


class WrappedImages(Dataset[Signal]):
    """Images of a wrapped data module, whose errors name its options.

    Args:
        images: The images.
    """

    def __init__(self, images: Dataset[Signal]) -> None:
        self.images = images

    def __len__(self) -> int:
        """Return the number of images."""
        return length_of(self.images)

    def __getitem__(self, index: int) -> Signal:
        """Return image ``index``."""
        with _options_of_images():
            return self.images[index]


def _scaled(pair: Pair) -> tuple[Any, ...]:
    """Return what must agree in a batch of evaluation."""
    return tuple(pair.high.shape), pair.scale


def collate_pairs(pairs: list[Pair]) -> Pair:
    """Collate pairs of one size into a batch.

    Raises:
        ValueError: If their sizes differ.
    """
    first = pairs[0]
    for pair in pairs:
        training = bool(len(pair.drawn))
        if pair.low.shape != first.low.shape or (not training and _scaled(pair) != _scaled(first)):
            sizes = [f"{item.name} has {item.high.shape[-2]} x {item.high.shape[-1]}" for item in (first, pair)]
            raise ValueError(
                f"eval_batch_size is {len(pairs)} or more, but images of a batch have different sizes or scales "
                f"({', '.join(sizes)} pixels): set eval_batch_size to 1."
            )
    batch: Pair = default_collate(pairs)
    return batch


class SuperResolution(CoordinateDataModule):
    """Pairs of a low and a high resolution of the images of any image data module, at arbitrary scales.

    Training draws a scale and a crop of an image, degrades the crop to ``size`` pixels along each side, which is what a model
    observes, and draws pixels of the crop to reconstruct, with coordinates of their position and size (`CellGrid`). Validation
    and testing take whole images at fixed scales. ``border`` pixels are not measured there.

    Published protocols: on DIV2K, border ``scale+6`` and all channels; on the benchmarks Set5 to Urban100, border ``scale``
    and luminance (``luma``, also of the metrics of a model: `composers.metrics.PSNR`). Values are clipped, not rounded.

    Args:
        images: The images, at their own resolution: a data module of images, of which ``batch_size``, ``num_workers`` and
            random crops have no effect here.
        size: Pixels along each side of the low resolution in training.
        scales: Smallest and largest scale in training, at least 1.
        num_queries: Pixels of the high resolution that a training step draws per image.
        repeat: How often an epoch takes each image.
        crop: Whether to train on crops with random scales, and to evaluate whole images; otherwise on central squares, resized
            to ``size`` and to a fixed scale each, which grows from image to image (CelebA-HQ in the paper). Evaluation then
            takes such squares at its own scales.
        symmetries: Random symmetries in training: ``all`` eight of the square, ``mirror`` left and right, or ``none``.
        augment: Further random changes of training crops; none if None.
        degradation: Makes the low resolution; `Bicubic`, as published, if None.
        val_scales: Scales of validation.
        test_scales: Scales of testing.
        border: Pixels at all borders that metrics leave out: none, the scale rounded up, or 6 more.
        luma: Whether metrics compare the luminance of colour images, as on the benchmarks.
        channels: 3 for colours, 1 for grey images.
        batch_size: Instances per device and training step.
        eval_batch_size: Instances per device in validation and test; above 1, images of a batch must have the same size and
            scale: all images the same size, their number a multiple of it.
        num_workers: Number of worker processes; 0 loads in the main process.

    Raises:
        ValueError: If an argument is out of range, or ``images`` has no images at their own resolution.
    """

    collate = staticmethod(collate_pairs)
    query_domain: ClassVar[Domain] = CellGrid.unit(2)

    def __init__(
        self,
        images: CoordinateDataModule,
        size: int = 48,
        scales: tuple[float, float] = (1.0, 4.0),
        num_queries: int = 2304,
        repeat: int = 1,
        crop: bool = True,
        symmetries: Literal["all", "mirror", "none"] = "all",
        augment: ImageAugmentation | None = None,
        degradation: Degradation | None = None,
        val_scales: Sequence[float] = (2.0, 4.0),
        test_scales: Sequence[float] = (2.0, 3.0, 4.0, 6.0, 8.0),
        border: Border = "scale",
        luma: bool = False,
        channels: Literal[1, 3] = 3,
        batch_size: int = 16,
        eval_batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers)
        _check_sizes(size, scales, num_queries, repeat, val_scales, test_scales)
        if not isinstance(images, NativeImages):
            raise ValueError(
                f"images is {type(images).__name__}, which does not offer images at their own resolution: pass a data module "
                "of images, such as datamodules.ImageFolder."
            )
        if not crop and (repeat != 1 or augment is not None):
            raise ValueError(
                f"repeat is {repeat} and augment {augment}, but both belong to random crops: set crop to true, or repeat to 1 "
                "and augment to null."
            )
        if not crop and degradation is not None and degradation.random:
            raise ValueError(
                f"degradation is {type(degradation).__name__}, which is random, but the squares of crop false are the same in "
                "every epoch: set crop to true, or degradation to null."
            )
        self.images = images
        self.size, self.scales = size, (float(scales[0]), float(scales[1]))
        self.num_queries, self.repeat, self.crop = num_queries, repeat, crop
        self.degradation = degradation or Bicubic()
        self.val_scales, self.test_scales = tuple(map(float, val_scales)), tuple(map(float, test_scales))
        self.border, self.channels = border, channels
        draw = PairDraw(num_queries, symmetries)
        cut = PairCrop(size, self.scales, self.degradation, augment, channels)
        self.augmentation = cast(
            Augmentation, Chain(cast(Augmentation, cut), cast(Augmentation, draw)) if crop else draw
        )
        self.modality = SuperResolvedImages(luma)

    @property
    def spec(self) -> DataSpec:
        """Images of ``size`` pixels that a model observes, and coordinates of positions with sizes."""
        shape = (self.channels, self.size, self.size)
        return DataSpec(self.query_domain, self.channels, shape, self.modality, self.num_instances, scales=self.scales)

    @property
    def smallest_side(self) -> int:
        """Pixels that the shorter side of every training image must have at least: those of the smallest crop or square."""
        return round(self.size * self.scales[0])

    def prepare_data(self) -> None:
        """Download and decode the images at their own resolution, in one process per machine."""
        self.images.trainer = self.trainer
        with _options_of_images():
            cast(NativeImages, self.images).prepare_native(splits_of(self.trainer.state.fn if self.trainer else "fit"))

    def setup(self, stage: str) -> None:
        """Create the data sets of a stage.

        Raises:
            ValueError: If images are missing, or images that are already decoded are too small for training; others raise this
                error when they are read.
        """
        self.images.trainer = self.trainer
        for split in splits_of(stage):
            with _options_of_images():
                images = cast(NativeImages, self.images).native_images(split)
                pairs = self._training_pairs(images) if split == "train" else self._fixed_pairs(images, split)
            setattr(self, f"{split}_set", pairs)
        self.skipped, self.notes = self.images.skipped, self.images.notes
        if self.skipped:
            report_skipped(self.skipped, "images")

    def _training_pairs(self, images: Dataset[Signal]) -> Dataset[Any]:
        """Return the items of the training split."""
        check_shapes(images, self.size, self.scales, graded=not self.crop)
        if self.crop:
            return Repeated(WrappedImages(images), self.repeat)
        return GradedPairs(WrappedImages(images), self.size, self.scales, self.degradation, self.channels)

    def _fixed_pairs(self, images: Dataset[Signal], split: Split) -> Dataset[Pair]:
        """Return the items of an evaluation split."""
        scales = self.val_scales if split == "val" else self.test_scales
        for name, shape in shapes_of(images):
            for scale in scales:
                self._check_evaluation(name, shape, scale)
        if not self.crop:
            return SquarePairs(WrappedImages(images), self.size, scales, self.degradation, self.channels)
        native = cast(NativeImages, self.images)
        low_resolutions = {scale: native.low_resolution_images(split, scale) for scale in scales}
        published = {scale: small for scale, small in low_resolutions.items() if small is not None}
        return FixedPairs(WrappedImages(images), scales, self.degradation, published, self.channels)

    def _check_evaluation(self, name: str, shape: tuple[int, int], scale: float) -> None:
        """Raise an error if an image is too small for evaluation at a scale."""
        targets = [round((low_resolution_side(side, scale) if self.crop else self.size) * scale) for side in shape]
        if min(targets) <= 2 * self._border(scale) or any(map(operator.lt, shape, targets)):
            raise ValueError(
                f"The image {name} has {shape[0]} x {shape[1]} pixels, too few for evaluation at scale {scale:g} without "
                f"{self._border(scale)} pixels at all borders: remove the image, lower the scale, or set border to none."
            )

    def _border(self, scale: float) -> int:
        """Return the pixels at all borders that are not measured at a scale."""
        return 0 if self.border == "none" else math.ceil(scale) + (6 if self.border == "scale+6" else 0)

    def scale_of(self, name: str) -> float | None:
        """Return the scale in the name of a validation or test item; None for other names.

        Example:
            ``data.scale_of("astronaut-x2.5")`` is 2.5 if this is a scale of validation or testing.
        """
        known = {f"{scale:g}": scale for scale in (*self.val_scales, *self.test_scales)}
        return known.get(name.rpartition("-x")[2])

    @property
    def measured_area(self) -> str:
        """The border that metrics leave out, where the scale is s."""
        left_out = {
            "none": "",
            "scale": "without s pixels at all borders",
            "scale+6": "without s + 6 pixels at all borders",
        }
        return left_out[self.border]

    def random_items(self, count: int) -> Pair:
        """Return a collated batch of random training pairs at the largest scale."""
        side = round(self.size * self.scales[1])
        drawn = torch.stack([torch.randperm(side**2)[: self.num_queries] for _ in range(count)])
        low = torch.randint(256, (count, self.channels, self.size, self.size), dtype=torch.uint8)
        high = torch.randint(256, (count, self.channels, drawn.shape[1]), dtype=torch.uint8)
        names, size = [f"random-{index}" for index in range(count)], torch.full((count, 2), side)
        return Pair(low, high, drawn, size, self.scales[1], names, torch.arange(count))  # type: ignore[arg-type]

    def to_coordinates(self, batch: Any, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated pairs; in evaluation, with a mask that leaves out the border."""
        assert isinstance(batch, Pair)
        low, high = batch.low.float() / 255, batch.high.float() / 255
        domain, device = self.spec.domain, low.device
        observed = Samples(domain.coords(low.shape[2:], device=device), low.flatten(2).mT)
        index = torch.as_tensor(batch.instance, device=device) if training else None
        names: list[str] = list(batch.name)
        if batch.drawn.shape[-1]:
            coords = torch.stack(
                [
                    domain.coords(size, device=device)[drawn]
                    for size, drawn in zip(batch.size.tolist(), batch.drawn, strict=True)
                ]
            )
            return CoordinateBatch(Observation(low, observed, index), Samples(coords, high.mT), None, names)
        shape = tuple(high.shape[2:])
        query = Samples(domain.coords(shape, device=device), high.flatten(2).mT, self._mask(batch, shape, device))
        return CoordinateBatch(Observation(low, observed, index), query, shape, names)

    def _mask(self, batch: Pair, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Return which pixels ``(B, N)`` are measured; None if all are."""
        [scale] = set(torch.as_tensor(batch.scale).flatten().tolist())
        if not (border := self._border(scale)):
            return None
        inner = torch.zeros(shape, dtype=torch.bool, device=device)
        inner[border : shape[0] - border, border : shape[1] - border] = True
        if not inner.any():
            raise ValueError(
                f"{batch.name[0]} has {shape[0]} x {shape[1]} pixels; a border of {border} on all sides leaves none to "
                "measure: set border to none, or remove the image."
            )
        return inner.flatten().expand(len(batch.low), -1)


def _check_sizes(
    size: int,
    scales: Sequence[float],
    num_queries: int,
    repeat: int,
    val_scales: Sequence[float],
    test_scales: Sequence[float],
) -> None:
    """Raise an error for an argument that is out of range."""
    if min(size, num_queries, repeat) < 1:
        raise ValueError(f"size is {size}, num_queries {num_queries}, repeat {repeat}: all must be at least 1.")
    if not 1 <= scales[0] <= scales[1] < math.inf:
        raise ValueError(
            f"scales is {list(scales)}: give the smallest and the largest scale in training, both at least 1."
        )
    if round(size * scales[0]) ** 2 < num_queries:
        raise ValueError(
            f"num_queries is {num_queries}, but a crop of size {size} at scale {scales[0]:g} has "
            f"{round(size * scales[0]) ** 2} pixels: set num_queries to at most that, or raise size or the smallest scale."
        )
    for name, values in (("val_scales", val_scales), ("test_scales", test_scales)):
        if not values or not all(1 <= scale < math.inf for scale in values):
            raise ValueError(f"{name} is {list(values)}: give at least one scale, all at least 1.")
