"""Super-resolution: pairs of a low and a high resolution of the images of another data module (Chen et al., LIIF, 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples, Signal
from datamodules.domain import CellGrid, Domain
from datamodules.images.augmentation import ImageAugmentation
from datamodules.images.degradation import Bicubic, Degradation
from datamodules.images.native import NativeImages
from datamodules.images.pairs import FixedPairs, GradedPairs, Pair, PairCrop, PairDraw, Repeated
from datamodules.loading import Augmentation, Chain
from datamodules.spec import DataSpec
from datamodules.storage.folders import Split, splits_of
from modalities.super_resolution import SuperResolvedImages

Border = Literal["none", "scale", "scale+6"]


class SuperResolution(CoordinateDataModule):
    """Pairs of a low and a high resolution of the images of any image data module, at arbitrary scales.

    Training draws a scale and a crop of an image, degrades the crop to ``size`` pixels along each side, which is what a model
    observes, and draws pixels of the crop to reconstruct, with coordinates of their position and size (`CellGrid`). Validation
    and testing take whole images at fixed scales; one of them is a batch. ``border`` pixels are not measured there.

    Published protocols: on DIV2K, border ``scale+6`` and all channels; on the benchmarks Set5 to Urban100, border ``scale``
    and luminance (`composers.metrics.PSNR` with ``luma``). Values are clipped, not rounded.

    Args:
        images: The images, at their own resolution: a data module of images.
        size: Pixels along each side of the low resolution in training.
        scales: Smallest and largest scale in training, at least 1.
        num_queries: Pixels of the high resolution that a training step draws per image.
        repeat: How often an epoch takes each image.
        crop: Whether to train on crops with random scales; otherwise on whole squares with a fixed scale each, which grows from
            image to image (CelebA-HQ in the paper).
        symmetries: Random symmetries in training: ``all`` eight of the square, ``mirror`` left and right, or ``none``.
        augment: Further random changes of training crops; none if None.
        degradation: Makes the low resolution; `Bicubic`, as published, if None.
        val_scales: Scales of validation.
        test_scales: Scales of testing.
        border: Pixels at all borders that metrics leave out: none, the scale rounded up, or 6 more.
        channels: 3 for colours, 1 for grey images.
        batch_size: Instances per device and training step.
        num_workers: Number of worker processes; 0 loads in the main process.

    Raises:
        ValueError: If an argument is out of range, or ``images`` has no images at their own resolution.
    """

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
        channels: Literal[1, 3] = 3,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=1, num_workers=num_workers)
        _check_sizes(size, scales, num_queries, repeat, val_scales, test_scales)
        if not isinstance(images, NativeImages):
            raise ValueError(
                f"images is {type(images).__name__}, which does not offer images at their own resolution: pass a data module "
                "of images, such as datamodules.ImageFolder."
            )
        self.images = images
        self.size, self.scales = size, (float(scales[0]), float(scales[1]))
        self.num_queries, self.repeat, self.crop = num_queries, repeat, crop
        self.degradation = degradation or Bicubic()
        self.val_scales, self.test_scales = tuple(map(float, val_scales)), tuple(map(float, test_scales))
        self.border, self.channels = border, channels
        draw = PairDraw(num_queries, symmetries)
        cut = PairCrop(size, self.scales, self.degradation, augment)
        self.augmentation = cast(
            Augmentation, Chain(cast(Augmentation, cut), cast(Augmentation, draw)) if crop else draw
        )
        self.modality = SuperResolvedImages()

    @property
    def spec(self) -> DataSpec:
        """Images of ``size`` pixels that a model observes, and coordinates of positions with sizes."""
        shape = (self.channels, self.size, self.size)
        return DataSpec(self.query_domain, self.channels, shape, self.modality, self.num_instances, scales=self.scales)

    def prepare_data(self) -> None:
        """Download and decode the images, in one process per machine."""
        self.images.trainer = self.trainer
        self.images.prepare_data()

    def setup(self, stage: str) -> None:
        """Create the data sets of a stage.

        Raises:
            ValueError: If images are missing, or too small for the crops.
        """
        self.images.trainer = self.trainer
        for split in splits_of(stage):
            images = cast(NativeImages, self.images).native_images(split)
            if split == "train":
                self.train_set = self._training_pairs(images)
            else:
                setattr(self, f"{split}_set", self._fixed_pairs(images, split))
        self.skipped, self.notes = self.images.skipped, self.images.notes

    def _training_pairs(self, images: Dataset[Signal]) -> Dataset[Any]:
        """Return the items of the training split."""
        if self.crop:
            return Repeated(images, self.repeat, self.channels)
        return GradedPairs(images, self.size, self.scales, self.degradation, self.channels)

    def _fixed_pairs(self, images: Dataset[Signal], split: Split) -> FixedPairs:
        """Return the items of an evaluation split."""
        scales = self.val_scales if split == "val" else self.test_scales
        native = cast(NativeImages, self.images)
        found = {scale: native.low_resolution_images(split, scale) for scale in scales}
        published = {scale: small for scale, small in found.items() if small is not None}
        return FixedPairs(images, scales, self.degradation, published, self.channels)

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
        if self.border == "none":
            return None
        [scale] = set(torch.as_tensor(batch.scale).flatten().tolist())
        border = math.ceil(scale) + (6 if self.border == "scale+6" else 0)
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
            f"{round(size * scales[0]) ** 2} pixels: lower num_queries to at most these."
        )
    for name, values in (("val_scales", val_scales), ("test_scales", test_scales)):
        if not values or not all(1 <= scale < math.inf for scale in values):
            raise ValueError(f"{name} is {list(values)}: give at least one scale, all at least 1.")
