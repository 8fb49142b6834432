"""The program as tests run it: tiny configs, commands in this process, and what they leave behind."""

import contextlib
import csv
import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import cli
from datamodules import SamplePhotos
from datamodules.images import sample_photos as samples
from datamodules.images.sample_photos import Photographs

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
FOLDERS = [TESTS, *sorted({path.parent for path in TESTS.rglob("test_*.py")} - {TESTS})]  # of what tests define
COMPOSERS = ("ipc", "transinr")
SAVE_DIR = "--trainer.logger.init_args.save_dir"
NAME = "--trainer.logger.init_args.name"

_scaled_once = functools.cache(samples._scaled)  # the same images in every test


class OddPhotos(SamplePhotos):
    """`SamplePhotos` with 33 held-out images, which two processes cannot share evenly."""

    def setup(self, stage):
        super().setup(stage)
        self.val_set = self.test_set = Photographs(self.test_set.images[:-1])


def tiny(composer):
    """Return the arguments that choose a tiny composer, ``ipc`` or ``transinr``, and tiny photographs."""
    return ["--config", str(TESTS / "configs" / f"tiny_{composer}.yaml")]


def _main(args):
    """Run the program as if it had been called with these arguments."""
    with mock.patch.object(samples, "_scaled", _scaled_once), mock.patch.object(sys, "argv", ["cli.py"]):
        cli.main([str(argument) for argument in args])


def run(*args):
    """Run a command of the program in this process and return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        _main(args)
    return printed.getvalue()


def asked(*args):
    """Run a command that only prints, as ``--help`` does, and return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        _main(args)
    assert ended.value.code in (None, 0)
    return printed.getvalue()


def refused(*args):
    """Run a command that a user got wrong and return the message, after checking that it is one, and no traceback."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), pytest.raises(SystemExit) as ended:
        run(*args)
    code = ended.value.code
    message = code if isinstance(code, str) else told.getvalue()
    assert code not in (None, 0)
    assert message.startswith("error: ")
    assert message.count("error: ") == 1
    for noise in ("Traceback", "usage:", "Namespace(", "NestedArg(", "Union subtypes", "NoneType"):
        assert noise not in message
    return message


def run_process(*args, cwd, limit=120):
    """Run a command of the program in a process of its own, and its children, and return what it printed."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *FOLDERS))),
        "PYTHONWARNINGS": "error::UserWarning",
        "OMP_NUM_THREADS": "1",
    }
    finished = subprocess.run(
        [sys.executable, str(REPOSITORY / "cli.py"), *(str(argument) for argument in args)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def keep_every(steps):
    """Return the arguments of a second `ModelCheckpoint` that keeps every so many steps as ``step-<n>.ckpt``."""
    saver = (
        "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {filename: 'step-{step}', "
        f"every_n_train_steps: {steps}, save_top_k: -1, auto_insert_metric_name: false}}}}"
    )
    return ["--trainer.callbacks+", saver]


def rows(path):
    """Return the rows of a CSV as dictionaries without the empty cells."""
    with Path(path).open(newline="") as file:
        return [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)]


def column(path, name):
    """Return the numbers of a column of a CSV, without its empty cells."""
    return [float(row[name]) for row in rows(path) if name in row]


def checkpoint(folder, name="last"):
    """Return the content of a checkpoint of a run."""
    return torch.load(Path(folder, "checkpoints", f"{name}.ckpt"), weights_only=True)


def assert_same(found, wanted):
    """Compare the nested content of two checkpoints bit by bit."""
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == wanted
