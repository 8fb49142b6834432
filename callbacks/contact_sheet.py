"""The contact sheet: held-out pictures beside what the model makes of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from rich.console import Console
from torch import Tensor

from callbacks.folders import output_folder, relative_path
from composers.base import Composer
from composers.checkpoint import load
from composers.evaluation import Evaluation
from composers.inference.refinement import Latents
from composers.metrics import instance_mse, psnr_of_mse
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.domain import Grid
from modalities.drawing import sheet
from modalities.images import input_size, picture

_USUAL = 256  # pixels of the longer side of a decoded picture


class ContactSheet(Callback):
    """Writes after a test a PNG: pictures, their prediction, their refinement, and the refinement decoded at a larger scale.

    Args:
        filename: Of the PNG, in the folder of the run.
        num_pictures: Rows, the first pictures of the test set.
        scale: Pixels of the decoded picture per pixel of the original, along each axis; if None, as many as make 256 of the
            longer side, or a few more.
        beside: Another model, a checkpoint or the name of weights that come along, whose pictures stand beside; or None.
            If it takes pictures of another size, the sheet is left out.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        filename: str = "contact_sheet.png",
        num_pictures: int = 8,
        scale: int | None = None,
        beside: str | None = None,
    ) -> None:
        if num_pictures < 1 or (scale is not None and scale < 1):
            raise ValueError(f"num_pictures is {num_pictures}, scale {scale}; both must be at least 1.")
        self.filename = filename
        self.num_pictures = num_pictures
        self.scale = scale
        self.beside = beside
        self.other: Composer | None = None
        self.wanted = num_pictures
        self.rows: list[list[tuple[str, Image.Image]]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier rows, and load the model that stands beside."""
        self.rows, self.wanted = [], self.num_pictures
        if self.beside is None or not trainer.is_global_zero:
            return
        self.other = load(self.beside, pl_module.device)
        shape = getattr(getattr(trainer, "datamodule", None), "signal_shape", None)
        if shape != (3, size := input_size(self.other), size):
            Console(soft_wrap=True).print(
                f"No {self.filename}: {self.beside} takes pictures of {size} pixels, not {shape}."
            )
            self.wanted = 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw rows until there are enough."""
        wanted = self.wanted - len(self.rows)
        if wanted > 0 and trainer.is_global_zero and isinstance(pl_module, Composer):
            self.rows += self._draw(pl_module, outputs, batch, min(wanted, len(batch.names)))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sheet."""
        folder = output_folder(trainer)
        if folder is not None and self.rows and trainer.is_global_zero:
            path = folder / self.filename
            sheet(self.rows).save(path)
            Console(soft_wrap=True).print(f"Contact sheet: {relative_path(path)}")

    def _draw(
        self, composer: Composer, evaluation: Evaluation, batch: CoordinateBatch, number: int
    ) -> list[list[tuple[str, Image.Image]]]:
        """Return the labelled pictures of the first instances of a batch."""
        assert batch.shape is not None, "test batches hold whole pictures"
        assert batch.query.values is not None
        true = Samples(batch.query.coords, batch.query.values[:number])
        scale = self._scale(batch.shape)
        size = (batch.shape[1] * scale, batch.shape[0] * scale)
        originals = [picture(values, batch.shape) for values in batch.query.values[:number]]
        columns = [list(zip(batch.names, originals, strict=False))]
        columns += self._columns(composer, evaluation["latents"], true, batch.shape)
        if self.other is not None:
            assert isinstance(batch.observation.signal, Tensor)
            with torch.no_grad():
                predicted = self.other.encode(Observation(batch.observation.signal[:number], true))
            curve = self.other.refine(predicted, true)
            columns += self._columns(self.other, curve, true, batch.shape, f"{self.beside}: ")
        return [[(label, image.resize(size, 0)) for label, image in row] for row in zip(*columns, strict=True)]

    def _columns(
        self, composer: Composer, curve: dict[int, Latents], true: Samples, shape: tuple[int, ...], prefix: str = ""
    ) -> list[list[tuple[str, Image.Image]]]:
        """Return what a model predicts, refines and decodes at the larger scale, labelled, for all instances of each."""
        assert true.values is not None
        scale = self._scale(shape)
        height, width = (extent * scale for extent in shape)
        columns = []
        for step in sorted({0, max(curve)}):
            latents = {name: latent[: len(true.values)] for name, latent in curve[step].items()}
            with torch.no_grad():
                modulations = composer.compose(latents)
                values = composer.render(modulations, true.coords)
                decoded = composer.render(modulations, Grid.unit(2).coords((height, width), device=composer.device))
            numbers = psnr_of_mse(instance_mse(values, true)).tolist()
            made = prefix + (f"{step} steps" if step else "predicted")
            columns.append(
                [(f"{made} {psnr:.1f} dB", picture(one, shape)) for psnr, one in zip(numbers, values, strict=True)]
            )
        return [*columns, [(f"{prefix}decoded at {scale}x", picture(one, (height, width))) for one in decoded]]

    def _scale(self, shape: tuple[int, ...]) -> int:
        """Return by how much pictures of a shape are enlarged."""
        return self.scale or math.ceil(_USUAL / max(shape))
