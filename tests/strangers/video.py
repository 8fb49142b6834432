"""A data set of videos with its modality: coloured waves that travel, as signals with three axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from composers.codes import decode
from composers.metrics import PSNR
from datamodules import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.domain import Grid
from datamodules.loading import InMemory
from datamodules.spec import DataSpec
from modalities import DrawnModality, Prediction, Row, Writer, to_image


@dataclass(frozen=True)
class VideoWriter(Writer):
    """Write the reconstruction of a video as NAME.gif, and its instance code as NAME.safetensors."""

    def write(self, reconstruction: Prediction, path: Path) -> Row:
        volume = torch.cat(list(decode(reconstruction.composer, reconstruction.code)))  # (T, H, W, 3)
        first, *others = (to_image(frame.flatten(0, 1), frame.shape[:2]) for frame in volume)
        first.save(f"{path}.gif", save_all=True, append_images=others)
        return super().write(reconstruction, path)


class Videos(DrawnModality):
    """RGB videos with values in [0, 1]; figures show the middle frame."""

    name, noun, writer = "videos", "video", VideoWriter

    def metrics(self) -> dict[str, PSNR]:
        return {"psnr": PSNR()}

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        return to_image(values.unflatten(0, tuple(shape))[shape[0] // 2].flatten(0, 1), shape[1:])


class Waves(CoordinateDataModule):
    """Waves of random direction, speed and colour: 4 frames of 8 x 8 pixels."""

    spec = DataSpec(Grid.unit(3), 3, (3, 4, 8, 8), Videos())

    def setup(self, stage: str) -> None:
        waves = torch.randn(12, 3, 3, generator=torch.Generator().manual_seed(0))  # by video, axis and channel
        videos = torch.sin(3 * self.domain.coords((4, 8, 8)) @ waves).mT.reshape(12, 3, 4, 8, 8) / 2 + 0.5
        items = [Signal(video, f"wave-{index}") for index, video in enumerate(videos)]
        self.train_set, self.val_set, self.test_set = InMemory(items[:8]), InMemory(items[8:]), InMemory(items[8:])
