"""A rank that dies, fails or is stopped ends all ranks with one message; a suspended or a completed run does not."""

import functools
import multiprocessing.connection
import os
import signal
import socket
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from program import NAME, checkpoint, run, start_fork, tiny

from callbacks.saving import LastCheckpoint
from composers import Composer
from datamodules import SamplePhotos

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", NAME, "two", "--heartbeat.timeout=4"]
HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _before(call, rank, at, action):
    """Return a function that calls ``action`` on a rank before its call number ``at``, counted from 0."""
    counted = []
    warnings.filterwarnings("ignore", message=".*srun.*")  # may be installed, but did not start these processes

    def changed(*arguments, **named):
        counted.append(None)
        if len(counted) == at + 1 and os.environ["LOCAL_RANK"] == str(rank):
            action()
        return call(*arguments, **named)

    return changed


def _inject(owner, name, rank, at, action):
    """Let a rank call ``action`` before call number ``at`` of a method."""
    setattr(owner, name, _before(getattr(owner, name), rank, at, action))


def _signal_self(number):
    os.kill(os.getpid(), number)


def _run_both(folder, prepare, *command, limit=100):
    """Run a command on two ranks until rank 0 or 1 has ended both, or ``limit`` seconds have passed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = {"WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    files = [[folder / f"{name}_{rank}" for name in ("stdout", "stderr")] for rank in range(2)]
    processes = [
        start_fork([command], folder, files[rank], prepare, LOCAL_RANK=str(rank), **cluster) for rank in (0, 1)
    ]
    deadline = time.monotonic() + limit
    try:
        while not any(process.exitcode for process in processes) and time.monotonic() < deadline:
            multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], 1)
            if not any(process.is_alive() for process in processes):
                break
        for process in processes:  # both end, unless one is stopped
            process.join(15)
    finally:
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
            process.join()
    return SimpleNamespace(
        codes=codes, stdout=[pair[0].read_text() for pair in files], stderr=[pair[1].read_text() for pair in files]
    )


def _message(text):
    """Return the error message of a lost rank."""
    return f"error: {text} All ranks stop. No checkpoint was saved yet: run the command again.\n"


def _errors(stderr):
    """Return what was printed after the seed."""
    return "".join(line for line in stderr.splitlines(keepends=True) if "Seed set to" not in line)


DIED = "has died: it was killed, for example for lack of memory, or its host is lost."
SILENT = "has not responded for 4 s: its process is stopped or hangs, or its host is lost."


@pytest.mark.parametrize(
    ("lost", "number", "owner", "method"),
    [
        pytest.param(1, signal.SIGSTOP, Composer, "training_step"),
        pytest.param(0, signal.SIGKILL, Composer, "training_step", marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, Composer, "training_step", marks=pytest.mark.slow),
        pytest.param(1, signal.SIGKILL, SamplePhotos, "setup", marks=pytest.mark.slow),
        pytest.param(0, signal.SIGKILL, LastCheckpoint, "save", marks=pytest.mark.slow),
    ],
)
def test_lost_rank_ends_the_other(lost, number, owner, method, tmp_path):
    prepare = functools.partial(_inject, owner, method, lost, 0, functools.partial(_signal_self, number))
    result = _run_both(tmp_path, prepare, "fit", *tiny("ipc"), *TWO)
    assert result.codes[1 - lost] == os.EX_TEMPFAIL, "\n".join(result.stderr)
    what = DIED if number == signal.SIGKILL else SILENT
    assert _errors(result.stderr[1 - lost]) == _message(f"Rank {lost} of 2 on {HOST} {what}")
