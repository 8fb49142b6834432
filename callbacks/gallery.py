"""The gallery of a test: held-out instances beside what a model makes of them, and after every step of an inner loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from callbacks.folders import output_folder, relative_path
from callbacks.results import heading, inner_steps
from callbacks.tables import log_table, table_loggers
from composers.base import Composer
from composers.checkpoint import load
from composers.evaluation import Evaluation
from composers.inference import GradientSteps
from composers.latents import Latents, Layout
from composers.networks import Modulations
from composers.rendering import Reconstruction
from datamodules.base import CoordinateDataModule
from datamodules.batch import Cell, CoordinateBatch, Instance, Samples, instance_of, observation_of
from datamodules.spec import Modality
from datamodules.storage.files import written_whole


class InnerRow(NamedTuple):
    """An instance after every reported number of inner steps.

    Attributes:
        name: Of the instance.
        steps: Before each cell; None for the instance itself.
        cells: The instance itself, then its reconstructions.
        numbers: Of the headline metric, of every cell; None for the instance itself.
    """

    name: str
    steps: list[int | None]
    cells: list[Cell]
    numbers: list[float | None]


class Gallery(Callback):
    """Draws a figure after a test, a row per instance: the original, its prediction, its refinement, and what else it shows.

    What a figure shows, and what is written beside it, is the modality's: of images the refinement decoded at a larger scale;
    of views the support views, the middle query view with its depth, and a turntable video; of audio spectrograms, and the
    sound as WAV files. Rows are of different objects: where a test draws several times from one, its first draw.

    Of a model with an inner loop there is a second figure, with a column per reported number of steps: 0 is the learned start,
    the same for all; those of training and of the test are marked. Its rows, of the first batch, are sent as the table
    ``test/inner_steps`` to loggers that take tables, as that of W&B does.

    Signals of no particular modality have no gallery.

    Args:
        filename: Of the figure, in the folder of the run; video and sound are in a folder of its name without the ending.
        num_instances: Rows, the first instances of the test set.
        beside: Another model, a checkpoint or the name of bundled weights, whose reconstructions stand beside; or None. If it
            takes signals of another shape, the figure is left out. The second figure, videos and sound are not of it.
        inner_filename: Of the second figure.
        num_inner: Its rows, at most.
        max_memory: MB that rendering may take above the model and what is shown.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        filename: str = "gallery.png",
        num_instances: int = 6,
        beside: str | None = None,
        inner_filename: str = "inner_steps.png",
        num_inner: int = 4,
        max_memory: float = 500.0,
    ) -> None:
        if num_instances < 1 or num_inner < 1 or not max_memory > 0:
            raise ValueError(
                f"num_instances is {num_instances}, num_inner {num_inner}, max_memory {max_memory}: at least 1, 1, and above 0."
            )
        self.filename = filename
        self.num_instances = num_instances
        self.beside = beside
        self.inner_filename = inner_filename
        self.num_inner = num_inner
        self.max_memory = max_memory
        self.other: Composer | None = None
        self.rows: dict[str, list[Cell]] = {}
        self.inner_rows: list[InnerRow] = []
        self.folder: Path | None = None
        self.has_media = False
        self._modality = Modality()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier rows, and load the model that stands beside."""
        data = getattr(trainer, "datamodule", None)
        folder = output_folder(trainer)
        is_drawn = isinstance(data, CoordinateDataModule) and trainer.is_global_zero and isinstance(pl_module, Composer)
        self.rows, self.inner_rows, self.has_media, self.other = {}, [], False, None
        self.folder = folder if is_drawn else None
        if self.folder is None or not isinstance(data, CoordinateDataModule):
            return
        self._modality = data.spec.modality
        if self.beside is None:
            return
        self.other = load(self.beside, pl_module.device)
        taken = self._modality.input_shape(self.other)
        if taken is not None and taken != data.spec.signal_shape:
            self.folder = None
            Console(soft_wrap=True).print(
                f"No {self.filename}: {self.beside} takes signals of shape {taken}, not {data.spec.signal_shape}."
            )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the instances that are new until there are enough, and of the first batch the inner steps."""
        if self.folder is None or batch.shape is None or batch.query.values is None:
            return
        data, composer = getattr(trainer, "datamodule", None), pl_module
        assert isinstance(data, CoordinateDataModule)
        assert isinstance(composer, Composer)
        for index in range(len(batch.names)):
            if len(self.rows) < self.num_instances:
                self._add(composer, outputs, batch, index, data)
        if batch_idx == 0 and self.beside is None and composer.inner is not None:
            with trainer.precision_plugin.test_step_context():
                self.inner_rows = inner_rows(composer, batch, data, self.num_inner, self.max_memory)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures, and send the inner steps."""
        if self.folder is None:
            return
        console = Console(soft_wrap=True)
        if self.rows:
            path = self.folder / self.filename
            _save(self._modality.figure(list(self.rows.values())), path)
            media = f"; video and sound: {relative_path(path.with_suffix(''))}" if self.has_media else ""
            console.print(f"Gallery: {relative_path(path)}{media}")
        if self.inner_rows:
            path = self.folder / self.inner_filename
            _save(self._modality.figure([row.cells for row in self.inner_rows], compact=True), path)
            console.print(f"Inner steps: {relative_path(path)}")
            if table_loggers(trainer):
                table = [_table_row(row, self._modality) for row in self.inner_rows]
                log_table(trainer, "test/inner_steps", table, trainer.global_step)

    def _add(
        self, composer: Composer, evaluation: Evaluation, batch: CoordinateBatch, index: int, data: CoordinateDataModule
    ) -> None:
        """Add the row of an instance, unless there is one of the same object."""
        last = max(evaluation["values"])
        values = {step: evaluation["values"][step] for step in sorted({0, last})}
        instance = instance_of(batch, index, data.spec.domain, values)
        shown = self._modality.shown(instance)
        if shown is None or shown.name in self.rows or shown.query.values is None:
            return
        modulations = _modulations(composer, evaluation["latents"][last], evaluation["layout"], index)
        cells = self._modality.context(instance)
        cells.append(Cell("original" if cells else "", shown.query.values, shown.shape, shown.domain))
        cells[0] = cells[0]._replace(label=shown.name)
        cells += self._made(composer, modulations, shown)
        if self.other is not None:
            cells += self._beside(self.other, batch, index, instance)
        elif self.beside is None:
            assert self.folder is not None
            stem = self.folder / Path(self.filename).stem / shown.name
            self.has_media |= self._modality.save_media(composer, modulations, instance, stem, self.max_memory)
        self.rows[shown.name] = cells

    def _made(self, composer: Composer, modulations: Modulations, shown: Instance, prefix: str = "") -> list[Cell]:
        """Return the cells of what a model makes of an instance, labelled."""
        cells = []
        for step, values in shown.values.items():
            number = headline_value(self._modality, values, shown)
            label = f"{prefix}{f'{step} steps' if step else 'predicted'} {number:.1f}{_unit(self._modality)}"
            cells.append(Cell(label, values, shown.shape, shown.domain))
        extras = self._modality.extras(composer, modulations, shown, self.max_memory)
        return [*cells, *(cell._replace(label=prefix + cell.label) for cell in extras)]

    def _beside(self, composer: Composer, batch: CoordinateBatch, index: int, instance: Instance) -> list[Cell]:
        """Return the cells of what the other model makes of an instance."""
        observation = observation_of(batch, [index])
        with torch.no_grad():
            curve = {0: composer.encode(observation)}
        layout = composer.layout(observation)
        if observation.samples is not None:
            curve = composer.refine(curve[0], observation.samples, layout=layout)
        values: dict[int, Tensor] = {}
        for step in sorted({0, max(curve)}):
            modulations = _modulations(composer, curve[step], layout, 0)
            values[step] = self._modality.values_at(composer, modulations, instance.query.coords, self.max_memory)
        shown = self._modality.shown(instance._replace(values=values))
        assert shown is not None, "it was shown a moment ago"
        return self._made(composer, modulations, shown, f"{self.beside}: ")


def inner_rows(
    composer: Composer, batch: CoordinateBatch, data: CoordinateDataModule, number: int, max_memory: float = 500.0
) -> list[InnerRow]:
    """Return the first instances of a batch after the reported inner steps; none if nothing is reported or drawn.

    Args:
        composer: The model, with an inner loop.
        batch: On its device, of whole signals with values.
        data: Where it comes from.
        number: Of rows, at most.
        max_memory: MB that rendering may take above the model and what is shown.
    """
    loop, modality = composer.inner, data.spec.modality
    if loop is None or not loop.report:
        return []
    chosen: dict[str, tuple[int, Instance]] = {}
    for index in range(len(batch.names)):
        shown = modality.shown(instance_of(batch, index, data.spec.domain, {}))
        if shown is None:
            return []
        if len(chosen) < number:
            chosen.setdefault(shown.name, (index, shown))
    indices, instances = zip(*chosen.values(), strict=True)
    rows = [InnerRow(shown.name, [None], [_itself(shown)], [None]) for shown in instances]
    observation = observation_of(batch, indices)
    layout = composer.layout(observation)
    for step, latents in composer.trajectory(observation, loop.report).items():
        for place, (row, shown) in enumerate(zip(rows, instances, strict=True)):
            modulations = _modulations(composer, latents, layout, place)
            values = modality.values_at(composer, modulations, shown.query.coords, max_memory)
            value = headline_value(modality, values, shown)
            row.steps.append(step)
            row.numbers.append(value)
            row.cells.append(Cell(_inner_label(step, value, loop, modality), values, shown.shape, shown.domain))
    return rows


def headline_value(modality: Modality, values: Tensor, shown: Instance) -> float:
    """Return the headline metric of reconstructed values ``(N, C)`` of what is shown of an instance."""
    coords, true, mask = shown.query
    assert true is not None, "there is nothing to compare with"
    query = Samples(coords, true[None], None if mask is None else mask[None])
    metric = modality.metrics()[modality.headline.metric]
    return float(metric.measure(Reconstruction.of_values(values[None]), query, shown.shape))


def _modulations(composer: Composer, latents: Latents, layout: Layout, index: int) -> Any:
    """Return the modulations of one instance of a batch of latents."""
    with torch.no_grad():
        return composer.compose({name: latent[index : index + 1] for name, latent in latents.items()}, layout)


def _itself(shown: Instance) -> Cell:
    """Return an instance as it is, under its name."""
    assert shown.query.values is not None
    return Cell(shown.name, shown.query.values, shown.shape, shown.domain)


def _inner_label(step: int, number: float, loop: GradientSteps, modality: Modality) -> str:
    """Return what stands above a cell after some inner steps."""
    note = {loop.test_steps: ", tested", loop.steps: ", trained", 0: ", start"}.get(step, "")
    label = f"{step} step{'' if step == 1 else 's'}{note}"
    return f"{label} {number:.1f}{_unit(modality)}" if math.isfinite(number) else f"{label}, diverged"


def _unit(modality: Modality) -> str:
    """Return the unit of the headline metric, after a number."""
    return f" {modality.headline.unit}" if modality.headline.unit else ""


def _save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with written_whole(path) as part:
        figure.save(part, format="PNG", compress_level=4)


def _table_row(row: InnerRow, modality: Modality) -> dict[str, Any]:
    """Return the row of an instance in the table for loggers."""
    columns: dict[str, Any] = {"name": row.name}
    for step, cell in zip(row.steps, row.cells, strict=True):
        columns["original" if step is None else inner_steps(step)] = modality.medium(cell)
    label = heading(modality.headline.metric, unit="")
    return columns | {
        f"{label}@{step}": number for step, number in zip(row.steps, row.numbers, strict=True) if step is not None
    }
