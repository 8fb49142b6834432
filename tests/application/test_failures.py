"""Failures of memory and of worker processes print one message with the settings that help, and their values."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from program import refused, run, start_fork, tiny
from torch.utils.data import get_worker_info

import tools
from application.failures import explain_failure
from composers import Composer
from datamodules import SamplePhotos

LAST = "runs/unnamed/version_0/checkpoints/last.ckpt"
RESUME = (
    f"Last checkpoint: {LAST}. Resume: python cli.py fit --config runs/unnamed/version_0/config.yaml --ckpt_path {LAST}"
)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _out_of_memory(self, batch, batch_idx):
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB."
    )


@pytest.mark.parametrize(
    ("command", "step", "expected", "excluded"),
    [
        (
            "fit",
            "training_step",
            [
                "--data.init_args.batch_size 4 (",
                "--trainer.accumulate_grad_batches 1 (",
                "--trainer.precision 32-true (",
            ],
            ["--data.init_args.num_workers"],
        ),
        ("validate", "validation_step", ["--data.init_args.eval_batch_size "], ["accumulate"]),
    ],
)
def test_exhausted_device_names_the_settings(command, step, expected, excluded, monkeypatch):
    arguments = [] if command == "fit" else ["--ckpt_path", LAST]
    if command != "fit":
        run("fit", *tiny("ipc"))
    monkeypatch.setattr(Composer, step, _out_of_memory)
    message = refused(command, *tiny("ipc"), *arguments)
    assert message.startswith("error: Out of memory: CUDA out of memory. Tried to allocate 20.00 GiB.")
    for text in expected:
        assert text in message
    for text in excluded:
        assert text not in message
    assert ("No checkpoint was saved yet" if command == "fit" else "Run the command again.") in message


def test_settings_of_an_inner_loop_are_named(monkeypatch):
    monkeypatch.setattr(Composer, "training_step", _out_of_memory)
    message = refused("fit", *tiny("meta_ipc"))
    assert "--model.init_args.inner.init_args.rule.init_args.recompute false (true)" in message
    assert "--model.init_args.inner.init_args.samples_per_step " in message


def test_exhausted_address_space_names_the_settings():
    """The limit leaves room for the model, and none for a batch of a million images."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    step = Composer.training_step

    def limited(self, batch, batch_idx):
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
        torch.empty(1 << 34)
        return step(self, batch, batch_idx)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Composer, "training_step", limited)
            message = refused("fit", *tiny("ipc"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert message.startswith("error: Out of memory: ")
    assert "you tried to allocate 68719476736 bytes" in message
    assert "--data.init_args.batch_size 4 (" in message


def test_other_errors_are_left_to_others():
    assert explain_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explain_failure(OSError(2, "No such file or directory")) is None


def test_tool_without_memory_prints_no_traceback(capsys):
    error = MemoryError("Unable to allocate 8 GiB")
    tools._report(MemoryError, error, None)
    assert capsys.readouterr().err == (
        "error: Out of memory: Unable to allocate 8 GiB. Reduce the size, the batch size or the memory limit (see --help).\n"
    )


def _kill_worker():
    """Replace the data sets by ones that kill their worker processes in the second epoch."""
    setup = SamplePhotos.setup

    def changed(self, stage):
        setup(self, stage)
        for name in ("train_set", "val_set", "test_set"):
            if hasattr(self, name):
                dataset = getattr(self, name)
                setattr(self, name, Deadly(dataset, os.environ.get("DEADLY_AFTER", "0")))

    SamplePhotos.setup = changed


class Deadly(torch.utils.data.Dataset):
    """A data set that kills the worker that reads it, once a file says that an epoch is done."""

    def __init__(self, dataset, after):
        self.dataset, self.after = dataset, after

    def __getattr__(self, name):
        return getattr(self.__dict__["dataset"], name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if get_worker_info() is not None and (not int(self.after) or Path(LAST).is_file()):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.dataset[index]


@pytest.mark.parametrize(
    ("command", "after"),
    [("fit", 1), ("test", 0)],
)
@pytest.mark.slow
def test_killed_worker_prints_one_message(command, after, tmp_path):
    arguments = ["--data.init_args.num_workers=1"]
    if command == "fit":
        arguments.append("--trainer.max_epochs=3")
    else:
        run("fit", *tiny("ipc"))
        arguments += ["--ckpt_path", LAST]
    files = [tmp_path / "stdout", tmp_path / "stderr"]
    commands = [[command, *tiny("ipc"), *arguments]]
    process = start_fork(commands, tmp_path, files, _kill_worker, DEADLY_AFTER=str(after))
    process.join(120)
    process.kill()
    process.join()
    stderr = files[1].read_text()
    assert process.exitcode == 1, stderr
    assert "Traceback" not in stderr
    message = stderr[stderr.index("error: ") :]
    assert message.startswith("error: The data-loading worker process ")
    assert " is killed by signal: Killed. It probably ran out of memory" in message
    assert "--data.init_args.num_workers 1, --data.init_args.batch_size 4" in message
    assert (RESUME if command == "fit" else "Run the command again.") in message
