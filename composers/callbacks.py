"""What people look at while a model trains and after it: a summary and tables."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.utils.data import default_collate

from composers.base import Composer, Evaluation
from composers.hypernet import Hypernetwork
from composers.inner_settings import InnerLoop
from composers.learned_init import LearnedInit
from composers.meta_learned import MetaLearned
from composers.progress import ProgressBar as ProgressBar  # configs of earlier runs name it here
from composers.refinement import INNER, NETWORK
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch

HEADINGS = {
    "psnr": "PSNR [dB]",
    "ssim": "SSIM",
    "gain": "gain over the mean [dB]",
    "silence": "PSNR of silence [dB]",
    "over_silence": "over silence [dB]",
    "si_sdr": "SI-SDR [dB]",
    "lsd": "log-spectral distance [dB]",
    "stoi": "STOI",
    "pesq": "PESQ",
    "white": "PSNR of white [dB]",
    "over_white": "over white [dB]",
    "lpips": "LPIPS",
}
_TITLES = {"prediction": "", NETWORK: f" of {NETWORK}", INNER: " of the inner loop"}


class Column(NamedTuple):
    """What a number of an instance is.

    Attributes:
        metric: Its name, as in `Composer.measures`.
        step: Refinement steps before it was measured, inner steps where ``start`` is ``inner``.
        start: Where they started or what they moved, one of `composers.refinement.CURVES`.

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


NO_FOLDER = os.devnull  # the trainer's default_root_dir where nothing is written
Row = dict[Column, float]
T = TypeVar("T")


def output_folder(trainer: Trainer) -> Path | None:
    """Return the folder of this run, made if it is missing; to be called on all processes, which agree on it.

    Returns:
        The folder, or None where nothing is written: under ``fast_dev_run``, and in the program without a logger.
    """
    folder = _planned_folder(trainer)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _planned_folder(trainer: Trainer) -> Path | None:
    """Return what `output_folder` returns without making it."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    return None if getattr(trainer, "fast_dev_run", False) or folder == Path(NO_FOLDER) else folder


class StartSummary(Callback):
    """Prints before training what will be trained on what, and after it where the checkpoint is and what to type next."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary, on one process; all of them gather it, for the trainer asks them all."""
        if not isinstance(pl_module, Composer):
            return
        table = Table(title=type(pl_module).__name__, show_header=False, title_justify="left")
        for name, value in self._facts(trainer, pl_module).items():
            table.add_row(name, value)
        if trainer.is_global_zero:
            Console().print(table)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the path of the checkpoint and the next command, as far as this run wrote what it needs."""
        savers = trainer.checkpoint_callbacks
        found = (getattr(saver, name, "") for name in ("last_model_path", "best_model_path") for saver in savers)
        path = next(filter(None, found), None)
        folder = _planned_folder(trainer)
        if not trainer.is_global_zero:
            return
        console = Console(soft_wrap=True)
        if path is None:
            console.print("No checkpoint was saved.")
            return
        console.print(f"Checkpoint: {(checkpoint := relative_path(path))}")
        if folder is not None and (config := folder / "config.yaml").is_file():
            console.print(f"Next: python cli.py test --config {relative_path(config)} --ckpt_path {checkpoint}")

    def _facts(self, trainer: Trainer, composer: Composer) -> dict[str, str]:
        """Return what the summary says."""
        facts = {"parameters": f"{sum(parameter.numel() for parameter in composer.parameters()):,}"}
        for module in composer.modules():
            if isinstance(module, Hypernetwork):
                facts["tokens"] = "{} data + {} weight".format(*module.num_tokens)
        if isinstance(composer, MetaLearned):
            facts["inner loop"] = _inner_facts(composer)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, CoordinateDataModule):
            facts |= _data_facts(trainer, composer, data)
        facts["steps"] = f"{trainer.estimated_stepping_batches:,.0f}"
        facts["precision"] = str(trainer.precision)
        facts["device"] = f"{trainer.num_devices * trainer.num_nodes} x {composer.device.type}"
        folder = _planned_folder(trainer)
        nothing = "nothing is written: fast_dev_run" if trainer.fast_dev_run else "nothing is written: no logger"  # type: ignore[attr-defined]
        facts["output"] = nothing if folder is None else str(relative_path(folder))
        return facts


def _data_facts(trainer: Trainer, composer: Composer, data: CoordinateDataModule) -> dict[str, str]:
    """Return what the summary says of the data and of what is stored for one instance."""
    raw = default_collate([data.val_set[0]])
    batch: CoordinateBatch = trainer.strategy.batch_to_device(raw)
    with torch.no_grad():
        latents = composer.eval().encode(batch.observation)
    composer.train()
    devices = trainer.num_devices * trainer.num_nodes
    accumulated = trainer.accumulate_grad_batches
    return {
        "instance code": f"{sum(latent.numel() for latent in latents.values()):,} numbers",
        "data": f"{type(data).__name__} {tuple(data.signal_shape)}, {_length(data.train_set)} training and "
        f"{_length(data.val_set)} validation items",
        "effective batch": f"{data.batch_size * devices * accumulated} = {data.batch_size} x {devices} device(s) "
        f"x {accumulated} accumulated",
    } | data.notes


def _inner_facts(composer: MetaLearned) -> str:
    """Return what the summary says of an inner loop."""
    loop = composer.inner_loop
    reptile = isinstance(composer, LearnedInit) and composer.outer == "reptile"
    learned = f", factors learned per {' and '.join(loop.learned_lr)}" if loop.learned_lr else ""
    seen, seen_at_test = (_seen(loop, count) for count in (loop.samples_per_step, loop.test_samples_per_step))
    parts = [
        inner_steps(loop.steps) + ("" if loop.test_steps == loop.steps else f" in training, {loop.test_steps} at test"),
        f"step size {loop.lr:g}{learned}",
        "Reptile" if reptile else "first order" if loop.first_order else "second order",
        f"{seen} per step" + ("" if seen == seen_at_test else f", {seen_at_test} at test"),
    ]
    if loop.recompute and not loop.first_order and not reptile:  # else there is nothing to store
        parts.append("recomputed in the backward pass")
    return "; ".join(parts)


def _seen(loop: InnerLoop, count: int | Literal["all"]) -> str:
    """Return in words which samples an inner step looks at."""
    if count == "all":
        return "all samples"
    return f"{count:,} random samples" if loop.choose == "random" else f"the {count:,} samples of largest error"


def inner_steps(count: int) -> str:
    """Return a number of inner steps in words.

    Example:
        >>> inner_steps(1), inner_steps(30)
        ('1 inner step', '30 inner steps')
    """
    return f"{count:,} inner step{'' if count == 1 else 's'}"


def _length(dataset: object) -> str:
    """Return the length of a data set, for people."""
    return f"{len(dataset):,}" if hasattr(dataset, "__len__") else "?"


def relative_path(path: str | Path) -> Path:
    """Return a path relative to the working directory where it lies below it."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


class InstanceRows(Callback):
    """Keeps during a test what was measured of every instance, for those who write it down at its end."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

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
        loop = pl_module.inner_loop if isinstance(pl_module, MetaLearned) else None
        console.print(results_table(rows, loop))
        if loop and loop.report:
            console.print(inner_table(rows, loop))
        if folder is not None:
            path = relative_path(folder / self.filename)
            console.print(f"{'Instances so far' if note else 'Every instance'}: {path}{note}")


def _write_rows(rows: Mapping[str, Row], path: Path) -> None:
    """Write a CSV with a line per instance."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        columns = list(next(iter(rows.values())))
        writer.writerow(["name", *(column.title for column in columns)])
        writer.writerows([name, *(row[column] for column in columns)] for name, row in rows.items())


def results_table(rows: Mapping[str, Row], loop: InnerLoop | None = None) -> Table:
    """Return the mean over instances of every metric, one line per refinement step; of other starts, the first metric.

    Args:
        rows: Of all instances, the same columns in each.
        loop: What found the codes that refinement starts from, if an inner loop did; `inner_table` shows its steps.
    """
    means = {column: mean for column, mean in _means(rows).items() if column.start != INNER}
    metrics, steps, starts = (list(dict.fromkeys(parts)) for parts in zip(*means, strict=True))
    main = main_metric(means)
    shown = [(metric, start) for metric in metrics for start in starts if start == "prediction" or metric == main]
    first = "0 (predicted)" if loop is None else f"0 (after {inner_steps(loop.test_steps)})"
    table = Table(title=f"Mean over {len(rows)} instances", title_justify="left")
    table.add_column("refinement steps", min_width=len(first))
    for metric, start in shown:
        heading = HEADINGS.get(metric, metric) if start == "prediction" else _START_HEADINGS[start]
        table.add_column(escape(heading), justify="right")
    for step in sorted(steps):
        cells = (cell(means.get(Column(metric, step, start))) for metric, start in shown)
        table.add_row(first if step == 0 else str(step), *cells)
    return table


def inner_table(rows: Mapping[str, Row], loop: InnerLoop) -> Table:
    """Return the mean over instances of every metric, one line per reported number of inner steps.

    Args:
        rows: Of all instances, the same columns in each.
        loop: The inner loop, whose report is not empty.
    """
    means = {column: mean for column, mean in _means(rows).items() if column.start == INNER}
    metrics, steps = (list(dict.fromkeys(parts)) for parts in list(zip(*means, strict=True))[:2])
    labels = [_inner_label(step, loop) for step in steps]
    table = Table(title=f"The inner loop, mean over {len(rows)} instances", title_justify="left")
    table.add_column("inner steps", min_width=max(map(len, labels)))
    for metric in metrics:
        table.add_column(escape(HEADINGS.get(metric, metric)), justify="right")
    for step, label in zip(steps, labels, strict=True):
        table.add_row(label, *(cell(means[Column(metric, step, INNER)]) for metric in metrics))
    return table


def _inner_label(step: int, loop: InnerLoop) -> str:
    """Return a number of inner steps, and what it is."""
    numbers = {"trained": loop.steps, "tested": loop.test_steps}
    uses = " and ".join(use for use, number in numbers.items() if number == step)
    note = f" ({uses} with)" if uses else "" if step else " (learned start)"
    return f"{step:,}{note}"


def _means(rows: Mapping[str, Row]) -> dict[Column, float]:
    """Return the mean over the instances that count of every column."""
    columns = next(iter(rows.values()))
    numbers = {column: [row[column] for row in rows.values() if counts(row, column)] for column in columns}
    return {column: sum(found) / len(found) if found else math.nan for column, found in numbers.items()}


def cell(mean: float | None) -> str:
    """Return what the table says of a mean, which not every curve has at every step."""
    return "" if mean is None else f"{mean:.3f}"


def counts(row: Row, column: Column) -> bool:
    """Return whether a number of an instance counts in a mean: NaN does not where other metrics of the prediction are numbers.

    Silence has no SI-SDR; a prediction that diverged has no number at all, and no mean hides it.

    Example:
        >>> silent = {Column("psnr", 0): 90.0, Column("si_sdr", 0): math.nan}
        >>> [counts(silent, column) for column in silent]
        [True, False]
    """
    others = (number for other, number in row.items() if other[1:] == column[1:])
    return not math.isnan(row[column]) or all(math.isnan(number) for number in others)


def main_metric(columns: Iterable[Column]) -> str:
    """Return the metric that stands for all: the PSNR, or else the first."""
    metrics = list(dict.fromkeys(column.metric for column in columns))
    return "psnr" if "psnr" in metrics else metrics[0]


_START_HEADINGS = {
    "mean": "from the mean code",
    "random": "from a random start",
    NETWORK: "of all weights",
}
