"""Results of a test: a table of means over instances, and a CSV file with a row per instance."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.folders import output_folder, relative_path
from callbacks.progress import ProgressBar as ProgressBar  # configs of earlier versions name it here
from composers.base import Composer
from composers.evaluation import Evaluation
from composers.inference import GradientSteps
from composers.inference.refinement import INNER, NETWORK
from composers.metrics import InstanceMetric
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch
from datamodules.spec import Headline, Modality

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
    """Print the mean of every metric per refinement step after a test, and write a CSV file with a row per instance.

    For a meta-learned model, step 0 is the result of its inner loop; a second table lists the means per inner step.

    Args:
        filename: Name of the CSV file in the run folder.
    """

    def __init__(self, filename: str = "test_instances.csv") -> None:
        super().__init__()
        self.filename = filename

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the CSV file and print the tables."""
        self._write(trainer, pl_module)

    def write_partial(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the rows of an interrupted test; call it on all processes."""
        self._write(trainer, pl_module, partial=True)

    def _write(self, trainer: Trainer, pl_module: LightningModule, partial: bool = False) -> None:
        """Write and print the rows of all processes."""
        rows = gather_rows(self.rows)
        folder = output_folder(trainer)
        if not trainer.is_global_zero or not rows:
            return
        if folder is not None:
            columns = list(next(iter(rows.values())))
            path = folder / self.filename
            with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                writer = csv.writer(file)
                writer.writerow(["name", *(column.title for column in columns)])
                writer.writerows([name, *(row[column] for column in columns)] for name, row in rows.items())
        console = Console(soft_wrap=True)
        loop, headline = pl_module.inner if isinstance(pl_module, Composer) else None, headline_of(trainer)
        metrics = metrics_of(pl_module)
        console.print(results_table(rows, loop, headline, metrics))
        if loop and loop.report:
            console.print(inner_table(rows, loop, headline, metrics))
        if folder is not None:
            label = "Instances so far" if partial else "Every instance"
            note = " (partial: the test was stopped)" if partial else ""
            console.print(f"{label}: {relative_path(path)}{note}")


def results_table(
    rows: Mapping[str, InstanceRow],
    loop: GradientSteps | None = None,
    headline: Headline = Modality.headline,
    metrics: Mapping[str, InstanceMetric] | None = None,
) -> Table:
    """Return a table of the mean over instances of every metric, with a line per refinement step.

    Curves from other initialisations are listed for the main metric only.

    Args:
        rows: Rows of all instances, with the same columns each.
        loop: Inner loop that adapts the codes before refinement, if any; `inner_table` lists its steps.
        headline: Headline metric of the data.
        metrics: Metrics by key, which state their headings and units; if None, the keys are the headings.
    """
    means = {column: mean for column, mean in _means(rows).items() if column.start != INNER}
    names, steps, starts = (list(dict.fromkeys(parts)) for parts in zip(*means, strict=True))
    main = main_metric(means, headline)
    series = [(name, start) for name in names for start in starts if start == "prediction" or name == main]
    initial = "0 (predicted)" if loop is None else f"0 (after {inner_steps(loop.test_steps)})"
    table = Table(title=f"Mean over {len(rows)} instances", title_justify="left")
    table.add_column("refinement steps", min_width=len(initial))
    for name, start in series:
        title = heading(name, metrics, headline) if start == "prediction" else _START_HEADINGS[start]
        table.add_column(escape(title), justify="right")
    for step in sorted(steps):
        cells = [means.get(Column(name, step, start)) for name, start in series]  # not every curve has every step
        table.add_row(initial if step == 0 else str(step), *("" if mean is None else f"{mean:.3f}" for mean in cells))
    return table


def inner_table(
    rows: Mapping[str, InstanceRow],
    loop: GradientSteps,
    headline: Headline = Modality.headline,
    metrics: Mapping[str, InstanceMetric] | None = None,
) -> Table:
    """Return a table of the mean over instances of every metric, with a line per reported number of inner steps.

    Args:
        rows: Rows of all instances, with the same columns each.
        loop: Inner loop, whose report is not empty.
        headline: Headline metric of the data.
        metrics: Metrics by key, which state their headings and units; if None, the keys are the headings.
    """
    means = {column: mean for column, mean in _means(rows).items() if column.start == INNER}
    names, steps = (list(dict.fromkeys(parts)) for parts in list(zip(*means, strict=True))[:2])
    labels = []
    for step in steps:
        uses = {"trained": loop.steps, "tested": loop.test_steps}
        used = " and ".join(use for use, number in uses.items() if number == step)
        note = f" ({used} with)" if used else "" if step else " (learned start)"
        labels.append(f"{step:,}{note}")
    table = Table(title=f"The inner loop, mean over {len(rows)} instances", title_justify="left")
    table.add_column("inner steps", min_width=max(map(len, labels)))
    for name in names:
        table.add_column(escape(heading(name, metrics, headline)), justify="right")
    for step, label in zip(steps, labels, strict=True):
        table.add_row(label, *(f"{means[Column(name, step, INNER)]:.3f}" for name in names))
    return table


def _means(rows: Mapping[str, InstanceRow]) -> dict[Column, float]:
    """Return the mean of every column over the instances that count; NaN where none does."""
    means = {}
    for column in next(iter(rows.values())):
        values = [row[column] for row in rows.values() if counts(row, column)]
        means[column] = sum(values) / len(values) if values else math.nan
    return means


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


def headline_of(trainer: Trainer) -> Headline:
    """Return the headline metric of the data of a trainer; PSNR without a `CoordinateDataModule`."""
    data = getattr(trainer, "datamodule", None)
    return data.spec.modality.headline if isinstance(data, CoordinateDataModule) else Modality.headline


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
