"""A rank that dies, fails or is stopped ends all ranks with one message; a suspended or a completed run does not."""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from program import FOLDERS, NAME, REPOSITORY, start_fork, tiny

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


def _run_both(folder, prepare, *command, ranks=(0, 1), limit=100):
    """Run a command on two ranks until ``ranks`` have ended, or ``limit`` seconds have passed; return what they printed."""
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
        for rank in ranks:
            processes[rank].join(max(deadline - time.monotonic(), 0))
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
    result = _run_both(tmp_path, prepare, "fit", *tiny("ipc"), *TWO, ranks=[1 - lost])
    assert result.codes[1 - lost] == os.EX_TEMPFAIL, "\n".join(result.stderr)
    what = DIED if number == signal.SIGKILL else SILENT
    assert _errors(result.stderr[1 - lost]) == _message(f"Rank {lost} of 2 on {HOST} {what}")


# Kill or stop the second process in its second step, after an epoch of one step and its checkpoint.
_LOSE_RANK_1 = """
import os, warnings, cli
from composers import Composer
warnings.filterwarnings("ignore", message=".*srun.*")
step, number = Composer.training_step, int(os.environ["LOSS"])
def lost(self, batch, batch_idx):
    if os.environ.get("LOCAL_RANK") == "1" and self.global_step == 1:
        os.kill(os.getpid(), number)
    return step(self, batch, batch_idx)
Composer.training_step = lost
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "number"), [("lightning", signal.SIGSTOP), ("torchrun", signal.SIGKILL)])
def test_launched_ranks_end_with_one_message(launcher, number, tmp_path):
    Path("program.py").write_text(_LOSE_RANK_1)
    start = [] if launcher == "lightning" else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    once = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0"]
    command = [sys.executable, *start, "program.py", "fit", *tiny("ipc"), *TWO, *once]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *FOLDERS))),
        "OMP_NUM_THREADS": "1",
        "LOSS": str(int(number)),
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        stderr = process.communicate(timeout=120)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (1 if launcher == "torchrun" else os.EX_TEMPFAIL), stderr
    last = "runs/two/version_0/checkpoints/last.ckpt"
    assert stderr.count("error: ") == 1, stderr
    assert (
        f"error: Rank 1 of 2 on {HOST} {SILENT if number == signal.SIGSTOP else DIED} All ranks stop. Last checkpoint: {last}. "
        f"Resume: python cli.py fit --config runs/two/version_0/config.yaml --ckpt_path {last}\n"
    ) in stderr
    assert "gloo" not in stderr
