"""SIGTERM and SIGUSR1: training saves a checkpoint, tests and predictions write the results so far."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from program import FOLDERS, NAME, REPOSITORY, assert_same, checkpoint, rows, run, start_fork, tiny

from callbacks.signals import StopOnSignal
from composers import Composer


def _signalled(step, number, at, training):
    """Return a step that sends this process a signal in batch ``at``; not in a validation within training."""

    def signalled_step(self, batch, batch_idx):
        if batch_idx == at and (training or self.trainer.state.fn != "fit"):
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    return signalled_step


def _send_in_batch(number, at):
    """Let the steps of this process send it a signal in batch ``at``."""
    for name in ("training_step", "test_step", "validation_step", "predict_step"):
        setattr(Composer, name, _signalled(getattr(Composer, name), number, at, name == "training_step"))


def _run_with_signal(tmp_path, number, at, *args, extra=None):
    """Run a command that receives a signal in batch ``at``; return its exit status and what it printed."""
    files = [tmp_path / "printed.txt", tmp_path / "errors.txt"]
    process = start_fork([args], tmp_path, files, functools.partial(_send_in_batch, number, at), **extra or {})
    process.join(240)
    process.kill()
    process.join()
    return SimpleNamespace(returncode=process.exitcode, stdout=files[0].read_text(), stderr=files[1].read_text())


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "batch", [pytest.param(batch, marks=pytest.mark.slow) for batch in (2, 5)]
)  # 5 is the last batch of an epoch
def test_run_resumed_after_a_signal_equals_an_uninterrupted_run(batch, tmp_path):
    two = "--trainer.max_epochs=2"
    run("fit", *tiny("ipc"), two, NAME, "reference")
    process = _run_with_signal(tmp_path, signal.SIGTERM, batch, "fit", *tiny("ipc"), two, NAME, "cut")
    assert process.returncode == 143, process.stderr
    last = "runs/cut/version_0/checkpoints/last.ckpt"
    assert f"SIGTERM: training stopped at step {batch + 1}." in process.stderr
    assert f"--ckpt_path {last}" in process.stderr
    assert checkpoint("runs/cut/version_0")["global_step"] == batch + 1
    run("fit", *tiny("ipc"), two, NAME, "cut", "--ckpt_path", last)
    actual, expected = (checkpoint(f"runs/{name}") for name in ("cut/version_1", "reference/version_0"))
    for key in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert_same(actual[key], expected[key])


@pytest.mark.slow
def test_slurm_job_without_scontrol_is_not_requeued(tmp_path):
    extra = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", "PATH": str(tmp_path)}
    process = _run_with_signal(tmp_path, signal.SIGUSR1, 1, "fit", *tiny("ipc"), extra=extra)
    assert process.returncode == 128 + signal.SIGUSR1, process.stderr
    assert "SLURM job 5_3 was not requeued: scontrol is not in PATH." in process.stderr


@pytest.mark.slow
def test_interrupted_test_writes_its_rows(tmp_path):
    run("fit", *tiny("ipc"))
    weights = ["--ckpt_path", "runs/unnamed/version_0/checkpoints/last.ckpt"]
    process = _run_with_signal(tmp_path, signal.SIGTERM, 0, "test", *tiny("ipc"), NAME, "tested", *weights)
    assert process.returncode == 143, process.stderr
    assert "SIGTERM: test stopped after batch 1." in process.stderr
    assert "partial" in process.stdout
    assert len(rows("runs/tested/version_0/test_instances.csv")) == 10


@pytest.mark.slow
def test_interrupted_prediction_writes_its_table(tmp_path):
    run("fit", *tiny("ipc"))
    weights = ["--ckpt_path", "runs/unnamed/version_0/checkpoints/last.ckpt"]
    Path("images").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (40 * number, 90, 20)).save(f"images/{number}.png")
    data = ["--images", "images", "--data.init_args.batch_size=1", "--output", "predicted", *weights]
    process = _run_with_signal(tmp_path, signal.SIGTERM, 1, "predict", *data)
    assert process.returncode == 143, process.stderr
    assert "SIGTERM: predict stopped after batch 2." in process.stderr
    assert [row["name"] for row in rows("predicted/predictions.csv")] == ["0", "1"]


# Send a signal to the first process between a collective call and the next line, where the second process has none yet.
_SIGNAL_IN_AGREEMENT = """
import os, signal, sys, torch, cli
calls, all_reduce = [], torch.distributed.all_reduce
def interrupted(*arguments, **named):
    all_reduce(*arguments, **named)
    if sys._getframe(1).f_code.co_name == "_agree" and os.environ.get("LOCAL_RANK", "0") == "0":
        calls.append(named)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
torch.distributed.all_reduce = interrupted
cli.main()
"""


@pytest.mark.slow
def test_two_processes_save_and_stop_together(tmp_path):
    Path("program.py").write_text(_SIGNAL_IN_AGREEMENT)
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=9", NAME, "two"]
    command = [sys.executable, "program.py", "fit", *tiny("ipc"), *two]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *FOLDERS))), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        stderr = process.communicate(timeout=240)[1]
    finally:  # processes that wait for each other would do so for half an hour
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143, stderr
    assert stderr.count("SIGTERM: training stopped at step 5.") == 1  # the signal arrives after step 4
    assert checkpoint("runs/two/version_0")["global_step"] == 5


def test_signal_during_an_agreement_counts_from_the_next_one(monkeypatch):
    stopper = StopOnSignal()
    stopper._deferred, stopper._group = True, object()
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, group: stopper.handle(signal.SIGTERM, None))
    assert stopper._agree() == 0  # as on a process that has not received it
    assert stopper._agree() == signal.SIGTERM


@pytest.mark.slow
def test_slurm_job_is_requeued(tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    scontrol.chmod(0o755)
    extra = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    process = _run_with_signal(tmp_path, signal.SIGUSR1, 1, "fit", *tiny("ipc"), extra=extra)
    assert process.returncode == 128 + signal.SIGUSR1, process.stderr
    assert "SLURM job 7 was requeued." in process.stderr
    assert (tmp_path / "called").read_text() == "requeue 7\n"
    assert checkpoint("runs/unnamed/version_0")["global_step"] == 2


def test_second_signal_exits_immediately(monkeypatch):
    statuses = []
    stopper = StopOnSignal()
    stopper._deferred = True
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    stopper.handle(signal.SIGTERM, None)
    stopper.handle(signal.SIGTERM, None)  # the same signal, sent to the process group
    assert not statuses
    stopper._received_at -= 1
    stopper.handle(signal.SIGTERM, None)
    assert statuses == [143]


def test_signal_during_the_imports_is_handled(tmp_path):
    command = [sys.executable, str(REPOSITORY / "cli.py"), "fit", *tiny("ipc")]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        status = Path(f"/proc/{process.pid}/status")
        for _ in range(3000):
            caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)
            if caught >> (signal.SIGTERM - 1) & 1:
                break
            time.sleep(0.002)
        assert "/torch/lib/" not in Path(f"/proc/{process.pid}/maps").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143


@pytest.mark.slow
def test_signal_before_the_first_batch_exits_immediately(tmp_path):
    code = "import os, cli\ncli.CLI.parse_arguments = lambda *a: os.kill(os.getpid(), 15)\ncli.main()\n"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 143, process.stderr
    assert "SIGTERM: stopped before the first batch" in process.stderr
    assert not Path("runs").exists()
