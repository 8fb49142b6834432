"""The gallery of a test: test instances beside their reconstructions, and beside the steps of an inner loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from callbacks.folders import output_folder, relative_path
from callbacks.results import headline_metric, inner_steps
from callbacks.tables import log_table, table_loggers
from composers.base import Composer
from composers.construction import load
from composers.evaluation import Evaluation
from composers.latents import Latents, Layout
from composers.metrics import PSNR, InstanceMetric
from composers.rendering import Reconstruction
from datamodules.base import CoordinateDataModule
from datamodules.batch import Cell, CoordinateBatch, Instance, Samples, instance_of, observation_of, unpadded_shape
from datamodules.spec import Modality, agrees
from datamodules.storage.files import written_whole
from modalities.linear import LinearBaseline


class InnerRow(NamedTuple):
    """An instance and its reconstructions after every reported number of inner steps.

    Attributes:
        name: Name of the instance.
        steps: Number of inner steps of every cell; None for the original.
        cells: The original, then its reconstructions.
        numbers: Headline metric of every cell; None for the original.
    """

    name: str
    steps: list[int | None]
    cells: list[Cell]
    numbers: list[float | None]


class Gallery(Callback):
    """Draw a figure after a test, with a row per instance: the original, the prediction and its refinement.

    The modality of the data adds to the figure and writes further files. Images are also decoded at a larger scale. Views
    come with the support views, the depth of the middle query view, and a turntable video. Audio is drawn as spectrograms
    and written as WAV files. Every row shows a different object; of several test items of an object, the first is drawn.

    For a model with an inner loop, a second figure has a column per reported number of inner steps, from 0 (the
    learned initialisation, the same for all instances); the numbers of steps of training and test are marked. Its rows, from
    the first batch, are also logged as the table ``test/inner_steps`` by loggers that support tables, such as W&B.

    With ``linear``, a row also shows the linear code (PCA or KLT) of as many numbers as the code of the model, where that is
    smaller than the signal.

    Data without a modality have no gallery.

    Args:
        filename: Name of the figure in the run folder. Videos and WAV files go to a folder with this name, without suffix.
        num_instances: Number of rows, for the first instances of the test set.
        beside: Second model to compare with: path of a checkpoint or name of bundled weights; None for no comparison. With a
            second model, the figure of inner steps, videos and WAV files are not written; if it takes signals of another
            shape, no figure is drawn.
        inner_filename: Name of the second figure.
        num_inner: Maximum number of rows of the second figure.
        max_memory: Memory in MB that rendering may use in addition to the model and the result.
        linear: Whether to show linear codes of the same size.

    Raises:
        ValueError: If ``num_instances`` or ``num_inner`` is less than 1, or ``max_memory`` is not positive.
    """

    def __init__(
        self,
        filename: str = "gallery.png",
        num_instances: int = 6,
        beside: str | None = None,
        inner_filename: str = "inner_steps.png",
        num_inner: int = 4,
        max_memory: float = 500.0,
        linear: bool = True,
    ) -> None:
        if num_instances < 1 or num_inner < 1 or not max_memory > 0:
            raise ValueError(
                f"num_instances is {num_instances} and num_inner {num_inner}: both must be at least 1; max_memory is "
                f"{max_memory}: it must be positive."
            )
        self.filename = filename
        self.num_instances = num_instances
        self.beside = beside
        self.inner_filename = inner_filename
        self.num_inner = num_inner
        self.max_memory = max_memory
        self.linear = linear
        self.other: Composer | None = None
        self.baseline: LinearBaseline | None = None
        self.rows: dict[str, list[Cell]] = {}
        self.inner_rows: list[InnerRow] = []
        self.folder: Path | None = None
        self.has_media = False
        self._modality = Modality()
        self._metric: InstanceMetric = PSNR()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows, and load the model to compare with."""
        data = getattr(trainer, "datamodule", None)
        folder = output_folder(trainer)
        self.rows, self.inner_rows, self.has_media, self.other, self.folder = {}, [], False, None, None
        if not (isinstance(data, CoordinateDataModule) and isinstance(pl_module, Composer) and trainer.is_global_zero):
            return
        self.folder = folder
        self._modality = data.spec.modality
        self._metric = headline_metric(pl_module, self._modality)
        patch = self._modality.linear if self.linear else None
        self.baseline = None if patch is None else LinearBaseline(data, patch)
        if self.folder is None or self.beside is None:
            return
        self.other = load(self.beside, pl_module.device)
        input_shape = self._modality.input_shape(self.other)
        if not agrees(input_shape, data.spec.signal_shape):
            self.folder = None
            Console(soft_wrap=True).print(
                f"No {self.filename}: {self.beside} takes signals of shape {input_shape}, not {data.spec.signal_shape}."
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
        """Add rows until there are enough; from the first batch, also those of the inner steps."""
        if self.folder is None or batch.shape is None or batch.query.values is None:
            return
        data, composer = getattr(trainer, "datamodule", None), pl_module
        assert isinstance(data, CoordinateDataModule)
        assert isinstance(composer, Composer)
        for index in range(len(batch.names)):
            if len(self.rows) < self.num_instances:
                self._add_row(composer, outputs, batch, index, data)
        if batch_idx == 0 and self.beside is None and composer.inner is not None:
            with trainer.precision_plugin.test_step_context():
                self.inner_rows = inner_rows(composer, batch, data, self.num_inner, self.max_memory)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures, and log the table of inner steps."""
        if self.folder is None:
            return
        console = Console(soft_wrap=True)
        if self.rows:
            path = self.folder / self.filename
            self._save_figure(list(self.rows.values()), path)
            media = f"; video and audio: {relative_path(path.with_suffix(''))}" if self.has_media else ""
            console.print(f"Gallery: {relative_path(path)}{media}")
        if self.inner_rows:
            path = self.folder / self.inner_filename
            self._save_figure([row.cells for row in self.inner_rows], path, compact=True)
            console.print(f"Inner steps: {relative_path(path)}")
            if table_loggers(trainer):
                table = [_table_row(row, self._modality) for row in self.inner_rows]
                log_table(trainer, "test/inner_steps", table, trainer.global_step)

    def _save_figure(self, rows: Sequence[Sequence[Cell]], path: Path, compact: bool = False) -> None:
        """Write cells in rows and columns as one PNG, without leaving a partial file."""
        figure = self._modality.figure(rows, compact=compact)
        with written_whole(path) as part:
            figure.save(part, format="PNG", compress_level=4)

    def _add_row(
        self, composer: Composer, evaluation: Evaluation, batch: CoordinateBatch, index: int, data: CoordinateDataModule
    ) -> None:
        """Add the row of an instance, unless its object has one."""
        last = max(evaluation["values"])
        values = {step: evaluation["values"][step] for step in sorted({0, last})}
        instance = instance_of(batch, index, data.spec.domain, values)
        shown = self._modality.shown(instance)
        if shown is None or shown.name in self.rows or shown.query.values is None:
            return
        reconstructions = {
            step: _reconstruction(composer, evaluation["latents"][step], evaluation["layout"], index) for step in values
        }
        cells = self._modality.context(instance)
        cells.append(self._modality.original(shown)._replace(label="original" if cells else ""))
        cells[0] = cells[0]._replace(label=shown.name)
        cells += self._reconstruction_cells(composer, reconstructions, shown)
        numbers = sum(latent[0].numel() for latent in evaluation["latents"][0].values())
        cells += self._linear_cells(instance, unpadded_shape(batch, index), numbers)
        if self.other is not None:
            cells += self._comparison_cells(self.other, batch, index, instance)
        elif self.beside is None:
            assert self.folder is not None
            stem = self.folder / Path(self.filename).stem / shown.name
            self.has_media |= self._modality.save_media(
                composer, reconstructions[last], instance, stem, self.max_memory
            )
        self.rows[shown.name] = [self._modality.reduced(cell) for cell in cells]

    def _reconstruction_cells(
        self, composer: Composer, reconstructions: Mapping[int, Reconstruction], shown: Instance, prefix: str = ""
    ) -> list[Cell]:
        """Return the labelled reconstructions of an instance, and the further cells of its modality for the last one."""
        cells = []
        for step, values in shown.values.items():
            value = headline_value(self._metric, reconstructions[step], values, shown)
            label = f"{prefix}{f'{step} steps' if step else 'predicted'} {_with_unit(value, self._modality)}"
            cell = self._modality.reconstructed(composer, reconstructions[step], shown, values, self.max_memory)
            cells.append(cell._replace(label=label))
        extras = self._modality.extras(composer, reconstructions[max(shown.values)], shown, self.max_memory)
        return [*cells, *(cell._replace(label=prefix + cell.label) for cell in extras)]

    def _linear_cells(self, instance: Instance, unpadded: Sequence[int], numbers: int) -> list[Cell]:
        """Return the labelled linear code of an instance with this many numbers; empty if there is none."""
        true = instance.query.values
        if self.baseline is None or true is None:
            return []
        signal = true.mT.unflatten(-1, instance.shape)
        label, values = self.baseline.reconstruct(signal[..., : unpadded[-1]], numbers)
        if values is None:
            return []
        padding = signal.shape[-1] - values.shape[-1]
        values = torch.nn.functional.pad(values.float(), (0, padding)).flatten(1).mT
        shown = self._modality.shown(instance._replace(values={0: values}))
        assert shown is not None, "`_add_row` adds no row of an instance that is not shown"
        known = Reconstruction.of_values(shown.values[0][None])
        metric = _with_unit(headline_value(self._metric, known, shown.values[0], shown), self._modality)
        return [Cell(f"{label.partition(',')[0]} {metric}", shown.values[0], shown.shape, shown.domain)]

    def _comparison_cells(
        self, composer: Composer, batch: CoordinateBatch, index: int, instance: Instance
    ) -> list[Cell]:
        """Return the labelled reconstructions of an instance by the model to compare with."""
        observation = observation_of(batch, [index])
        with torch.no_grad():
            curve = {0: composer.encode(observation)}
        layout = composer.layout(observation)
        if observation.samples is not None:
            curve = composer.refine(curve[0], observation.samples, layout=layout)
        steps = sorted({0, max(curve)})
        reconstructions = {step: _reconstruction(composer, curve[step], layout, 0) for step in steps}
        values = {
            step: self._modality.values_at(composer, reconstruction, instance.query.coords, self.max_memory)
            for step, reconstruction in reconstructions.items()
        }
        shown = self._modality.shown(instance._replace(values=values))
        assert shown is not None, "`_add_row` adds no row of an instance that is not shown"
        return self._reconstruction_cells(composer, reconstructions, shown, f"{self.beside}: ")


def inner_rows(
    composer: Composer, batch: CoordinateBatch, data: CoordinateDataModule, number: int, max_memory: float = 500.0
) -> list[InnerRow]:
    """Return the first instances of a batch after every reported number of inner steps.

    Args:
        composer: Model with an inner loop.
        batch: Batch of complete signals with values, on the device of the model.
        data: Data module of the batch.
        number: Maximum number of rows.
        max_memory: Memory in MB that rendering may use in addition to the model and the result.

    Returns:
        The rows; empty without an inner loop, if its report is empty, or if the modality draws nothing.
    """
    loop, modality = composer.inner, data.spec.modality
    if loop is None or not loop.report:
        return []
    metric = headline_metric(composer, modality)
    selected: dict[str, tuple[int, Instance]] = {}
    for index in range(len(batch.names)):
        shown = modality.shown(instance_of(batch, index, data.spec.domain, {}))
        if shown is None:
            return []
        if len(selected) < number:
            selected.setdefault(shown.name, (index, shown))
    indices, instances = zip(*selected.values(), strict=True)
    rows = []
    for shown in instances:
        original = modality.original(shown)._replace(label=shown.name)
        rows.append(InnerRow(shown.name, [None], [original], [None]))
    observation = observation_of(batch, indices)
    layout = composer.layout(observation)
    for step, latents in composer.trajectory(observation, loop.report).items():
        note = {loop.test_steps: ", tested", loop.steps: ", trained", 0: ", start"}.get(step, "")
        title = f"{step} step{'' if step == 1 else 's'}{note}"
        for place, (row, shown) in enumerate(zip(rows, instances, strict=True)):
            reconstruction = _reconstruction(composer, latents, layout, place)
            values = modality.values_at(composer, reconstruction, shown.query.coords, max_memory)
            value = headline_value(metric, reconstruction, values, shown)
            label = f"{title} {_with_unit(value, modality)}" if math.isfinite(value) else f"{title}, diverged"
            row.steps.append(step)
            row.numbers.append(value)
            cell = modality.reconstructed(composer, reconstruction, shown, values, max_memory)
            row.cells.append(cell._replace(label=label))
    return rows


def headline_value(metric: InstanceMetric, reconstruction: Reconstruction, values: Tensor, shown: Instance) -> float:
    """Return the headline metric of reconstructed values ``(N, C)`` of the shown part of an instance."""
    coords, true, mask, normals = shown.query
    assert true is not None, "the query has no values to compare with"
    device = reconstruction.values.device
    parts = (None if part is None else part[None].to(device) for part in (true, mask, normals))
    reconstruction = reconstruction._replace(values=values[None].to(device))
    return float(metric.measure(reconstruction, Samples(coords.to(device), *parts), shown.shape))


def _with_unit(value: float, modality: Modality) -> str:
    """Return a value of the headline metric with its unit."""
    unit = modality.headline.unit
    return f"{value:.1f} {unit}" if unit else f"{value:.3f}"


def _reconstruction(composer: Composer, latents: Latents, layout: Layout, index: int) -> Reconstruction:
    """Return the reconstruction of one instance of a batch of latents, without rendering it."""
    with torch.no_grad():
        return composer.reconstruction({name: latent[index : index + 1] for name, latent in latents.items()}, layout)


def _table_row(row: InnerRow, modality: Modality) -> dict[str, Any]:
    """Return the row of an instance in the table for loggers."""
    columns: dict[str, Any] = {"name": row.name}
    for step, cell in zip(row.steps, row.cells, strict=True):
        columns["original" if step is None else inner_steps(step)] = modality.medium(cell)
    name = modality.headline.metric
    label = modality.metrics()[name].heading or name
    return columns | {
        f"{label}@{step}": number for step, number in zip(row.steps, row.numbers, strict=True) if step is not None
    }
