"""The contact sheet: held-out pictures beside what the model makes of them."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from composers.base import Composer, Evaluation
from composers.callbacks import output_folder, relative_path
from composers.pictures import picture
from datamodules.batch import CoordinateBatch
from datamodules.coordinates import grid

_MARGIN = 8
_LABEL = 18


class ContactSheet(Callback):
    """Writes after a test a PNG: pictures, their prediction, their refinement, and the refinement decoded at a larger scale.

    Args:
        filename: Of the PNG, in the folder of the run.
        num_pictures: Rows, the first pictures of the test set.
        scale: Pixels of the decoded picture per pixel of the original, along each axis.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, filename: str = "contact_sheet.png", num_pictures: int = 8, scale: int = 4) -> None:
        if num_pictures < 1 or scale < 1:
            raise ValueError(f"num_pictures is {num_pictures}, scale {scale}; both must be at least 1.")
        self.filename = filename
        self.num_pictures = num_pictures
        self.scale = scale
        self.rows: list[list[tuple[str, Image.Image]]] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier rows."""
        self.rows = []

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
        wanted = self.num_pictures - len(self.rows)
        if wanted > 0 and trainer.is_global_zero and isinstance(pl_module, Composer):
            self.rows += self._draw(pl_module, outputs, batch, min(wanted, len(batch.names)))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sheet."""
        path = output_folder(trainer) / self.filename
        if self.rows and trainer.is_global_zero:
            sheet(self.rows).save(path)
            Console(soft_wrap=True).print(f"Contact sheet: {relative_path(path)}")

    def _draw(
        self, composer: Composer, evaluation: Evaluation, batch: CoordinateBatch, number: int
    ) -> list[list[tuple[str, Image.Image]]]:
        """Return the labelled pictures of the first instances of a batch."""
        assert batch.shape is not None, "test batches hold whole pictures"
        assert batch.query.values is not None
        height, width = (extent * self.scale for extent in batch.shape)
        last = max(evaluation["latents"])
        latents = {name: latent[:number] for name, latent in evaluation["latents"][last].items()}
        with torch.no_grad():
            large = composer.render(composer.compose(latents), grid((height, width), device=composer.device))
        rows = []
        for index in range(number):
            psnr = {step: metrics["psnr"][index].item() for step, metrics in evaluation["metrics"].items()}
            cells = [(batch.names[index], batch.query.values[index], batch.shape)]
            cells.append((f"predicted {psnr[0]:.1f} dB", evaluation["values"][0][index], batch.shape))
            if last:
                cells.append((f"{last} steps {psnr[last]:.1f} dB", evaluation["values"][last][index], batch.shape))
            cells.append((f"decoded at {self.scale}x", large[index], (height, width)))
            rows.append([(label, picture(values, shape).resize((width, height), 0)) for label, values, shape in cells])
        return rows


def sheet(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Return labelled pictures of one size in rows and columns."""
    width, height = rows[0][0][1].size
    step_x, step_y = width + _MARGIN, height + _MARGIN + _LABEL
    page = Image.new("RGB", (len(rows[0]) * step_x + _MARGIN, len(rows) * step_y + _MARGIN), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for row, cells in enumerate(rows):
        for column, (label, image) in enumerate(cells):
            x, y = _MARGIN + column * step_x, _MARGIN + row * step_y
            draw.text((x, y), label, fill="black", font=font)
            page.paste(image, (x, y + _LABEL))
    return page
