"""A run of a sweep: its folder, its state on disk, and the process that trains it."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.storage.files import written_whole

RECORD = "run.json"
FINISHED, STOPPED, FAILED, INTERRUPTED = "finished", "stopped", "failed", "interrupted"
_LOG = "output.log"
_POLL = 1.0  # seconds between two checks of the metrics of a run


@dataclass
class SweepRun:
    """A run of a sweep, whose state is kept in ``run.json`` of its folder, so that any later command can continue.

    Args:
        number: Number of the run in the sweep, from 1.
        folder: Folder of the run; its versions are those of ``cli.py fit``.
        values: Values of the parameters, by name.
        command: Command that trains it from the beginning.
        positions: Positions of the values in the search space.
        state: ``finished``, ``stopped`` (early), ``failed``, ``interrupted``, or empty before it starts.
        status: Exit status of the last process.
    """

    number: int
    folder: Path
    values: dict[str, Any]
    command: list[str]
    positions: list[float]
    state: str = ""
    status: int | None = None

    @property
    def is_complete(self) -> bool:
        """Return whether nothing is left to train: the run is finished, or was stopped early."""
        return self.state in (FINISHED, STOPPED)

    @property
    def log(self) -> Path:
        """Return the file with the output of the run."""
        return self.folder / _LOG

    def save(self) -> None:
        """Write ``run.json``."""
        record = {name: value for name, value in vars(self).items() if name not in ("folder", "number")}
        with written_whole(self.folder / RECORD) as part:
            part.write_text(json.dumps(record, indent=1), encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> SweepRun | None:
        """Return the run in a folder; None if there is none."""
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{folder / RECORD} is damaged: delete {folder} to train this run again.") from error
        return SweepRun(int(folder.name), folder, **record)

    @contextlib.contextmanager
    def reserved(self) -> Iterator[int | None]:
        """Reserve the run for this process and its children; yield None if another process has reserved it.

        The training process inherits the lock: if the sweep is killed, the run stays reserved until its training ends.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
        finally:
            os.close(descriptor)

    def start(self, descriptor: int) -> subprocess.Popen[bytes]:
        """Start training, from the last checkpoint if there is one.

        Args:
            descriptor: File descriptor of the lock.
        """
        resume = ["--ckpt_path=last"] if any(self.folder.glob("version_*/checkpoints/last.ckpt")) else []
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = {"WANDB_MODE": "disabled", **os.environ, "COLUMNS": "200", "PATH": path}
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                [*self.command, *resume],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[descriptor],
                process_group=0,  # Ctrl-C in a terminal reaches only the sweep, which stops the run itself
            )

    def last_line(self) -> str:
        """Return the error message in the output of the run, or its last line."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        lines = [line.strip() for line in lines if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["no output"])[-1].removeprefix("error: ")


class Watcher:
    """Wait for the process of a run, pass on signals, and stop the run if it is not worth continuing.

    Args:
        is_hopeless: Function that returns whether to stop the run now.
    """

    def __init__(self, is_hopeless: Callable[[], bool]) -> None:
        self._is_hopeless = is_hopeless
        self._process: subprocess.Popen[bytes] | None = None
        self.received = 0
        self.has_stopped = False

    def handle(self, number: int, frame: Any) -> None:
        """Pass a signal on to the run, which saves and exits; Ctrl-C as SIGTERM. A second signal kills it."""
        process, second = self._process, bool(self.received)
        self.received = self.received or number
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL if second else signal.SIGTERM if number == signal.SIGINT else number)

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit status of a run; end the run if an error is raised."""
        self._process, self.has_stopped = process, False
        if self.received:  # arrived while the process was started
            process.terminate()
        try:
            return self._wait(process)
        except BaseException:
            process.terminate()
            process.wait()
            raise

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit status of a run, which ends early if it is hopeless."""
        while True:
            try:
                return process.wait(timeout=_POLL)
            except subprocess.TimeoutExpired:
                if not self.has_stopped and not self.received and self._is_hopeless():
                    self.has_stopped = True
                    process.terminate()


def validations(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of all validations of a run, in order of steps; a resumed run has several files of metrics.

    Args:
        folder: Folder with the versions of the run.
    """
    rows: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob("version_*/metrics*.csv"), key=_age):
        for row in _rows(path):
            numbers = {name: number for name, text in row.items() if (number := _number(text)) is not None}
            if any(name.startswith("val/") for name in numbers) and "step" in numbers:
                rows.setdefault(int(numbers["step"]), {}).update(numbers)
    return [rows[step] for step in sorted(rows)]


def _age(path: Path) -> tuple[int, float]:
    """Return the order of a file of metrics: by version, then ``metrics_<n>.csv`` of a requeued job, then ``metrics.csv``."""
    version, suffix = path.parent.name.removeprefix("version_"), path.stem.removeprefix("metrics").lstrip("_")
    return int(version) if version.isdigit() else 0, int(suffix) if suffix.isdigit() else float("inf")


def _rows(path: Path) -> Sequence[dict[str, str]]:
    """Return the rows of a CSV file that may be written at the same time."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # renamed or deleted since it was listed
        return []
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))  # without a row that is being written


def _number(text: Any) -> float | None:
    """Return a cell as a number; None if it is empty or incomplete."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
