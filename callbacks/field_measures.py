"""Measure in a test what a field can do and a grid of values cannot: other scales, subsets of samples, derivatives."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.fields import (
    FieldItem,
    Fill,
    NotMeasurableError,
    ScalePair,
    decoding_measures,
    derivative_measures,
    item_of,
    reconstruct,
    scale_pair,
    subset_measures,
)
from callbacks.folders import output_folder, relative_path
from callbacks.results import gather_rows
from composers.base import Composer
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch
from datamodules.spec import Modality
from datamodules.storage.files import written_whole

FieldRow = dict[str, float]


class FieldMeasures(Callback):
    """Measure what a field can do and a grid of values cannot, for every item of a test.

    *Decoding*: the original of an item is downscaled and encoded. Its code is decoded at the scale of the original, and
    compared with it by PSNR, beside interpolation of the reconstruction's values on the grid of the input, and of the input
    itself. Images are interpolated by Pillow's bicubic filter, audio by a windowed sinc. A model of any size, or without
    encoder, gets the source of an item at its own resolution, such as the photograph before resizing, cropped in the middle to
    multiples of ``factor * multiple`` samples; without a source, the item itself. A model of one size needs a source with
    ``factor`` times as many samples along every axis as it takes; items without one are not measured, which is printed.

    *Subsets*: a code is found from a random subset of the samples. The start is the prediction for a signal whose missing
    samples are filled as ``fill`` says; an inner loop and the refinement of the model then fit the subset only. Interpolation
    of the subset is measured beside it.

    *Derivatives*: the gradient of the field by automatic differentiation is compared with central differences of the item, and,
    with ``decoding``, of the original at the finer scale, beside differences of the interpolated grid. Central differences are
    smaller than derivatives at high frequencies, so that even a perfect field has a finite ratio; less so at the finer scale.

    The results are printed as mean and standard deviation over items, written to a CSV file with a row per item, and logged as
    ``test/<measure>`` and ``test/<measure>_spread``, such as ``test/decoding_4x.field``. Items are measured one by one in
    float32. Evaluation is chunked; the memory of refinement depends on its ``samples_per_step``.

    Args:
        decoding: Whether to measure decoding at a larger scale.
        subsets: Parts of the samples to reconstruct from, in (0, 1); none if empty.
        derivatives: Whether to measure derivatives.
        factor: Scale of decoding, at least 2.
        multiple: Factor of the sizes of inputs in decoding for models of any size; use the patch size.
        steps: Refinement steps before decoding and derivatives; 0 for the prediction.
        fill: Values of missing samples in the input of the encoder: ``linear`` or ``nearest`` interpolation of the known ones,
            or their ``mean``.
        filename: Name of the CSV file in the run folder.
        max_memory: Memory in MB that rendering may use in addition to the model and the result.

    Raises:
        ValueError: If an argument is out of range; at the start of a test, if the data are on no regular grid, or subsets are
            asked for from a model without gradient steps.
    """

    def __init__(
        self,
        decoding: bool = True,
        subsets: Sequence[float] = (0.5, 0.1),
        derivatives: bool = True,
        factor: int = 4,
        multiple: int = 8,
        steps: int = 0,
        fill: Fill = "linear",
        filename: str = "field_measures.csv",
        max_memory: float = 500.0,
    ) -> None:
        if factor < 2 or multiple < 1 or steps < 0 or not max_memory > 0:
            raise ValueError(
                f"factor is {factor}, multiple {multiple}, steps {steps}, max_memory {max_memory}: factor must be at least 2, "
                "multiple at least 1, steps at least 0, and max_memory positive."
            )
        if wrong := [fraction for fraction in subsets if not 0 < fraction < 1]:
            raise ValueError(f"subsets contains {wrong}: the parts of known samples must be in (0, 1), such as 0.1.")
        if fill not in ("linear", "nearest", "mean"):
            raise ValueError(f"fill is {fill}; allowed are linear, nearest and mean.")
        self.decoding = decoding
        self.subsets = tuple(subsets)
        self.derivatives = derivatives
        self.factor = factor
        self.multiple = multiple
        self.steps = steps
        self.fill: Fill = fill
        self.filename = filename
        self.max_memory = max_memory
        self.rows: dict[str, FieldRow] = {}
        self.reasons: dict[str, dict[str, str]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows, and check that model and data can be measured.

        Raises:
            ValueError: If they cannot.
        """
        self.rows, self.reasons = {}, {}
        data = getattr(trainer, "datamodule", None)
        modality = data.spec.modality if isinstance(data, CoordinateDataModule) else Modality()
        if not isinstance(pl_module, Composer) or modality.interpolation is None:
            raise ValueError(
                f"FieldMeasures measures signals on regular grids; the data are {modality.name}, whose modality "
                f"{type(modality).__name__} states no interpolation: remove the callback."
            )
        if self.subsets and not pl_module.refinement.steps and pl_module.inner is None:
            raise ValueError(
                f"subsets of FieldMeasures is {list(self.subsets)}, but the model takes no gradient steps that fit a code to a "
                "subset: set model.init_args.refinement.init_args.steps, or subsets to []."
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
        """Measure every item of a batch."""
        data = getattr(trainer, "datamodule", None)
        assert isinstance(pl_module, Composer)
        assert isinstance(data, CoordinateDataModule)
        for index, name in enumerate(batch.names):
            with torch.inference_mode(False), torch.no_grad():  # gradients cannot be taken of tensors of inference mode
                self.rows[name] = self._row(pl_module, data, batch, index)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and log the means, and write the CSV file, of the items of all processes."""
        rows, reasons = gather_rows(self.rows), gather_rows(self.reasons)
        folder = output_folder(trainer)
        if not trainer.is_global_zero or not rows:
            return
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        metrics: dict[str, float] = {}
        for column in columns:
            mean, spread = mean_and_spread(rows, column)
            metrics |= {f"test/{column}": mean, f"test/{column}_spread": spread}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        console = Console(soft_wrap=True)
        console.print(field_table(rows, columns))
        for measure, by_name in _by_measure(reasons).items():
            first, reason = next(iter(by_name.items()))
            console.print(f"{measure}: not measured for {len(by_name)} of {len(rows)} items. Of {first}, {reason}.")
        if folder is not None:
            path = folder / self.filename
            with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["name", *columns])
                writer.writeheader()
                writer.writerows({"name": name} | row for name, row in rows.items())
            console.print(f"Fields of every item: {relative_path(path)}")

    def _row(self, composer: Composer, data: CoordinateDataModule, batch: CoordinateBatch, index: int) -> FieldRow:
        """Return the measures of an item."""
        domain, row = data.spec.domain, FieldRow()
        try:
            item = item_of(batch, index)
        except NotMeasurableError as error:
            self.reasons[batch.names[index]] = {"fields": str(error)}
            return row
        if self.decoding:
            row |= self._scaled(composer, data, item)
        if self.derivatives:
            pair = ScalePair(item.observed, item.target, item.observed_mask, item.mask)
            row |= self._compared(composer, data, item.name, pair, {"derivatives": derivative_measures})
        for fraction in self.subsets:
            measure = partial(subset_measures, composer, item, domain, fraction, self.fill, self.max_memory)
            row |= self._measured(item.name, f"subset_{100 * fraction:g}", measure)
        return row

    def _scaled(self, composer: Composer, data: CoordinateDataModule, item: FieldItem) -> FieldRow:
        """Return the measures at the scale of the original."""
        interpolation = data.spec.modality.interpolation
        assert interpolation is not None, "on_test_start has checked it"
        measures = {f"decoding_{self.factor}x": decoding_measures}
        if self.derivatives:
            measures[f"derivatives_{self.factor}x"] = derivative_measures
        try:
            pair = scale_pair(composer, data, item, self.factor, self.multiple, interpolation)
        except NotMeasurableError as error:
            self.reasons[item.name] = self.reasons.get(item.name, {}) | dict.fromkeys(measures, str(error))
            return {}
        return self._compared(composer, data, item.name, pair, measures)

    def _compared(
        self,
        composer: Composer,
        data: CoordinateDataModule,
        name: str,
        pair: ScalePair,
        measures: Mapping[str, Callable[..., FieldRow]],
    ) -> FieldRow:
        """Return measures that compare a reconstruction with an original, which may be at a finer scale."""
        domain, row = data.spec.domain, FieldRow()
        reconstruction = reconstruct(composer, pair.signal, domain, pair.signal_mask, self.steps)
        options = (pair, reconstruction, domain, data.spec.modality.interpolation, self.max_memory)
        for key, measure in measures.items():
            row |= self._measured(name, key, partial(measure, composer, *options))
        return row

    def _measured(self, name: str, key: str, measure: Callable[[], FieldRow]) -> FieldRow:
        """Return a measure with its key before every name, or keep the reason why it does not apply."""
        try:
            return {f"{key}.{column}": value for column, value in measure().items()}
        except NotMeasurableError as error:
            self.reasons.setdefault(name, {})[key] = str(error)
            return {}


def values_of(rows: Mapping[str, FieldRow], column: str) -> list[float]:
    """Return the values of a column, of the rows that have it."""
    return [row[column] for row in rows.values() if column in row]


def mean_and_spread(rows: Mapping[str, FieldRow], column: str) -> tuple[float, float]:
    """Return the mean and the standard deviation of a column, over the rows that have it.

    Example:
        >>> mean_and_spread({"a": {"psnr": 20.0}, "b": {"psnr": 24.0}, "c": {}}, "psnr")
        (22.0, 2.0)
    """
    values = torch.tensor(values_of(rows, column), dtype=torch.float64)
    return values.mean().item(), values.std(correction=0).item()


def field_table(rows: Mapping[str, FieldRow], columns: Sequence[str]) -> Table:
    """Return a table of the mean and standard deviation of every measure over the items that have it."""
    table = Table(title="Fields, mean and standard deviation over items", title_justify="left")
    table.add_column("measure")
    for title in ("mean", "spread", "items"):
        table.add_column(title, justify="right")
    for column in columns:
        unit = "" if column.endswith(".correlation") else " [dB]"
        numbers = (f"{number:.3f}" for number in mean_and_spread(rows, column))
        table.add_row(escape(column + unit), *numbers, str(len(values_of(rows, column))))
    return table


def _by_measure(reasons: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return reasons by measure, then by the name of the item."""
    result: dict[str, dict[str, str]] = {}
    for name, by_measure in reasons.items():
        for measure, reason in by_measure.items():
            result.setdefault(measure, {})[name] = reason
    return result
