"""What a prediction writes for people: the reconstruction, its error, the instance code, and a table."""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from callbacks.folders import relative_path
from callbacks.results import gathered
from composers.base import Composer
from composers.codes import InstanceCode, fingerprint, steps_taken
from composers.evaluation import Evaluation
from composers.inference.refinement import Latents
from composers.metrics import instance_mse, psnr_of_mse
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Piece, Samples, Views
from datamodules.domain import Domain
from datamodules.storage.text import printable
from datamodules.tiles import whole
from modalities.images import Size, error_picture, picture, picture_size, render, save_picture
from modalities.views import Scene, scene_of

_LARGEST_ERROR = 4096  # pixels of the longer side of an error picture
_SHOWN = 20  # rows of the printed table

TABLE = "predictions.csv"
Row = dict[str, str]


class Part(NamedTuple):
    """One tile of a signal, or all of it.

    Attributes:
        piece: Where it lies.
        latents: Its code, ``(...)`` by name.
        steps: Refinement steps behind the code.
        errors: Its mean squared error after no and after all steps; NaN where nothing was measured.
        values: The signal ``(C, *shape)``, if this is all of it and the data module holds it whole.
        scene: The views of a scene, and what the model makes of them; None for all other signals.
    """

    piece: Piece
    latents: Latents
    steps: int
    errors: list[float]
    values: Tensor | None
    scene: Scene | None = None


class Predictions(Callback, ABC):
    """Collects the tiles of every signal, and writes what a model makes of it when all are there; at the end, a table.

    A subclass says what is written of a signal (`write`), and how the printed table says where and of what (`described`),
    how many of what a signal has (``counted``), and what was measured (``numbers``; NaN where there was nothing to measure).

    Args:
        folder: Where to; made if it is missing. One that holds other things than earlier predictions is refused.
    """

    axes: ClassVar[int]
    results: ClassVar[str]
    headings: ClassVar[tuple[str, ...]]
    counted: ClassVar[str] = "tiles"
    numbers: ClassVar[dict[str, str]]

    def __init__(self, folder: str = "predictions") -> None:
        self.folder = Path(folder)
        self.rows: dict[str, Row] = {}
        self._model = ""
        self._parts: list[Part] = []

    @abstractmethod
    def write(self, data: CoordinateDataModule, composer: Composer, code: InstanceCode, part: Part) -> Row:
        """Write the files of one signal.

        Args:
            data: Where it comes from.
            composer: The model.
            code: The code of all its tiles, with the facts of refinement and PSNR.
            part: Its first tile.

        Returns:
            Its row of the table, the same columns for all.
        """

    @abstractmethod
    def described(self, row: Row) -> tuple[str, ...]:
        """Return what stands between the name and the figures of a row of the printed table: one cell per heading."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder, and note which model this is.

        Raises:
            ValueError: If the folder is a file or holds other things than earlier predictions, or the data are of another
                kind than this callback writes.
        """
        assert isinstance(pl_module, Composer)
        self.rows, self._parts, self._model = {}, [], fingerprint(pl_module)
        if (found := _data(trainer).coord_dim) != self.axes:
            raise ValueError(
                f"{type(self).__name__} writes signals with {self.axes} axes, these have {found}: put the callback of their "
                "kind into trainer.callbacks, callbacks.predictions.PicturePredictions for pictures, "
                "callbacks.audio_predictions.SoundPredictions for sound, callbacks.view_predictions.ScenePredictions for "
                "scenes."
            )
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
        """Collect the tiles of a signal, and write it when the next one begins."""
        for part in _parts(outputs, batch):
            if self._parts and self._parts[0].piece.name != part.piece.name:
                self._write(trainer, pl_module)
            self._parts.append(part)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last signal and the table of all, and say what was skipped."""
        if self._parts:
            self._write(trainer, pl_module)
        self._write_table(trainer)

    def write_partial(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what there is of an unfinished prediction, without a signal whose tiles are not all there."""
        if self._parts and self._parts[0].piece.box == whole(self._parts[0].piece.shape):
            self._write(trainer, pl_module)
        self._parts = []
        self._write_table(trainer)

    def _write_table(self, trainer: Trainer) -> None:
        """Write and print the table of all processes; to be called on all of them."""
        rows = gathered(self.rows)
        if not trainer.is_global_zero or not rows:
            return
        with (self.folder / TABLE).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, ["name", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"name": name, **row} for name, row in rows.items())
        console = Console(soft_wrap=True)
        console.print(self.table(rows))
        console.print(f"{self.results} and {TABLE}: {relative_path(self.folder)}", markup=False)
        skipped = _data(trainer).skipped
        if skipped:
            console.print(f"Skipped {len(skipped)}:", *skipped.values(), sep="\n  ", markup=False, highlight=False)

    def table(self, rows: dict[str, Row]) -> Table:
        """Return the first signals and the mean of all as a table."""
        kind = self.headings[0]
        table = Table(title=f"PSNR in dB of {len(rows)} {kind}(s)", title_justify="left")
        for heading in (*self.headings, self.counted, *self.numbers.values(), "notes"):
            narrowest = max(map(len, heading.split()))
            side: Literal["left", "right"] = "left" if heading in (kind, "notes") else "right"
            table.add_column(heading, justify=side, overflow="fold", min_width=narrowest)
        for name, row in list(rows.items())[:_SHOWN]:
            numbers = [_figure([row], key) for key in self.numbers]
            table.add_row(escape(name), *self.described(row), row[self.counted], *numbers, row["notes"])
        empty = [""] * len(self.headings)
        if len(rows) > _SHOWN:
            table.add_row(f"and {len(rows) - _SHOWN} more", *empty, *("" for _ in self.numbers), "")
        if len(rows) > 1:
            table.add_row("mean", *empty, *(_figure(rows.values(), key) for key in self.numbers), "")
        return table

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files of one signal, whose tiles are all there."""
        assert isinstance(pl_module, Composer)
        parts, self._parts = self._parts, []
        data = _data(trainer)
        row = self.write(data, pl_module, self._code(parts, pl_module, data.spec.domain), parts[0])
        name = parts[0].piece.name
        self.rows[name] = row | {"notes": printable(data.notes.get(name, ""))}

    def _code(self, parts: Sequence[Part], composer: Composer, domain: Domain) -> InstanceCode:
        """Return the code of a signal of its tiles."""
        name, shape, _ = parts[0].piece
        latents = {key: torch.stack([part.latents[key] for part in parts]) for key in parts[0].latents}
        first, last = (_psnr_of_mean([part.errors[end] for part in parts]) for end in (0, -1))
        facts = steps_taken(composer, parts[0].steps)
        facts |= {"psnr predicted": f"{first:.3f}", "psnr refined": f"{last:.3f}"}
        boxes = [part.piece.box for part in parts]
        return InstanceCode(latents, boxes, shape, self._model, name, facts, domain=domain)


class PicturePredictions(Predictions):
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

    axes = 2
    results = "Pictures, errors, codes"
    headings = ("picture", "pixels")
    numbers: ClassVar = {"psnr predicted": "predicted", "psnr refined": "refined", "psnr": "at own size"}

    def __init__(
        self, folder: str = "predictions", size: Size = None, scale: float | None = None, max_memory: float = 500.0
    ) -> None:
        super().__init__(folder)
        picture_size((1, 1), size, scale)
        self.size = size
        self.scale = scale
        self.max_memory = max_memory

    def write(self, data: CoordinateDataModule, composer: Composer, code: InstanceCode, part: Part) -> Row:
        """Write the reconstruction, its error and the code of a picture."""
        code.save(self.folder / f"{code.name}.safetensors")
        seen = render(composer, code, self.size, self.scale, self.max_memory)
        save_picture(seen, self.folder / f"{code.name}.png")
        true = _original(data, part)
        if seen.size != true.size:
            seen = render(composer, code, (true.height, true.width), max_memory=self.max_memory)
        enlarged, psnr = error_picture(seen, true)
        save_picture(enlarged, self.folder / f"{code.name}.error.png")
        size = {"rows": str(code.shape[0]), "columns": str(code.shape[1]), "tiles": str(len(code.boxes))}
        return size | code.facts | {"psnr": f"{psnr:.3f}"}

    def described(self, row: Row) -> tuple[str, ...]:
        """Return the pixels of a picture."""
        return (f"{row['rows']} x {row['columns']}",)


def _parts(evaluation: Evaluation, batch: CoordinateBatch) -> Iterator[Part]:
    """Yield the tiles of a batch."""
    assert batch.shape is not None
    last = max(evaluation["latents"])
    errors = [_errors(evaluation["values"][step], batch.query) for step in (0, last)]
    made = {step: evaluation["values"][step] for step in (0, last)}
    for index, name in enumerate(batch.names):
        piece = batch.pieces[index] if batch.pieces else Piece(name, _measured(batch, index), whole(batch.shape))
        latents = {key: latent[index].cpu() for key, latent in evaluation["latents"][last].items()}
        scene = scene_of(batch, index, made) if isinstance(batch.observation.signal, Views) else None
        values = None if batch.pieces or scene else _values(batch, index)
        yield Part(piece, latents, last, [error[index] for error in errors], values, scene)


def _values(batch: CoordinateBatch, index: int) -> Tensor:
    """Return a signal ``(C, *shape)``."""
    assert batch.shape is not None
    assert batch.query.values is not None
    values: Tensor = batch.query.values[index].mT.unflatten(-1, batch.shape)
    return values


def _errors(values: Tensor, query: Samples) -> list[float]:
    """Return the mean squared error of every instance; NaN where nothing was measured."""
    return [math.nan] * len(values) if query.values is None else instance_mse(values, query).tolist()


def _figure(rows: Iterable[Row], key: str) -> str:
    """Return the mean of a number over the rows that have it, for people."""
    numbers = [number for row in rows if not math.isnan(number := float(row[key]))]
    return f"{sum(numbers) / len(numbers):.2f}" if numbers else "-"


def _measured(batch: CoordinateBatch, index: int) -> tuple[int, ...]:
    """Return the extents of a signal without the padding at the end of its last axis."""
    assert batch.shape is not None
    if batch.query.mask is None:
        return batch.shape
    lengths = batch.query.mask[index].view(batch.shape).sum(-1)
    return (*batch.shape[:-1], int(lengths.max()))


def _psnr_of_mean(errors: Sequence[float]) -> float:
    """Return the PSNR in dB of the mean of squared errors."""
    return psnr_of_mse(torch.tensor(errors).mean()).item()


def _data(trainer: Trainer) -> CoordinateDataModule:
    """Return the data module."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, CoordinateDataModule)
    return data


def _original(data: CoordinateDataModule, part: Part) -> Image.Image:
    """Return the picture itself, made smaller if it is very large."""
    if part.values is not None:
        return picture(part.values.flatten(1).mT, part.piece.shape)
    pixels = data.original(part.piece.name)
    assert pixels is not None, "a data module of pieces knows what they are pieces of"
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((_LARGEST_ERROR, _LARGEST_ERROR))
    return image
