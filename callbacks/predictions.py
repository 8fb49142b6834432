"""Predictions: the files of every signal, its instance code, and a table of all signals."""

from __future__ import annotations

import csv
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from callbacks.folders import relative_path
from callbacks.results import gather_rows
from composers.base import Composer
from composers.codes import CodeTable, InstanceCode, check_bits, fingerprint, quantized, steps_taken
from composers.evaluation import Evaluation
from composers.latents import Latents, Layout
from composers.metrics import InstanceMetric
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Instance, Piece, Samples, instance_of, unpadded_shape
from datamodules.code_size import CodeSize, describe_sizes
from datamodules.spec import DataSpec
from datamodules.storage.files import naming, written_whole
from datamodules.storage.text import printable
from datamodules.tiles import whole
from modalities.writing import Prediction, Row, Writer

_MAX_ROWS = 20  # of the printed table

TABLE = "predictions.csv"


class Tile(NamedTuple):
    """A tile of a signal, or the complete signal.

    Attributes:
        piece: Position of the tile in the signal.
        latents: Latents of the tile by name, without a batch dimension.
        steps: Number of refinement steps of the latents.
        values: Headline metric before and after refinement; NaN if nothing was measured.
        instance: The signal and its reconstructions if the tile is the complete signal, else None.
        layout: Layout of the latents.
        kept: Values of the tile ``(N, C)``, for writers that assemble them, which need no latents; None for others.
        query: Samples of the tile as a batch of one on the CPU, and its shape, where the values of quantised latents are
            measured; None if latents are not quantised.
    """

    piece: Piece
    latents: Latents
    steps: int
    values: list[float]
    instance: Instance | None
    layout: Layout
    kept: Tensor | None = None
    query: tuple[Samples, tuple[int, ...]] | None = None


class PredictionWriter(Callback):
    """Write the reconstruction and the instance code of every signal, and a table of all signals at the end.

    The modality of the data determines the files: see `modalities.images.ImageWriter`, `modalities.audio.AudioWriter` and
    `modalities.views.ViewWriter`. A signal is written as soon as all its tiles are reconstructed, so that memory holds one
    signal at a time.

    With ``bits``, the codes are quantised and written compressed. The results and the metric after refinement (or of the
    prediction, if nothing is refined) are those of the quantised code.

    Args:
        folder: Output folder, created if it is missing. It must be empty or hold earlier predictions.
        options: Fields of the writer of the modality, which are options of ``cli.py predict``.
        bits: Bits per number of compressed codes, 16, 8, 6 or 4; None to write codes in float32.
        table: Path of a table of ``python -m tools.codes table``, learned for this model and these bits; None to store the
            scales of every code in its file.

    Raises:
        ValueError: If ``bits`` is not one of these, or ``table`` is set without it.
    """

    def __init__(
        self,
        folder: str = "predictions",
        options: dict[str, Any] | None = None,
        bits: int | None = None,
        table: str | None = None,
    ) -> None:
        if bits is not None:
            check_bits(bits)
        elif table is not None:
            raise ValueError(f"table is {table}, but nothing is quantised without bits: set both.")
        self.folder = Path(folder)
        self.options = dict(options or {})
        self.bits = bits
        self.table_path = table
        self._code_table: CodeTable | None = None
        self.rows: dict[str, Row] = {}
        self.skipped: dict[str, str] = {}  # reasons why codes cannot be quantised, by name of the signal
        self._sizes: dict[str, CodeSize] = {}
        self._model = ""
        self._tiles: list[Tile] = []
        self._assembled: Tensor | None = None  # values of a signal, for writers that assemble them
        self._writer: Writer | None = None

    @property
    def writer(self) -> Writer:
        """Writer of the modality of the data, available from the start of prediction."""
        assert self._writer is not None, "prediction has not started"
        return self._writer

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the writer and the folder, and check that the results can be written.

        Raises:
            ValueError: If the folder is a file or holds other files than earlier predictions, if the modality of the data
                has no writer, or if an option is unknown, out of range or does not fit the model; if the table is missing, or
                of another model or other bits, or the predictions have no codes to quantise.
        """
        assert isinstance(pl_module, Composer)
        self.rows, self._sizes, self._tiles, self._model = {}, {}, [], fingerprint(pl_module)
        self.skipped = {}
        self._assembled = None
        self._writer = _create_writer(_data(trainer), self.options)
        messages = self._writer.check(pl_module)
        self._code_table = self._read_table(trainer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{self.folder} or a parent of it is a file: choose a folder with `--output`.") from error
        if any(self.folder.iterdir()) and not (self.folder / TABLE).exists():  # on all processes, so that none waits
            raise ValueError(
                f"The folder {self.folder} is not empty and has no {TABLE} of earlier predictions: choose another folder "
                "with `--output`."
            )
        with naming(self.folder / TABLE):
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
        """Collect the tiles of a signal, and write the signal when the next one begins."""
        for tile in _tiles(outputs, batch, _data(trainer).spec, self.writer, measured_again=self.bits is not None):
            if self._tiles and self._tiles[0].piece.name != tile.piece.name:
                self._write_signal(trainer, pl_module)
            self._tiles.append(tile if tile.kept is None else self._placed(tile, tile.kept))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last signal and the table.

        Raises:
            ValueError: If no code could be quantised.
        """
        if self._tiles:
            self._write_signal(trainer, pl_module)
        self._write_table(trainer)
        if not gather_rows(self.rows) and (skipped := gather_rows(self.skipped)):
            raise ValueError(f"No prediction was written. {next(iter(skipped.values()))}")

    def write_partial(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of an interrupted prediction; leave out a signal with missing tiles."""
        if self._tiles and self._tiles[0].piece.box == whole(self._tiles[0].piece.shape):
            self._write_signal(trainer, pl_module)
        self._tiles, self._assembled = [], None
        self._write_table(trainer)

    def _placed(self, tile: Tile, values: Tensor) -> Tile:
        """Copy the values ``(N, C)`` of a tile into those of its signal, and return the tile without them."""
        if self._assembled is None:
            self._assembled = values.new_empty(*tile.piece.shape, values.shape[-1])
        region = self._assembled[tuple(slice(*span) for span in tile.piece.box)]
        region.copy_(values.view(region.shape))
        return tile._replace(kept=None)

    def _write_signal(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files of one signal from all its tiles."""
        assert isinstance(pl_module, Composer)
        tiles, self._tiles = self._tiles, []
        data, (name, shape, _) = _data(trainer), tiles[0].piece
        if (values := self._assembled) is not None:
            self._assembled = None
            row = self.writer.write_values(values, self.folder / name, data.source_of(name))
            row |= {self.writer.counted: str(len(tiles)), "notes": printable(data.notes.get(name, ""))}
            self.rows[name] = row
            return
        latents = {key: torch.stack([tile.latents[key] for tile in tiles]) for key in tiles[0].latents}
        boxes = [tile.piece.box for tile in tiles]
        spec, layout = data.spec, tiles[0].layout
        code = InstanceCode(
            latents,
            boxes,
            shape,
            self._model,
            name,
            domain=spec.domain,
            layout=layout,
            sample_rate=spec.sample_rate,
        )
        if self.bits is not None:
            try:
                code = quantized(code, pl_module, self.bits, self._code_table)
            except ValueError as error:
                self.skipped[name] = f"{printable(name)}: {error}"
                return
            tiles = [_measured_again(pl_module, code, index, tile, spec) for index, tile in enumerate(tiles)]
        metric, measure = _headline(spec)
        predicted, refined = (measure.of_tiles([tile.values[end] for tile in tiles]) for end in (0, -1))
        facts = steps_taken(pl_module, tiles[0].steps)
        facts |= {f"{metric} predicted": f"{predicted:.3f}", f"{metric} refined": f"{refined:.3f}"}
        size = spec.modality.size_of_code(code)
        code = replace(code, facts=facts if self.bits else facts | size.facts())
        original = None if tiles[0].instance is not None else data.original(name)
        prediction = Prediction(pl_module, code, tiles[0].instance, original, data.source_of(name))
        row = self.writer.write(prediction, self.folder / name)
        if self.bits is not None:
            size = size._replace(file_bytes=(self.folder / f"{name}{code.suffix}").stat().st_size)
            row |= size.facts() | {"bits": str(self.bits)}
        self._sizes[name] = size
        self.rows[name] = row | {"notes": printable(data.notes.get(name, ""))}

    def _read_table(self, trainer: Trainer) -> CodeTable | None:
        """Return the table of the codes, None without one; raise a `ValueError` if it does not fit."""
        if self.bits is None:
            return None
        if self.writer.assembles:
            raise ValueError(
                f"bits is {self.bits}, but predictions of these models have no codes to quantise: remove it."
            )
        if self.table_path is None:
            return None
        table = CodeTable.read(self.table_path)
        table.check(self._model, self.bits, f"The table {self.table_path}")
        return table

    def _write_table(self, trainer: Trainer) -> None:
        """Write and print the table of all processes, and list the skipped files; call it on all processes."""
        rows, sizes, data = gather_rows(self.rows), gather_rows(self._sizes), _data(trainer)
        skipped = data.skipped | gather_rows(self.skipped)
        if not trainer.is_global_zero or not rows:
            return
        with (
            written_whole(self.folder / TABLE) as part,
            part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.DictWriter(file, ["name", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"name": name, **row} for name, row in rows.items())
        console = Console(soft_wrap=True)
        console.print(self.table(rows, data.spec))
        if sizes:
            console.print(describe_sizes([*sizes.values()]), highlight=False)
        console.print(f"{self.writer.results} and {TABLE}: {relative_path(self.folder)}", markup=False)
        if skipped:
            console.print(f"Skipped {len(skipped)}:", *skipped.values(), sep="\n  ", markup=False, highlight=False)

    def table(self, rows: Mapping[str, Row], spec: DataSpec) -> Table:
        """Return a table of the first signals and the mean of all.

        Args:
            rows: Rows of all signals by name.
            spec: Specification of the signals.
        """
        writer, noun, (metric, measure) = self.writer, spec.modality.noun, _headline(spec)
        title = f"{measure.heading or metric}{' in ' if measure.unit else ''}{measure.unit} of {len(rows)} {noun}(s)"
        numbers = {f"{metric} predicted": "predicted", f"{metric} refined": "refined", **writer.numbers}
        if writer.assembles:  # without values to compare with
            title, numbers = f"{len(rows)} {noun}(s)", {}
        table = Table(title=title, title_justify="left")
        for heading in (noun, writer.size_heading, writer.counted, *numbers.values(), "notes"):
            longest_word = max(map(len, heading.split()))
            side: Literal["left", "right"] = "left" if heading in (noun, "notes") else "right"
            table.add_column(heading, justify=side, overflow="fold", min_width=longest_word)
        for name, row in list(rows.items())[:_MAX_ROWS]:
            means = [_mean([row], key) for key in numbers]
            table.add_row(escape(name), writer.size_of(row), row[writer.counted], *means, row["notes"])
        if len(rows) > _MAX_ROWS:
            table.add_row(f"and {len(rows) - _MAX_ROWS} more", "", "", *("" for _ in numbers), "")
        if len(rows) > 1 and numbers:
            table.add_row("mean", "", "", *(_mean(rows.values(), key) for key in numbers), "")
        return table


def _data(trainer: Trainer) -> CoordinateDataModule:
    """Return the data module of a trainer."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, CoordinateDataModule)
    return data


def _create_writer(data: CoordinateDataModule, options: Mapping[str, Any]) -> Writer:
    """Return the writer of the modality of the data; raise a `ValueError` if there is none, or for unknown options."""
    kind = data.spec.modality.writer
    if kind is None:
        raise ValueError(
            f"{type(data).__name__} has no modality whose predictions can be written: set its class attribute `modality`, for "
            "example to `modalities.Images()`."
        )
    allowed = inspect.signature(kind).parameters
    if unknown := sorted(set(options) - set(allowed)):
        raise ValueError(
            f"`options` of PredictionWriter contains {', '.join(unknown)}; {data.spec.modality.name} take "
            f"{', '.join(allowed) or 'none'}."
        )
    _headline(data.spec)  # before the work
    writer: Writer = kind(**options)
    return writer


def _headline(spec: DataSpec) -> tuple[str, InstanceMetric]:
    """Return the name and the headline metric of the data; raise a `ValueError` if its modality does not measure it."""
    name, metrics = spec.modality.headline.metric, spec.modality.metrics()
    if name not in metrics:
        raise ValueError(
            f"The headline metric of {type(spec.modality).__name__} is {name}, but its metrics are "
            f"{', '.join(metrics) or 'empty'}: return it from `metrics`."
        )
    return name, metrics[name]


def _measured_again(composer: Composer, code: InstanceCode, index: int, tile: Tile, spec: DataSpec) -> Tile:
    """Return a tile with the values and the metric of the quantised latents of a code in place of those they came from."""
    assert tile.query is not None
    query, shape = tile.query
    latents = {name: latent[index : index + 1].to(composer.device) for name, latent in code.latents.items()}
    with torch.no_grad():
        modulations = composer.compose(latents, code.layout)
        reconstruction = composer.reconstruct(modulations, query.coords.to(composer.device))
    others = (None if part is None else part.to(composer.device) for part in query[1:])
    query = Samples(query.coords.to(composer.device), *others)
    values, instance = list(tile.values), tile.instance
    if query.values is not None:
        values[-1] = _headline(spec)[1].measure(reconstruction, query, shape).item()
        values[0] = values[0] if tile.steps else values[-1]
    if instance is not None:
        last = max(instance.values)
        instance = instance._replace(
            values={**instance.values, last: reconstruction.values[0].to(instance.values[last])}
        )
    return tile._replace(values=values, instance=instance, query=None)


def _tiles(
    evaluation: Evaluation, batch: CoordinateBatch, spec: DataSpec, writer: Writer, measured_again: bool = False
) -> Iterator[Tile]:
    """Yield the tiles of a batch, with the samples where they are measured again if this is needed."""
    assert batch.shape is not None
    last = max(evaluation["latents"])
    if writer.assembles:
        whole_signals = [Piece(name, batch.shape, whole(batch.shape)) for name in batch.names]
        for index, piece in enumerate(batch.pieces or whole_signals):
            kept = writer.kept(evaluation["values"][last][index])
            yield Tile(piece, {}, last, [], None, evaluation["layout"], kept)
        return
    values = {step: evaluation["values"][step] for step in (0, last)}
    scores = torch.full((2, len(batch.names)), math.nan)
    if batch.query.values is not None:
        _, metric = _headline(spec)
        measured = [metric.measure(evaluation["reconstructions"][step], batch.query, batch.shape) for step in (0, last)]
        scores = torch.stack(measured)
    for index, name in enumerate(batch.names):
        if batch.pieces:
            piece, instance = batch.pieces[index], None
        else:
            piece = Piece(name, unpadded_shape(batch, index), whole(batch.shape))
            instance = instance_of(batch, index, spec.domain, values)
        latents = {key: latent[index].cpu() for key, latent in evaluation["latents"][last].items()}
        query = (batch.query.of_instance(index), batch.shape) if measured_again else None
        yield Tile(piece, latents, last, scores[:, index].tolist(), instance, evaluation["layout"], None, query)


def _mean(rows: Iterable[Row], key: str) -> str:
    """Return the mean of a number over the rows that have it, as text."""
    numbers = [number for row in rows if not math.isnan(number := float(row[key]))]
    return f"{sum(numbers) / len(numbers):.2f}" if numbers else "-"
