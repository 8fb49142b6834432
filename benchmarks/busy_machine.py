"""Training beside busy processes, by how threads wait for each other: ``python -m benchmarks.busy_machine``."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

_ROOT = Path(__file__).parent.parent
_CONFIG = _ROOT / "configs" / "experiments" / "photos_patch_ipc.yaml"
_WARM_UP = 3  # steps
# `cli.py` sets a spin count of 1,000; without it, the OpenMP library of GCC spins 300,000 times.
_WAITING = {
    "1,000 spins": {},
    "300,000 spins": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@dataclass(frozen=True)
class BusySettings:
    """Time training steps of an experiment on an idle machine and beside busy processes.

    Args:
        config: Config of the experiment.
        steps: Timed steps of a run, after three warm-up steps.
        busy: Number of busy processes; every setting is also timed without them.
        repeats: Number of runs per setting.
        limit: Seconds after which a run is ended; its time counts as infinite.
        csv: CSV file to which one row per setting is appended. If None, no file is written.

    Raises:
        ValueError: If a number is not positive.
    """

    config: Path = _CONFIG
    steps: int = 20
    busy: int = 2
    repeats: int = 3
    limit: float = 300.0
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if min(self.steps, self.busy, self.repeats, self.limit) <= 0:
            raise ValueError(
                f"steps is {self.steps}, busy {self.busy}, repeats {self.repeats} and limit {self.limit}; all must be positive."
            )


class StepTimer(Callback):
    """Print the mean time of the training steps after the first three, as JSON."""

    def __init__(self) -> None:
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock after the warm-up."""
        if trainer.global_step == _WARM_UP:
            self._start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the mean."""
        print(json.dumps({"seconds": (time.perf_counter() - self._start) / (trainer.global_step - _WARM_UP)}))


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keep a number of processes busy within the context."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds_per_step(settings: BusySettings, environment: dict[str, str]) -> float:
    """Return the mean time of a training step in a new process; infinity if the run exceeds the limit."""
    command = [sys.executable, str(_ROOT / "cli.py"), "fit", "--config", str(settings.config)]
    command += [f"--trainer.max_steps={settings.steps + _WARM_UP}", "--trainer.max_epochs=-1", "--trainer.logger=false"]
    command += ["--trainer.limit_val_batches=0", "--trainer.callbacks+=benchmarks.busy_machine.StepTimer"]
    variables = os.environ | {"PYTHONPATH": str(_ROOT)} | environment
    try:
        printed = subprocess.run(  # noqa: S603 - this repository
            command, check=True, capture_output=True, text=True, env=variables, timeout=settings.limit
        ).stdout
    except subprocess.TimeoutExpired:
        return float("inf")
    [line] = [line for line in printed.splitlines() if line.startswith("{")]
    return float(json.loads(line)["seconds"])


def run(settings: BusySettings) -> dict[tuple[str, int], list[float]]:
    """Return the seconds per step by wait policy and number of busy processes; the settings alternate."""
    results: dict[tuple[str, int], list[float]] = {}
    for _ in range(settings.repeats):
        for busy in (0, settings.busy):
            with busy_processes(busy):
                for name, environment in _WAITING.items():
                    results.setdefault((name, busy), []).append(seconds_per_step(settings, environment))
    return results


def report(settings: BusySettings, results: dict[tuple[str, int], list[float]]) -> None:
    """Print a table, and append it to the CSV file."""
    headings = ("waiting", "idle [ms]", f"beside {settings.busy} busy processes [ms]", "busy / idle")
    table = Table(title=f"Training step of {settings.config.stem}, {os.cpu_count()} cores", title_justify="left")
    for heading in headings:
        table.add_column(heading.replace("[", r"\["), justify="left" if heading == "waiting" else "right")
    lines = []
    for name in _WAITING:
        idle, busy = (statistics.median(results[name, number]) for number in (0, settings.busy))
        lines.append([name, f"{1000 * idle:.0f}", f"{1000 * busy:.0f}", f"{busy / idle:.2f}"])
        table.add_row(*lines[-1])
    Console().print(table)
    if settings.csv is not None:
        is_new = not settings.csv.exists()
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([*([headings] if is_new else []), *lines])


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    settings = auto_cli(BusySettings, args=args)
    report(settings, run(settings))


if __name__ == "__main__":
    main()
