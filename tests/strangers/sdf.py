"""A learner of signed distances with a code per shape (Park et al., DeepSDF, CVPR 2019) and a modality of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from composers.losses import Loss
from composers.metrics import InstanceMetric
from composers.rendering import Reconstruction
from datamodules import CoordinateDataModule
from datamodules.batch import Samples, Signal
from datamodules.domain import Volume
from datamodules.loading import InMemory
from datamodules.spec import DataSpec, Headline
from modalities import DrawnModality, Writer, to_image


class ClampedEikonal(Loss):
    """Absolute error of distances clamped to 0.2, and how far the slope of the field is from 1 (Gropp et al., ICML 2020)."""

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        errors = reconstruction.values.clamp(-0.2, 0.2) - target.measured.clamp(-0.2, 0.2)
        slopes: Tensor = reconstruction.gradients(target.coords).norm(dim=-1)  # (B, N)
        return errors.abs().mean((1, 2)) + 0.1 * (slopes - 1).square().mean(1)


class IoU(InstanceMetric):
    """Intersection over union of the insides."""

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        first, second = reconstruction.values.flatten(1) < 0, target.measured.flatten(1) < 0
        return (first & second).sum(1) / (first | second).sum(1).clamp(min=1)


class Solids(DrawnModality):
    """Signed distances to a surface; figures show the inside in the middle slice."""

    name, noun, headline, writer = "solids", "solid", Headline("iou", "max", ""), Writer

    def metrics(self) -> dict[str, IoU]:
        return {"iou": IoU()}

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        return to_image(values.unflatten(0, tuple(shape))[shape[0] // 2].flatten(0, 1) < 0, shape[1:])


class Spheres(CoordinateDataModule):
    """Distances to the surfaces of spheres, on a grid in a cube."""

    spec = DataSpec(Volume(), 1, (1, 12, 12, 12), Solids(), num_instances=8)

    def setup(self, stage: str) -> None:
        centres = torch.rand(12, 1, 3, generator=torch.Generator().manual_seed(0)) - 0.5
        distances = (self.domain.coords((12, 12, 12)) - centres).norm(dim=-1).view(-1, 1, 12, 12, 12) - 0.5
        items = [Signal(grid, f"sphere-{index}") for index, grid in enumerate(distances)]
        self.train_set, self.val_set, self.test_set = InMemory(items[:8]), InMemory(items[8:]), InMemory(items[8:])
