"""What a prediction writes of every signal: files that its modality knows, its instance code, and a table of all."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.folders import relative_path
from callbacks.results import gathered
from composers.base import Composer
from composers.codes import InstanceCode, fingerprint, steps_taken
from composers.evaluation import Evaluation
from composers.latents import Latents, Layout
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Instance, Piece, instance_of
from datamodules.domain import Domain
from datamodules.storage.text import printable
from datamodules.tiles import whole
from modalities.writing import Prediction, Row, Writer

_SHOWN = 20  # rows of the printed table

TABLE = "predictions.csv"


class Tile(NamedTuple):
    """One tile of a signal, or all of it.

    Attributes:
        piece: Where it lies.
        latents: Its code, ``(...)`` by name.
        steps: Refinement steps behind the code.
        errors: After no and after all steps, as `Writer.errors` has them; NaN where nothing was measured.
        instance: The signal and its reconstructions, if this is all of it and the batch holds it whole.
        layout: Layout of the latents.
    """

    piece: Piece
    latents: Latents
    steps: int
    errors: list[float]
    instance: Instance | None
    layout: Layout


class PredictionWriter(Callback):
    """Collects the tiles of every signal, and writes what a model makes of it when all are there; at the end, a table.

    What is written is the modality's of the data: see `modalities.images.ImageWriter`, `modalities.audio.AudioWriter` and
    `modalities.views.ViewWriter`. Memory holds one signal at a time.

    Args:
        folder: Where to; made if it is missing. One that holds other things than earlier predictions is refused.
        options: Fields of that writer, which ``cli.py predict`` has as options.
    """

    def __init__(self, folder: str = "predictions", options: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.options = dict(options or {})
        self.rows: dict[str, Row] = {}
        self._model = ""
        self._tiles: list[Tile] = []
        self._writer: Writer | None = None

    @property
    def writer(self) -> Writer:
        """The writer of the modality of the data, from the start of prediction on."""
        assert self._writer is not None, "prediction has begun"
        return self._writer

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder, and refuse what cannot be written before the work.

        Raises:
            ValueError: If the folder is a file or holds other things than earlier predictions, the data state no modality that
                is written, or an option is unknown, out of range or does not fit the model.
        """
        assert isinstance(pl_module, Composer)
        self.rows, self._tiles, self._model = {}, [], fingerprint(pl_module)
        self._writer = _writer(_data(trainer), self.options)
        messages = self._writer.check(pl_module)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{self.folder} is a file, or lies below one: choose a folder with --output.") from error
        if any(self.folder.iterdir()) and not (self.folder / TABLE).exists():  # on all processes, so that none waits
            raise ValueError(f"The folder {self.folder} holds other things: choose a new one with --output.")
        (self.folder / TABLE).touch()
        if trainer.is_global_zero:
            for message in messages:
                Console(soft_wrap=True).print(message)

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
        for tile in _tiles(outputs, batch, self.writer, _data(trainer).spec.domain):
            if self._tiles and self._tiles[0].piece.name != tile.piece.name:
                self._write(trainer, pl_module)
            self._tiles.append(tile)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last signal and the table of all, and say what was skipped."""
        if self._tiles:
            self._write(trainer, pl_module)
        self._write_table(trainer)

    def write_partial(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what there is of an unfinished prediction, without a signal whose tiles are not all there."""
        if self._tiles and self._tiles[0].piece.box == whole(self._tiles[0].piece.shape):
            self._write(trainer, pl_module)
        self._tiles = []
        self._write_table(trainer)

    def table(self, rows: Mapping[str, Row], noun: str) -> Table:
        """Return the first signals and the mean of all as a table.

        Args:
            rows: Of all signals.
            noun: What one is called.
        """
        writer = self.writer
        table = Table(title=f"{writer.measure} of {len(rows)} {noun}(s)", title_justify="left")
        for heading in (noun, writer.size_heading, writer.counted, *writer.numbers.values(), "notes"):
            narrowest = max(map(len, heading.split()))
            side: Literal["left", "right"] = "left" if heading in (noun, "notes") else "right"
            table.add_column(heading, justify=side, overflow="fold", min_width=narrowest)
        for name, row in list(rows.items())[:_SHOWN]:
            numbers = [_figure([row], key) for key in writer.numbers]
            table.add_row(escape(name), writer.size_of(row), row[writer.counted], *numbers, row["notes"])
        if len(rows) > _SHOWN:
            table.add_row(f"and {len(rows) - _SHOWN} more", "", "", *("" for _ in writer.numbers), "")
        if len(rows) > 1:
            table.add_row("mean", "", "", *(_figure(rows.values(), key) for key in writer.numbers), "")
        return table

    def _write_table(self, trainer: Trainer) -> None:
        """Write and print the table of all processes; to be called on all of them."""
        rows, data = gathered(self.rows), _data(trainer)
        if not trainer.is_global_zero or not rows:
            return
        with (self.folder / TABLE).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, ["name", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"name": name, **row} for name, row in rows.items())
        console = Console(soft_wrap=True)
        console.print(self.table(rows, data.spec.modality.noun))
        console.print(f"{self.writer.results} and {TABLE}: {relative_path(self.folder)}", markup=False)
        if data.skipped:
            console.print(
                f"Skipped {len(data.skipped)}:", *data.skipped.values(), sep="\n  ", markup=False, highlight=False
            )

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files of one signal, whose tiles are all there."""
        assert isinstance(pl_module, Composer)
        tiles, self._tiles = self._tiles, []
        data, name = _data(trainer), tiles[0].piece.name
        code = self._code(tiles, pl_module, data)
        original = None if tiles[0].instance is not None else data.original(name)
        reconstruction = Prediction(pl_module, code, tiles[0].instance, original, data.source_of(name))
        row = self.writer.write(reconstruction, self.folder / name)
        self.rows[name] = row | {"notes": printable(data.notes.get(name, ""))}

    def _code(self, tiles: Sequence[Tile], composer: Composer, data: CoordinateDataModule) -> InstanceCode:
        """Return the code of a signal of its tiles."""
        name, shape, _ = tiles[0].piece
        latents = {key: torch.stack([tile.latents[key] for tile in tiles]) for key in tiles[0].latents}
        first, last = (self.writer.score([tile.errors[end] for tile in tiles]) for end in (0, -1))
        facts = steps_taken(composer, tiles[0].steps)
        metric = data.spec.modality.headline.metric
        facts |= {f"{metric} predicted": f"{first:.3f}", f"{metric} refined": f"{last:.3f}"}
        boxes = [tile.piece.box for tile in tiles]
        return InstanceCode(
            latents, boxes, shape, self._model, name, facts, domain=data.spec.domain, layout=tiles[0].layout
        )


def _writer(data: CoordinateDataModule, options: Mapping[str, Any]) -> Writer:
    """Return the writer of the modality of the data, or refuse options that it does not have."""
    kind = data.spec.modality.writer
    if kind is None:
        raise ValueError(
            f"{type(data).__name__} states no modality whose predictions are written: set its class attribute modality, for "
            "example to modalities.Images()."
        )
    if unknown := sorted(set(options) - set(kind.__dataclass_fields__)):
        raise ValueError(
            f"options of PredictionWriter has {', '.join(unknown)}; {data.spec.modality.name} have "
            f"{', '.join(kind.__dataclass_fields__)}."
        )
    writer: Writer = kind(**options)
    return writer


def _tiles(evaluation: Evaluation, batch: CoordinateBatch, writer: Writer, domain: Domain) -> Iterator[Tile]:
    """Yield the tiles of a batch."""
    assert batch.shape is not None
    last = max(evaluation["latents"])
    values = {step: evaluation["values"][step] for step in (0, last)}
    errors = [writer.errors(values[step], batch.query) for step in (0, last)]
    for index, name in enumerate(batch.names):
        piece = batch.pieces[index] if batch.pieces else Piece(name, _measured(batch, index), whole(batch.shape))
        latents = {key: latent[index].cpu() for key, latent in evaluation["latents"][last].items()}
        instance = None if batch.pieces else instance_of(batch, index, domain, values)
        yield Tile(piece, latents, last, [error[index] for error in errors], instance, evaluation["layout"])


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


def _data(trainer: Trainer) -> CoordinateDataModule:
    """Return the data module."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, CoordinateDataModule)
    return data
