"""Results of a test: a table of means over instances, and a CSV file with a row per instance."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.baseline import CodeRow, code_rows
from callbacks.folders import output_folder, relative_path
from callbacks.progress import ProgressBar as ProgressBar  # configs of earlier versions name it here
from composers.base import Composer
from composers.evaluation import Evaluation
from composers.inference import GradientSteps
from composers.inference.refinement import INNER, NETWORK
from composers.metrics import PSNR, InstanceMetric
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch
from datamodules.code_size import describe_sizes
from datamodules.spec import Headline, Modality
from datamodules.storage.files import written_whole
from modalities.linear import AS_LARGE, LinearBaseline

_SUFFIXES = {"prediction": "", NETWORK: f" of {NETWORK}", INNER: " of the inner loop"}
_START_HEADINGS = {"mean": "from the mean code", "random": "from a random code", NETWORK: "of all weights"}


class Column(NamedTuple):
    """A column of the results: a metric after a number of steps.

    Attributes:
        metric: Key of the metric in `Composer.measures`.
        step: Number of refinement steps, or of inner steps where ``start`` is ``inner``.
        start: Curve that the value belongs to, one of `composers.inference.refinement.CURVES`.

    Example:
        >>> Column("psnr", 10).title, Column("psnr", 10, "mean").title, Column("psnr", 10, "network").title
        ('psnr@10', 'psnr@10 from mean', 'psnr@10 of network')
        >>> Column("psnr", 10, "inner").title
        'psnr@10 of the inner loop'
    """

    metric: str
    step: int
    start: str = "prediction"

    @property
    def title(self) -> str:
        """Header of the column in a CSV file."""
        return f"{self.metric}@{self.step}" + _SUFFIXES.get(self.start, f" from {self.start}")


InstanceRow = dict[Column, float]
T = TypeVar("T")


class InstanceRows(Callback):
    """Collect the metrics of every instance during a test. Base of the callbacks that write them at its end."""

    def __init__(self) -> None:
        self.rows: dict[str, InstanceRow] = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows."""
        self.rows = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a row per instance."""
        evaluation: Evaluation = outputs
        columns = {
            Column(metric, step, start): values.tolist()
            for start, curve in ({"prediction": evaluation["metrics"]} | evaluation["starts"]).items()
            for step, metrics in curve.items()
            for metric, values in metrics.items()
        }
        for index, name in enumerate(batch.names):
            self.rows[name] = {column: values[index] for column, values in columns.items()}


class ResultsTable(InstanceRows):
    """Print the mean and the standard deviation of every metric per refinement step after a test, and write a CSV file.

    The table also states the size of the codes, and the metrics of a linear code of the same size: PCA of patches of images, or
    KLT of audio, fitted on training items. The CSV file has a row per instance. For a meta-learned model, step 0 is the result
    of its inner loop; a second table lists the results per inner step.

    Args:
        filename: Name of the CSV file in the run folder.
        linear: Whether to compare with linear codes, which reads up to 1,024 training items, unless all codes are as large as
            their signals.
    """

    def __init__(self, filename: str = "test_instances.csv", linear: bool = True) -> None:
        super().__init__()
        self.filename = filename
        self.linear = linear
        self.codes: dict[str, CodeRow] = {}
        self._baseline: LinearBaseline | None = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows, and fit linear codes anew."""
        super().on_test_epoch_start(trainer, pl_module)
        self.codes, self._baseline, data = {}, None, data_of(trainer)
        if self.linear and data is not None and data.spec.modality.linear is not None:
            self._baseline = LinearBaseline(data, data.spec.modality.linear)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a row per instance, with the size of its code and the linear code of the same size."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        data = data_of(trainer)
        spec = None if data is None else data.spec
        self.codes |= code_rows(outputs, batch, metrics_of(pl_module), spec, self._baseline)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the CSV file and print the tables."""
        self._write(trainer, pl_module)
        self._baseline = None  # frees the training items

    def write_partial(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the rows of an interrupted test; call it on all processes."""
        self._write(trainer, pl_module, partial=True)

    def _write(self, trainer: Trainer, pl_module: LightningModule, partial: bool = False) -> None:
        """Write and print the rows of all processes."""
        rows, codes = gather_rows(self.rows), gather_rows(self.codes)
        folder = output_folder(trainer)
        if not trainer.is_global_zero or not rows:
            return
        if folder is not None:
            path = folder / self.filename
            _write_csv(path, rows, codes)
        console = Console(soft_wrap=True)
        loop, headline = pl_module.inner if isinstance(pl_module, Composer) else None, headline_of(trainer)
        metrics = metrics_of(pl_module)
        console.print(results_table(rows, loop, headline, metrics, codes))
        if loop and loop.report:
            console.print(inner_table(rows, loop, headline, metrics))
        notes = dict.fromkeys(metric.note for metric in metrics.values() if metric.note)
        unmeasured = pl_module.unmeasured.values() if isinstance(pl_module, Composer) else ()
        for remark in (*notes, *unmeasured, *undefined_values(rows, metrics), *self._remarks(trainer, codes)):
            console.print(remark, markup=False, highlight=False)
        if folder is not None:
            label = "Instances so far" if partial else "Every instance"
            note = " (partial: the test was stopped)" if partial else ""
            console.print(f"{label}: {relative_path(path)}{note}")

    def _remarks(self, trainer: Trainer, codes: Mapping[str, CodeRow]) -> list[str]:
        """Return the lines below the tables: the size of the codes, and remarks on the linear code and the data."""
        if not codes:
            return []
        remarks = [describe_sizes([row.size for row in codes.values()])]
        if self._baseline is not None and self._baseline.failure:
            remarks.append(f"No linear code: {self._baseline.failure}")
        data = data_of(trainer)
        if data is not None and len(scales := scales_of(data, codes)) > 1:
            remarks.insert(0, f"Means over the scales {', '.join(f'x{scale:g}' for scale in scales)} together.")
        return remarks + [
            f"{name[:1].upper()}{name[1:]}: {note}" for name, note in (data.notes if data else {}).items()
        ]


def _write_csv(path: Path, rows: Mapping[str, InstanceRow], codes: Mapping[str, CodeRow]) -> None:
    """Write a row per instance: its metrics, the size of its code, and the metrics of a linear code of that size.

    The cell of a metric that is undefined for an instance is empty.
    """
    columns = list(next(iter(rows.values())))
    sizes = {name: row.size.facts() for name, row in codes.items()}
    facts = list(dict.fromkeys(fact for size in sizes.values() for fact in size))
    linear = list(dict.fromkeys(metric for row in codes.values() for metric in row.metrics))
    labels = ["linear code"] if any(row.linear for row in codes.values()) else []
    titles = [*(column.title for column in columns), *facts, *labels, *(f"{metric} linear" for metric in linear)]
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *titles])
        for name, row in rows.items():
            size, code = sizes.get(name, {}), codes.get(name)
            cells = [size.get(fact, "") for fact in facts] + ([code.linear if code else ""] if labels else [])
            others = code.metrics if code else {}
            metrics = ["" if math.isnan(others.get(metric, math.nan)) else others[metric] for metric in linear]
            measured = [row[column] if counts(row, column) else "" for column in columns]
            writer.writerow([name, *measured, *cells, *metrics])


def undefined_values(rows: Mapping[str, InstanceRow], metrics: Mapping[str, InstanceMetric]) -> list[str]:
    """Return a sentence for every metric that is undefined for some instances, which its mean leaves out."""
    sentences = []
    for key, metric in metrics.items():
        number = sum(any(not counts(row, column) for column in row if column.metric == key) for row in rows.values())
        if number:
            sentences.append(
                f"{heading(key, metrics).partition(' [')[0]}: undefined {metric.undefined}; {number} of {len(rows)} instances "
                "have an empty cell and are not in the mean."
            )
    return sentences


def results_table(
    rows: Mapping[str, InstanceRow],
    loop: GradientSteps | None = None,
    headline: Headline = Modality.headline,
    metrics: Mapping[str, InstanceMetric] | None = None,
    codes: Mapping[str, CodeRow] | None = None,
) -> Table:
    """Return a table of the mean ± standard deviation over instances of every metric, with a line per refinement step.

    Curves from other initialisations are listed for the main metric only, as means. The last line is a linear code of the
    same size.

    Args:
        rows: Rows of all instances, with the same columns each.
        loop: Inner loop that adapts the codes before refinement, if any; `inner_table` lists its steps.
        headline: Headline metric of the data.
        metrics: Metrics by key, which state their headings and units; if None, the keys are the headings.
        codes: Sizes of the codes and results of linear codes by instance.
    """
    counted = {column: values for column, values in _counted(rows).items() if column.start != INNER}
    names, steps, starts = (list(dict.fromkeys(parts)) for parts in zip(*counted, strict=True))
    main = main_metric(counted, headline)
    series = [(name, start) for name in names for start in starts if start == "prediction" or name == main]
    initial = "0 (predicted)" if loop is None else f"0 (after {inner_steps(loop.test_steps)})"
    titles = [
        heading(name, metrics, headline) if start == "prediction" else _START_HEADINGS[start] for name, start in series
    ]
    lines = {}
    for step in sorted(steps):
        values = [counted.get(Column(name, step, start)) for name, start in series]  # not every curve has every step
        lines[initial if step == 0 else str(step)] = [
            "" if some is None else _cell(some, spread=start == "prediction")
            for some, (_, start) in zip(values, series, strict=True)
        ]
    linear = [row for row in (codes or {}).values() if row.linear]
    if not linear:
        return _table(_title(rows), "refinement steps", titles, lines)
    cells = [_linear_cell(linear, name, main) if start == "prediction" else "" for name, start in series]
    return _table(_title(rows), "refinement steps", titles, lines, {_linear_label(linear): cells})


def inner_table(
    rows: Mapping[str, InstanceRow],
    loop: GradientSteps,
    headline: Headline = Modality.headline,
    metrics: Mapping[str, InstanceMetric] | None = None,
) -> Table:
    """Return a table of the mean ± standard deviation over instances of every metric, with a line per reported inner step.

    Args:
        rows: Rows of all instances, with the same columns each.
        loop: Inner loop, whose report is not empty.
        headline: Headline metric of the data.
        metrics: Metrics by key, which state their headings and units; if None, the keys are the headings.
    """
    counted = {column: values for column, values in _counted(rows).items() if column.start == INNER}
    names, steps = (list(dict.fromkeys(parts)) for parts in list(zip(*counted, strict=True))[:2])
    lines = {}
    for step in steps:
        uses = {"trained": loop.steps, "tested": loop.test_steps}
        used = " and ".join(use for use, number in uses.items() if number == step)
        note = f" ({used} with)" if used else "" if step else " (learned start)"
        lines[f"{step:,}{note}"] = [_cell(counted[Column(name, step, INNER)]) for name in names]
    titles = [heading(name, metrics, headline) for name in names]
    return _table(f"The inner loop, {_title(rows, 'mean')}", "inner steps", titles, lines)


def _table(
    title: str,
    first: str,
    titles: Sequence[str],
    lines: Mapping[str, Sequence[str]],
    below: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Return a table that breaks lines between words but not within numbers.

    Args:
        title: Title of the table.
        first: Heading of the first column.
        titles: Headings of the other columns.
        lines: Cells of the other columns by that of the first.
        below: Lines below a rule.
    """
    below = below or {}
    table = Table(title=title, title_justify="left")
    table.add_column(first, min_width=max(map(len, lines)))
    for index, column in enumerate(titles):
        words = [word for cells in (*lines.values(), *below.values()) for word in cells[index].split()]
        table.add_column(escape(column), justify="right", min_width=max(map(len, words), default=0))
    for label, cells in lines.items():
        table.add_row(label, *cells)
    table.add_section()
    for label, cells in below.items():
        table.add_row(escape(label), *cells)
    return table


def _title(rows: Mapping[str, InstanceRow], mean: str = "Mean") -> str:
    """Return the title of a table of means."""
    return f"{mean} over {len(rows)} instances{', ± standard deviation' if len(rows) > 1 else ''}"


def _counted(rows: Mapping[str, InstanceRow]) -> dict[Column, list[float]]:
    """Return the values of every column of the instances that count."""
    columns = next(iter(rows.values()))
    return {column: [row[column] for row in rows.values() if counts(row, column)] for column in columns}


def _cell(values: Sequence[float], spread: bool = True) -> str:
    """Return the mean of values, and their standard deviation if there are several; ``-`` if there are none.

    Example:
        >>> _cell([1.0, 2.0, 3.0]), _cell([1.0]), _cell([])
        ('2.000 ±1.000', '1.000', '-')
    """
    if not values:
        return "-"
    mean = sum(values) / len(values)
    if not spread or len(values) < 2 or not math.isfinite(mean):
        return f"{mean:.3f}"
    return f"{mean:.3f} ±{statistics.stdev(values):.3f}"


def _linear_cell(codes: Sequence[CodeRow], metric: str, main: str) -> str:
    """Return the mean of a metric of linear codes; without any, the reason under the main metric."""
    measured = [row.metrics[metric] for row in codes if metric in row.metrics]
    if measured:
        return _cell([value for value in measured if not math.isnan(value)])
    reasons = dict.fromkeys(row.linear for row in codes)
    return ", ".join(reasons) if metric == main else ""


def _linear_label(codes: Sequence[CodeRow]) -> str:
    """Return the label of the line of linear codes: their common description, and how many instances have one."""
    measured = [row.linear for row in codes if row.metrics]
    if not measured:
        return "linear code"
    label = measured[0] if len(set(measured)) == 1 else "linear codes of equal size"
    return label if len(measured) == len(codes) else f"{label} ({len(measured)} instances; others {AS_LARGE})"


def counts(row: InstanceRow, column: Column) -> bool:
    """Return whether a value of an instance counts in a mean.

    NaN does not count if another metric of the same prediction is a number, because silence has no SI-SDR. It counts if all
    metrics are NaN, so that a mean does not hide a prediction that diverged.

    Example:
        >>> silent = {Column("psnr", 0): 90.0, Column("si_sdr", 0): math.nan}
        >>> [counts(silent, column) for column in silent]
        [True, False]
    """
    same_prediction = (value for other, value in row.items() if other[1:] == column[1:])
    return not math.isnan(row[column]) or all(math.isnan(value) for value in same_prediction)


def main_metric(columns: Iterable[Column], headline: Headline) -> str:
    """Return the key of the headline metric, or of the first metric if the headline is not measured."""
    names = list(dict.fromkeys(column.metric for column in columns))
    return headline.metric if headline.metric in names else names[0]


def heading(
    name: str, metrics: Mapping[str, InstanceMetric] | None = None, headline: Headline = Modality.headline
) -> str:
    """Return the heading of a metric, followed by its unit in brackets.

    Args:
        name: Key of the metric, which is its heading if the metric is unknown or states none.
        metrics: Metrics by key.
        headline: Headline metric of the data, whose unit takes precedence.

    Example:
        >>> from composers.metrics import PSNR, SSIM
        >>> metrics = {"psnr": PSNR(), "ssim": SSIM()}
        >>> [heading(name, metrics) for name in metrics], heading("distance", headline=Headline("distance", "min", "mm"))
        (['PSNR [dB]', 'SSIM'], 'distance [mm]')
    """
    metric = (metrics or {}).get(name)
    words = metric.heading if metric and metric.heading else name
    unit = headline.unit if name == headline.metric else metric.unit if metric else ""
    return f"{words} [{unit}]" if unit else words


def data_of(trainer: Trainer) -> CoordinateDataModule | None:
    """Return the data module of a trainer; None if it is no `CoordinateDataModule`."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, CoordinateDataModule) else None


def scales_of(data: CoordinateDataModule, names: Iterable[str]) -> list[float]:
    """Return the scales of items of super-resolution in ascending order; none for other data."""
    return sorted({scale for name in names if (scale := data.scale_of(name)) is not None})


def headline_of(trainer: Trainer) -> Headline:
    """Return the headline metric of the data of a trainer; PSNR without a `CoordinateDataModule`."""
    data = data_of(trainer)
    return Modality.headline if data is None else data.spec.modality.headline


def headline_metric(composer: Composer, modality: Modality) -> InstanceMetric:
    """Return the headline metric of a modality, with the settings of the composer if that measures it as well.

    The composer may compare the luminance of images, for example. A metric of another class under the same key is not used:
    that of the modality knows how to average over views, for example.
    """
    measured = composer.measures.get(modality.headline.metric)
    default = modality.metrics().get(modality.headline.metric)
    if default is None:
        return measured or PSNR()
    return measured if measured is not None and type(measured) is type(default) else default


def metrics_of(module: LightningModule) -> Mapping[str, InstanceMetric]:
    """Return the metrics of a composer by key; empty for other modules."""
    return module.measures if isinstance(module, Composer) else {}


def inner_steps(count: int) -> str:
    """Return a number of inner steps with its noun.

    Example:
        >>> inner_steps(1), inner_steps(30)
        ('1 inner step', '30 inner steps')
    """
    return f"{count:,} inner step{'' if count == 1 else 's'}"


def gather_rows(rows: dict[str, T]) -> dict[str, T]:
    """Return the rows of all processes in the order of the data set; call it on all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    parts: list[dict[str, T]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, rows)
    turns = zip_longest(*(part.items() for part in parts))  # process r holds the items r, r + processes, ...
    return dict(item for turn in turns for item in turn if item is not None)
