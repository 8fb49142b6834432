"""Compare methods after equal training time: ``python -m studies.equal_time "[photos_patch_ipc,photos_la_inr]"``."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from composers.checkpoint import read
from composers.training.schedules import RunSchedule

EXPERIMENTS = Path(__file__).resolve().parents[1] / "configs" / "experiments"
_COLUMNS = ("experiment", "steps", "minutes", "code", "linear")  # of the CSV file, before the metrics


@dataclass(frozen=True)
class EqualTimeSettings:
    """Train every experiment for the same time, test it, and list the results beside linear codes of the same size.

    Learning rate schedules end when the time does. Validation is left out of training, so that the time is that of training
    steps and of loading data. At most ``parallel`` runs execute at a time, each with ``threads`` threads. Runs whose test is
    complete in the output folder are not repeated.

    Args:
        experiments: Names of files in ``configs/experiments``, without extension.
        minutes: Training time of every run.
        threads: Threads of every run.
        parallel: Number of runs at a time.
        seed: Seed of all runs.
        output: Folder for the runs and ``equal_time.csv``.
        options: Additional command-line arguments of ``cli.py fit`` and ``test`` for every run.

    Raises:
        ValueError: If an experiment is unknown, or a number is not positive.
    """

    experiments: tuple[str, ...]
    minutes: float = 5.0
    threads: int = 1
    parallel: int = 1
    seed: int = 0
    output: Path = Path("runs/equal_time")
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise if an argument is out of range."""
        if unknown := [name for name in self.experiments if not (EXPERIMENTS / f"{name}.yaml").is_file()]:
            raise ValueError(
                f"experiments contains {', '.join(unknown)}, which {EXPERIMENTS} does not: pass names of its files."
            )
        if not self.minutes > 0 or min(self.threads, self.parallel) < 1:
            raise ValueError(
                f"minutes is {self.minutes}, threads {self.threads} and parallel {self.parallel}: all must be positive."
            )


class TimeBudget(Callback):
    """Stop training after a time, and let learning rate schedules end with it.

    The length of the run is estimated after every step from the time that the steps so far took. The first step is not
    counted: it compiles and allocates.

    Args:
        minutes: Training time.

    Raises:
        ValueError: If ``minutes`` is not positive.
    """

    def __init__(self, minutes: float) -> None:
        if not minutes > 0:
            raise ValueError(f"minutes is {minutes}; it must be positive.")
        self.minutes = minutes
        self._started: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the length of the schedules, and stop after the time."""
        if self._started is None:
            self._started = time.monotonic()
            return
        share = (time.monotonic() - self._started) / (60 * self.minutes)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, RunSchedule):
                config.scheduler.total_steps = max(trainer.global_step + 1, round(trainer.global_step / share))
        trainer.should_stop = trainer.should_stop or share >= 1


def main(settings: EqualTimeSettings) -> None:
    """Train and test all experiments, and write and print the table."""
    settings.output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(settings.parallel) as pool:
        rows = list(pool.map(lambda name: _outcome(settings, name), settings.experiments))
    path = settings.output / "equal_time.csv"
    metrics = list(dict.fromkeys(title for row in rows for title in row if title not in _COLUMNS))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_COLUMNS, *metrics], restval="")
        writer.writeheader()
        writer.writerows(rows)
    Console().print(table(rows, [*_COLUMNS, *(metric for metric in metrics if metric.endswith("@0"))]))
    print(f"Wrote {path}.")


def table(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> Table:
    """Return a table with a line per run."""
    printed = Table(*columns)
    for row in rows:
        printed.add_row(*(row.get(column, "") for column in columns))
    return printed


def _outcome(settings: EqualTimeSettings, name: str) -> dict[str, str]:
    """Train and test an experiment unless it is complete, and return its row."""
    folder = settings.output / name
    tests, settings_file = list(folder.glob("version_*/test_instances.csv")), folder / "settings"
    stated = f"{settings.minutes} minutes, {settings.threads} threads, seed {settings.seed}, {list(settings.options)}"
    if tests and (earlier := settings_file.read_text(encoding="utf-8")) != stated:
        raise ValueError(
            f"{folder} holds a run of {earlier}, not of {stated}: pass another --output, or remove the folder."
        )
    if not tests:
        logger = [f"--trainer.logger.init_args.save_dir={folder.parent}", f"--trainer.logger.init_args.name={name}"]
        common = ["--config", str(EXPERIMENTS / f"{name}.yaml"), f"--seed_everything={settings.seed}", *logger]
        budget = [
            "--trainer.callbacks+=studies.equal_time.TimeBudget",
            f"--trainer.callbacks.minutes={settings.minutes}",
        ]
        length = ["--trainer.max_epochs=-1", "--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
        started = time.monotonic()
        _run(settings, folder, "fit", *common, *length, *budget, *settings.options)
        (folder / "minutes").write_text(f"{(time.monotonic() - started) / 60:.2f}", encoding="utf-8")
        checkpoint = max(folder.glob("version_*/checkpoints/last.ckpt"), key=os.path.getmtime)
        weights = ["--ckpt_path", str(checkpoint), "--trainer.precision=32-true"]
        _run(settings, folder, "test", *common, *settings.options, *weights)
        settings_file.write_text(stated, encoding="utf-8")
        tests = list(folder.glob("version_*/test_instances.csv"))
    with max(tests, key=os.path.getmtime).open(newline="", encoding="utf-8") as file:
        instances = list(csv.DictReader(file))
    row = {
        "experiment": name,
        "steps": str(read(max(folder.glob("version_*/checkpoints/last.ckpt"), key=os.path.getmtime))["global_step"]),
        "minutes": (folder / "minutes").read_text(encoding="utf-8"),
        "code": instances[0].get("code size", ""),
        "linear": instances[0].get("linear code", ""),
    }
    return row | {title: mean for title in instances[0] if (mean := _mean(instances, title)) and title not in row}


def _run(settings: EqualTimeSettings, folder: Path, *arguments: str) -> None:
    """Run a command of the program, with its output in the folder of the run.

    Raises:
        RuntimeError: If it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{arguments[0]}.log"
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads)}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.run(  # noqa: S603
            [sys.executable, "cli.py", *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if process.returncode:
        raise RuntimeError(f"cli.py {arguments[0]} failed with exit status {process.returncode}: see {log}.")


def _mean(instances: Sequence[dict[str, str]], title: str) -> str:
    """Return the mean of a column over the instances, empty if it has no numbers."""
    try:
        return f"{statistics.fmean(float(instance[title]) for instance in instances):.3f}"
    except ValueError:
        return ""


if __name__ == "__main__":
    main(auto_cli(EqualTimeSettings))
