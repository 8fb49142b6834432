"""Run a sweep file of Weights & Biases (W&B) locally: ``python -m studies.sweep FILE`` trains its runs and compares them.

Several processes may run the same command at the same time, for example the tasks of a SLURM array: each takes the next run
that is neither complete nor in progress.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from jsonargparse.typing import PositiveInt
from rich.console import Console

from studies import ablations, sweep_results
from studies.hyperband import losses_of
from studies.search import read_sweep
from studies.sweep_runs import FAILED, FINISHED, INTERRUPTED, STOPPED, SweepRun, Watcher, validations

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True)
class SweepSettings:
    """Train the runs of a sweep one after the other, and compare them by its metric.

    Complete runs are not repeated, interrupted runs continue from their last checkpoint, and failed runs are tried again.
    W&B is disabled unless WANDB_MODE is set.

    Args:
        file: Sweep in the format of Weights & Biases.
        output: Folder for the runs, ``runs.csv`` and ``runs.png``. If None, ``runs/sweeps/<name of the file>``.
        runs: Maximum number of runs of the sweep. If None, ``run_cap`` of the file, or else the complete grid.
        seed: Seed of random and Bayesian search. The values of a run of a random search depend only on it and on its number.
        only: Values to use, by parameter, for example ``{"seed_everything": [0]}``. If None, all values.
        options: Additional command-line arguments of every run.
        best: Number of runs in the table.
    """

    file: Path
    output: Path | None = None
    runs: PositiveInt | None = None
    seed: int = 0
    only: dict[str, list[Any]] | None = None
    options: tuple[str, ...] = ()
    best: PositiveInt = 10


class LocalSweep:
    """The runs of a sweep on this machine.

    Args:
        settings: Settings of the command.
    """

    def __init__(self, settings: SweepSettings) -> None:
        self.settings = settings
        self.folder = settings.output or Path("runs", "sweeps", settings.file.stem)
        self.sweep = read_sweep(settings.file)
        if settings.only is not None:
            self.sweep = self.sweep.restricted(settings.only)
        count = self.sweep.num_runs() if settings.runs is None else settings.runs
        if count is None:
            raise ValueError(
                f"{settings.file}: method {self.sweep.method} has no end: pass --runs, or set run_cap in the file."
            )
        self._grid = self.sweep.grid() if self.sweep.method == "grid" else None
        self.count = count if self._grid is None else min(count, len(self._grid))
        self.console = Console(stderr=True, soft_wrap=True)
        self.failed: list[SweepRun] = []
        self._current: SweepRun | None = None
        self.watcher = Watcher(self._is_hopeless)

    def started(self) -> list[SweepRun]:
        """Return all runs of the sweep that have started, by number."""
        paths = [self._folder(number) for number in range(1, self.count + 1)]
        return [run for path in paths if (run := SweepRun.read(path)) is not None]

    def train(self) -> None:
        """Train the runs that are neither complete nor in progress elsewhere, until a signal arrives."""
        previous = {number: signal.signal(number, self.watcher.handle) for number in _SIGNALS}
        try:
            for number in range(1, self.count + 1):
                run = SweepRun(number, self._folder(number), {}, [], [])
                with run.reserved() as lock:
                    if lock is not None:
                        self._continue(number, lock)
                if self.watcher.received:
                    break
        finally:
            for signal_number, handler in previous.items():
                signal.signal(signal_number, handler)

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:03d}"

    def planned(self, number: int) -> SweepRun:
        """Return the run of a number: the one in its folder, if it has started, else a new one.

        Raises:
            ValueError: If the run in the folder belongs to another sweep.
        """
        earlier = SweepRun.read(self._folder(number))
        if self._grid is not None:
            positions, values = [], self._grid[number - 1]
        else:
            positions = self._positions(number) if earlier is None else earlier.positions
            values = self.sweep.values_at(positions)
        folder = self._folder(number)
        logger = "--trainer.logger.init_args"
        command = [
            *self.sweep.render(values),
            f"{logger}.save_dir={folder.parent}",
            f"{logger}.name={folder.name}",
            *self.settings.options,
        ]
        planned = SweepRun(number, folder, values, command, positions)
        if earlier is None:
            return planned
        if earlier.command != command:
            raise ValueError(
                f"{folder} contains a run of another sweep or with other options ({' '.join(earlier.command[1:])}): choose "
                "another --output, or delete the folder."
            )
        return earlier

    def _positions(self, number: int) -> list[float]:
        """Return the positions of a new run in the search space."""
        if self.sweep.method == "random":
            return self.sweep.drawn(self.settings.seed, number)
        results = [(run.positions, losses[-1]) for run in self.started() if (losses := self._losses(run))]
        return self.sweep.proposed(self.settings.seed, number, results)

    def _continue(self, number: int, lock: int) -> None:
        """Train a run unless it is complete, and record how it ended."""
        run = self._current = self.planned(number)
        if run.is_complete:
            return
        varied = [parameter.name for parameter in self.sweep.parameters if parameter.is_searched]
        values = ", ".join(f"{name}={run.values[name]}" for name in varied)
        self.console.print(f"run {number} of {self.count}: {values}", highlight=False, markup=False)
        run.state = INTERRUPTED
        run.save()
        run.status = self.watcher.wait(run.start(lock))
        run.state = self._state(run.status)
        run.save()
        if run.state == FAILED:
            self.failed.append(run)
            message = f"run {number} failed with exit status {run.status}: {run.last_line()} ({run.log})"
            self.console.print(message, highlight=False, markup=False)
        elif run.state == STOPPED:
            length = len(self._losses(run))
            self.console.print(f"run {number} stopped early after {length} validations", highlight=False)

    def _state(self, status: int) -> str:
        """Return the state of a run after its process ended."""
        if status == 0:
            return FINISHED
        if self.watcher.received:
            return INTERRUPTED
        return STOPPED if self.watcher.has_stopped and status in (-signal.SIGTERM, 128 + signal.SIGTERM) else FAILED

    def _losses(self, run: SweepRun) -> list[float]:
        """Return the values of the metric of a run, lower is better."""
        metric = self.sweep.metric
        assert metric is not None
        return losses_of([row[metric.name] for row in validations(run.folder) if metric.name in row], metric.goal)

    def _is_hopeless(self) -> bool:
        """Return whether Hyperband stops the current run, given all runs in the folder."""
        run = self._current
        if run is None or self.sweep.hyperband is None:
            return False
        others = [self._losses(other) for other in self.started() if other.number != run.number]
        return self.sweep.hyperband.stops(self._losses(run), others)


def _report(local: LocalSweep) -> Iterator[Any]:
    """Write the results, and yield what is printed about them."""
    sweep, folder = local.sweep, local.folder
    started = local.started()
    rows = sweep_results.ranked(sweep_results.rows_of(started), sweep.metric)
    sweep_results.write(rows, folder / "runs.csv")
    files = [folder / "runs.csv"]
    if outcomes := ablations.outcomes_of(sweep, started):
        ablations.write(outcomes, folder / "ablations.csv")
        ablations.draw(outcomes).savefig(folder / "ablations.png")
        files += [folder / "ablations.csv", folder / "ablations.png"]
        yield ablations.table(outcomes)
    else:
        figure = None if sweep.metric is None else sweep_results.draw(rows, sweep.parameters, sweep.metric)
        if figure is not None:
            figure.savefig(folder / "runs.png")
            files.append(folder / "runs.png")
        yield sweep_results.table(rows, sweep.parameters, sweep.metric, local.settings.best)
    if missing := local.count - sum(run.is_complete for run in started) - len(local.failed):
        yield f"{missing} of {local.count} runs are not complete; the same command continues them."
    yield f"Results: {', '.join(str(file) for file in files)}"


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    settings = auto_cli(SweepSettings, args=args)
    try:
        local = LocalSweep(settings)
        local.train()
        for part in _report(local):
            Console(soft_wrap=True).print(part)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if local.watcher.received:
        sys.exit(128 + local.watcher.received)
    if local.failed:
        numbers = ", ".join(str(run.number) for run in local.failed)
        sys.exit(f"error: run {numbers} of {settings.file} failed; the same command tries again.")


if __name__ == "__main__":
    main()
