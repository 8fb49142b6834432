"""What people look at while a model trains and after it: a summary and tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.folders import output_folder, relative_path
from callbacks.progress import ProgressBar as ProgressBar  # configs of earlier runs name it here
from composers.base import Composer
from composers.evaluation import Evaluation
from composers.inference import GradientSteps
from composers.inference.refinement import INNER, NETWORK
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch
from datamodules.spec import Headline, Modality

_HEADINGS = {  # of metrics: words and unit
    "psnr": ("PSNR", "dB"),
    "ssim": ("SSIM", ""),
    "gain": ("gain over the mean", "dB"),
    "silence": ("PSNR of silence", "dB"),
    "over_silence": ("over silence", "dB"),
    "si_sdr": ("SI-SDR", "dB"),
    "lsd": ("log-spectral distance", "dB"),
    "stoi": ("STOI", ""),
    "pesq": ("PESQ", ""),
    "white": ("PSNR of white", "dB"),
    "over_white": ("over white", "dB"),
    "lpips": ("LPIPS", ""),
}
_TITLES = {"prediction": "", NETWORK: f" of {NETWORK}", INNER: " of the inner loop"}


class Column(NamedTuple):
    """What a number of an instance is.

    Attributes:
        metric: Its name, as in `Composer.measures`.
        step: Refinement steps before it was measured, inner steps where ``start`` is ``inner``.
        start: Where they started or what they moved, one of `composers.inference.refinement.CURVES`.

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
        """Heads the column of a CSV."""
        return f"{self.metric}@{self.step}" + _TITLES.get(self.start, f" from {self.start}")


InstanceRow = dict[Column, float]
T = TypeVar("T")


def heading(metric: str, unit: str | None = None) -> str:
    """Return a metric in words, with its unit.

    Args:
        metric: Its name, as in `Composer.measures`.
        unit: In place of the known one; none if empty.

    Example:
        >>> heading("psnr"), heading("psnr", unit=""), heading("ssim"), heading("distance", unit="mm")
        ('PSNR [dB]', 'PSNR', 'SSIM', 'distance [mm]')
    """
    words, known = _HEADINGS.get(metric, (metric, ""))
    unit = known if unit is None else unit
    return f"{words} [{unit}]" if unit else words


def headline_of(trainer: Trainer) -> Headline:
    """Return the headline metric of the data of a trainer; the PSNR where it has no data module of ours."""
    data = getattr(trainer, "datamodule", None)
    return data.spec.modality.headline if isinstance(data, CoordinateDataModule) else Modality.headline


def inner_steps(count: int) -> str:
    """Return a number of inner steps in words.

    Example:
        >>> inner_steps(1), inner_steps(30)
        ('1 inner step', '30 inner steps')
    """
    return f"{count:,} inner step{'' if count == 1 else 's'}"


class InstanceRows(Callback):
    """Keeps during a test what was measured of every instance, for those who write it down at its end."""

    def __init__(self) -> None:
        self.rows: dict[str, InstanceRow] = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier rows."""
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
        """Keep a row per instance."""
        evaluation: Evaluation = outputs
        columns = {
            Column(metric, step, start): numbers.tolist()
            for start, curve in ({"prediction": evaluation["metrics"]} | evaluation["starts"]).items()
            for step, metrics in curve.items()
            for metric, numbers in metrics.items()
        }
        for index, name in enumerate(batch.names):
            self.rows[name] = {column: numbers[index] for column, numbers in columns.items()}


def gathered(rows: dict[str, T]) -> dict[str, T]:
    """Return the rows of all processes, in the order of the data set; to be called on all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    parts: list[dict[str, T]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, rows)
    turns = zip_longest(*(part.items() for part in parts))  # process r has items r, r + processes, ...
    return dict(item for turn in turns for item in turn if item is not None)


class ResultsTable(InstanceRows):
    """Prints after a test the mean of every metric by refinement step, and writes a CSV row per instance.

    Of a meta-learned model, step 0 is what its inner loop found; a second table has the means by inner step.

    Args:
        filename: Of the CSV, in the folder of the run.
    """

    def __init__(self, filename: str = "test_instances.csv") -> None:
        super().__init__()
        self.filename = filename

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the CSV and print the table, with the rows of all processes."""
        self._write(trainer, pl_module)

    def write_partial(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of an unfinished test, and say that there are more; to be called on all processes."""
        self._write(trainer, pl_module, " (partial: the test was stopped)")

    def _write(self, trainer: Trainer, pl_module: LightningModule, note: str = "") -> None:
        """Write the CSV and print the table, with a note."""
        rows = gathered(self.rows)
        folder = output_folder(trainer)
        if not trainer.is_global_zero or not rows:
            return
        if folder is not None:
            _write_rows(rows, folder / self.filename)
        console = Console(soft_wrap=True)
        loop, headline = pl_module.inner if isinstance(pl_module, Composer) else None, headline_of(trainer)
        console.print(results_table(rows, loop, headline))
        if loop and loop.report:
            console.print(inner_table(rows, loop, headline))
        if folder is not None:
            path = relative_path(folder / self.filename)
            console.print(f"{'Instances so far' if note else 'Every instance'}: {path}{note}")


def _write_rows(rows: Mapping[str, InstanceRow], path: Path) -> None:
    """Write a CSV with a line per instance."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        columns = list(next(iter(rows.values())))
        writer.writerow(["name", *(column.title for column in columns)])
        writer.writerows([name, *(row[column] for column in columns)] for name, row in rows.items())


def results_table(
    rows: Mapping[str, InstanceRow], loop: GradientSteps | None = None, headline: Headline = Modality.headline
) -> Table:
    """Return the mean over instances of every metric, one line per refinement step; of other starts, the main metric.

    Args:
        rows: Of all instances, the same columns in each.
        loop: What found the codes that refinement starts from, if an inner loop did; `inner_table` shows its steps.
        headline: Of the data.
    """
    means = {column: mean for column, mean in _means(rows).items() if column.start != INNER}
    metrics, steps, starts = (list(dict.fromkeys(parts)) for parts in zip(*means, strict=True))
    main = main_metric(means, headline)
    shown = [(metric, start) for metric in metrics for start in starts if start == "prediction" or metric == main]
    first = "0 (predicted)" if loop is None else f"0 (after {inner_steps(loop.test_steps)})"
    table = Table(title=f"Mean over {len(rows)} instances", title_justify="left")
    table.add_column("refinement steps", min_width=len(first))
    for metric, start in shown:
        title = heading_of(metric, headline) if start == "prediction" else _START_HEADINGS[start]
        table.add_column(escape(title), justify="right")
    for step in sorted(steps):
        cells = (cell(means.get(Column(metric, step, start))) for metric, start in shown)
        table.add_row(first if step == 0 else str(step), *cells)
    return table


def inner_table(rows: Mapping[str, InstanceRow], loop: GradientSteps, headline: Headline = Modality.headline) -> Table:
    """Return the mean over instances of every metric, one line per reported number of inner steps.

    Args:
        rows: Of all instances, the same columns in each.
        loop: The inner loop, whose report is not empty.
        headline: Of the data.
    """
    means = {column: mean for column, mean in _means(rows).items() if column.start == INNER}
    metrics, steps = (list(dict.fromkeys(parts)) for parts in list(zip(*means, strict=True))[:2])
    labels = [_inner_label(step, loop) for step in steps]
    table = Table(title=f"The inner loop, mean over {len(rows)} instances", title_justify="left")
    table.add_column("inner steps", min_width=max(map(len, labels)))
    for metric in metrics:
        table.add_column(escape(heading_of(metric, headline)), justify="right")
    for step, label in zip(steps, labels, strict=True):
        table.add_row(label, *(cell(means[Column(metric, step, INNER)]) for metric in metrics))
    return table


def _inner_label(step: int, loop: GradientSteps) -> str:
    """Return a number of inner steps, and what it is."""
    numbers = {"trained": loop.steps, "tested": loop.test_steps}
    uses = " and ".join(use for use, number in numbers.items() if number == step)
    note = f" ({uses} with)" if uses else "" if step else " (learned start)"
    return f"{step:,}{note}"


def _means(rows: Mapping[str, InstanceRow]) -> dict[Column, float]:
    """Return the mean over the instances that count of every column."""
    columns = next(iter(rows.values()))
    numbers = {column: [row[column] for row in rows.values() if counts(row, column)] for column in columns}
    return {column: sum(found) / len(found) if found else math.nan for column, found in numbers.items()}


def cell(mean: float | None) -> str:
    """Return what the table says of a mean, which not every curve has at every step."""
    return "" if mean is None else f"{mean:.3f}"


def counts(row: InstanceRow, column: Column) -> bool:
    """Return whether a number of an instance counts in a mean: NaN does not where other metrics of the prediction are numbers.

    Silence has no SI-SDR; a prediction that diverged has no number at all, and no mean hides it.

    Example:
        >>> silent = {Column("psnr", 0): 90.0, Column("si_sdr", 0): math.nan}
        >>> [counts(silent, column) for column in silent]
        [True, False]
    """
    others = (number for other, number in row.items() if other[1:] == column[1:])
    return not math.isnan(row[column]) or all(math.isnan(number) for number in others)


def main_metric(columns: Iterable[Column], headline: Headline) -> str:
    """Return the metric that stands for all: the headline, or else the first that is measured."""
    metrics = list(dict.fromkeys(column.metric for column in columns))
    return headline.metric if headline.metric in metrics else metrics[0]


def heading_of(metric: str, headline: Headline) -> str:
    """Return a metric in words; the headline in the unit that the modality states."""
    return heading(metric, headline.unit if metric == headline.metric else None)


_START_HEADINGS = {
    "mean": "from the mean code",
    "random": "from a random start",
    NETWORK: "of all weights",
}
