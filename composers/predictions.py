"""What a prediction writes for people: the reconstruction, its error, the instance code, and a table."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from composers.base import Composer, Evaluation
from composers.callbacks import gathered, relative_path
from composers.codes import InstanceCode, fingerprint
from composers.metrics import instance_mse, psnr_of_mse
from composers.pictures import Size, error_picture, picture, picture_size, render, save_picture
from composers.refinement import Latents
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Piece
from datamodules.tiles import whole

_LARGEST_ERROR = 4096  # pixels of the longer side of an error picture
_SHOWN = 20  # rows of the printed table
_HEADINGS = {"psnr predicted": "predicted", "psnr refined": "refined", "psnr": "at own size"}

TABLE = "predictions.csv"
Row = dict[str, str]


class PicturePredictions(Callback):
    """Writes what a model makes of every picture: its reconstruction, five times its error, and its instance code.

    For a picture called NAME these are NAME.png, NAME.error.png, NAME.safetensors and a row of predictions.csv: the PSNR of
    what was predicted and refined, on the pixels that the model sees, and of NAME.png at the picture's own size.

    Args:
        folder: Where to; made if it is missing. One that holds other things than earlier predictions is refused.
        size: Pixels of the longer side of the reconstruction, or rows and columns.
        scale: Pixels of the reconstruction per pixel of the picture, along each side; 1 if neither is given.
        max_memory: MB that decoding may take above the model and the picture.

    Raises:
        ValueError: If both ``size`` and ``scale`` are given, or a number is not positive.
    """

    def __init__(
        self, folder: str = "predictions", size: Size = None, scale: float | None = None, max_memory: float = 500.0
    ) -> None:
        picture_size((1, 1), size, scale)
        self.folder = Path(folder)
        self.size = size
        self.scale = scale
        self.max_memory = max_memory
        self.rows: dict[str, Row] = {}
        self._model = ""
        self._parts: list[_Part] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder, and note which model this is.

        Raises:
            ValueError: If the folder is a file, or holds other things than earlier predictions.
        """
        assert isinstance(pl_module, Composer)
        self.rows, self._parts, self._model = {}, [], fingerprint(pl_module)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{self.folder} is a file, or lies below one: choose a folder with --output.") from error
        if any(self.folder.iterdir()) and not (self.folder / TABLE).exists():  # on all processes, so that none waits
            raise ValueError(f"The folder {self.folder} holds other things: choose a new one with --output.")
        (self.folder / TABLE).touch()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the tiles of a picture, and write it when the next one begins."""
        for part in _parts(outputs, batch):
            if self._parts and self._parts[0].piece.name != part.piece.name:
                self._write(trainer, pl_module)
            self._parts.append(part)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last picture and the table of all, and say what was skipped."""
        if self._parts:
            self._write(trainer, pl_module)
        rows = gathered(self.rows)
        if not trainer.is_global_zero:
            return
        with (self.folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["name", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"name": name, **row} for name, row in rows.items())
        console = Console(soft_wrap=True)
        console.print(predictions_table(rows))
        console.print(f"Pictures, errors, codes and {TABLE}: {relative_path(self.folder)}", markup=False)
        skipped = _data(trainer).skipped
        if skipped:
            console.print(f"Skipped {len(skipped)}:", *skipped.values(), sep="\n  ", markup=False, highlight=False)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files of one picture, whose tiles are all there."""
        assert isinstance(pl_module, Composer)
        parts, self._parts = self._parts, []
        name, shape, _ = parts[0].piece
        code = self._code(parts)
        code.save(self.folder / f"{name}.safetensors")
        seen = render(pl_module, code, self.size, self.scale, self.max_memory)
        save_picture(seen, self.folder / f"{name}.png")
        true = _original(trainer, parts[0])
        if seen.size != true.size:
            seen = render(pl_module, code, (true.height, true.width), max_memory=self.max_memory)
        enlarged, psnr = error_picture(seen, true)
        save_picture(enlarged, self.folder / f"{name}.error.png")
        size = {"rows": str(shape[0]), "columns": str(shape[1]), "tiles": str(len(parts))}
        notes = _data(trainer).notes.get(name, "")
        self.rows[name] = size | code.facts | {"psnr": f"{psnr:.3f}", "notes": notes}

    def _code(self, parts: Sequence[_Part]) -> InstanceCode:
        """Return the code of a picture of its tiles."""
        name, shape, _ = parts[0].piece
        latents = {key: torch.stack([part.latents[key] for part in parts]) for key in parts[0].latents}
        first, last = (_psnr_of_mean([part.errors[end] for part in parts]) for end in (0, -1))
        facts = {
            "refinement steps": str(parts[0].steps),
            "psnr predicted": f"{first:.3f}",
            "psnr refined": f"{last:.3f}",
        }
        return InstanceCode(latents, [part.piece.box for part in parts], shape, self._model, name, facts)


class _Part(NamedTuple):
    """One tile: where it lies, its code, its mean squared error after 0 and all steps, and the picture if it is all of it."""

    piece: Piece
    latents: Latents
    steps: int
    errors: list[float]
    true: Image.Image | None


def _parts(evaluation: Evaluation, batch: CoordinateBatch) -> Iterator[_Part]:
    """Yield the tiles of a batch."""
    assert batch.shape is not None
    assert batch.query.values is not None
    last = max(evaluation["latents"])
    errors = [instance_mse(evaluation["values"][step], batch.query).tolist() for step in (0, last)]
    for index, name in enumerate(batch.names):
        piece = batch.pieces[index] if batch.pieces else Piece(name, batch.shape, whole(batch.shape))
        latents = {key: latent[index].cpu() for key, latent in evaluation["latents"][last].items()}
        true = None if batch.pieces else picture(batch.query.values[index], batch.shape)
        yield _Part(piece, latents, last, [error[index] for error in errors], true)


def _psnr_of_mean(errors: Sequence[float]) -> float:
    """Return the PSNR in dB of the mean of squared errors."""
    return psnr_of_mse(torch.tensor(errors).mean()).item()


def _data(trainer: Trainer) -> CoordinateDataModule:
    """Return the data module."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, CoordinateDataModule)
    return data


def _original(trainer: Trainer, part: _Part) -> Image.Image:
    """Return the picture itself, made smaller if it is very large."""
    if part.true is not None:
        return part.true
    pixels = _data(trainer).original(part.piece.name)
    assert pixels is not None, "a data module of pieces knows what they are pieces of"
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((_LARGEST_ERROR, _LARGEST_ERROR))
    return image


def predictions_table(rows: dict[str, Row]) -> Table:
    """Return the first pictures and the mean of all as a table."""
    table = Table(title=f"PSNR in dB of {len(rows)} picture(s)", title_justify="left")
    for heading in ("picture", "pixels", "tiles", *_HEADINGS.values(), "notes"):
        table.add_column(heading, justify="left" if heading in ("picture", "notes") else "right", overflow="fold")
    for name, row in list(rows.items())[:_SHOWN]:
        numbers = [f"{float(row[key]):.2f}" for key in _HEADINGS]
        table.add_row(escape(name), f"{row['rows']} x {row['columns']}", row["tiles"], *numbers, row["notes"])
    if len(rows) > _SHOWN:
        table.add_row(f"and {len(rows) - _SHOWN} more", "", "", "", "", "", "")
    if len(rows) > 1:
        means = [sum(float(row[key]) for row in rows.values()) / len(rows) for key in _HEADINGS]
        table.add_row("mean", "", "", *(f"{mean:.2f}" for mean in means), "")
    return table
