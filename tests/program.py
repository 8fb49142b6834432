"""Run the program in tests with tiny configs, and read the files it writes."""

import contextlib
import csv
import functools
import io
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
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
FOLDERS = [TESTS, *sorted({path.parent for path in TESTS.rglob("test_*.py")} - {TESTS})]  # importable in subprocesses
COMPOSERS = ("ipc", "transinr")
SAVE_DIR = "--trainer.logger.init_args.save_dir"
NAME = "--trainer.logger.init_args.name"

_FORK_SERVER = multiprocessing.get_context("forkserver")
_FORK_SERVER.set_forkserver_preload(["program", "callbacks.curves", "callbacks.progress", "scaled_photographs"])

_scaled_once = functools.cache(samples._scaled)  # shared by all tests


class FivePhotos(SamplePhotos):
    """`SamplePhotos` with five images for validation, and one for the test."""

    def setup(self, stage):
        super().setup(stage)
        images = self.test_set.images
        self.val_set, self.test_set = Photographs(images[:5]), Photographs(images[:1])


class OddPhotos(SamplePhotos):
    """`SamplePhotos` with 33 held-out images, an odd number for two processes."""

    def setup(self, stage):
        super().setup(stage)
        self.val_set = self.test_set = Photographs(self.test_set.images[:-1])


def tiny(composer):
    """Return the arguments for the config of a tiny composer, such as ``ipc`` or ``transinr``, and tiny data."""
    return ["--config", str(TESTS / "configs" / f"tiny_{composer}.yaml")]


def _main(args):
    """Run the program with command-line arguments, and restore the environment: launchers of processes set their variables."""
    with (
        mock.patch.object(samples, "_scaled", _scaled_once),
        mock.patch.object(sys, "argv", ["cli.py"]),
        mock.patch.dict(os.environ),
    ):
        cli.main([str(argument) for argument in args])


def run(*args):
    """Run a command in this process and return its standard output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        _main(args)
    return printed.getvalue()


def asked(*args):
    """Run a command that prints and exits, such as ``--help``, and return its standard output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as exit_info:
        _main(args)
    assert exit_info.value.code in (None, 0)
    return printed.getvalue()


def refused(*args):
    """Run an invalid command, check that it prints one error message and no traceback, and return the message."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as exit_info:
        run(*args)
    code = exit_info.value.code
    message = code if isinstance(code, str) else printed.getvalue()
    assert code not in (None, 0)
    assert message.startswith("error: ")
    assert message.count("error: ") == 1
    for noise in ("Traceback", "usage:", "Namespace(", "NestedArg(", "Union subtypes", "NoneType"):
        assert noise not in message
    return message


def run_process(*args, cwd, limit=120):
    """Run a command in a subprocess and return its standard output."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *FOLDERS))),
        "PYTHONWARNINGS": "error::UserWarning",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, str(REPOSITORY / "cli.py"), *(str(argument) for argument in args)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def _forked(environment, folder, files, commands, prepare):
    """Run commands of the program in a fork of the fork server, with its own environment, folder and output files."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # for workers of data loaders, as without the fork server
    for number, name in enumerate(files, 1):
        with Path(name).open("w") as file:
            os.dup2(file.fileno(), number)
    warnings.filterwarnings("error", category=UserWarning)
    if prepare is not None:
        prepare()
    for command in commands:
        _main(command)


def start_fork(commands, folder, files, prepare=None, **environment):
    """Start commands in a fork of a process that has only imported the program, which takes most of the time of a command.

    Args:
        commands: Lists of command-line arguments.
        folder: Working directory.
        files: Files for standard output and standard error.
        prepare: Function of a module that the process calls before the commands.
        environment: Additional environment variables.

    Returns:
        The process.
    """
    common = {"PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *FOLDERS))), "OMP_NUM_THREADS": "1"}
    arguments = [[str(argument) for argument in command] for command in commands]
    variables = os.environ | common | environment
    process = _FORK_SERVER.Process(target=_forked, args=(variables, folder, files, arguments, prepare))
    with mock.patch.dict(os.environ, common):  # for the imports of the fork server, which the first process starts
        process.start()
    return process


def run_two(commands, cwd, limit=240, count=2):
    """Run commands of the program one after the other in two processes, as on a cluster; return the first one's output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = {"WORLD_SIZE": str(count), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with tempfile.TemporaryDirectory() as folder:
        files = [[Path(folder, f"{name}_{rank}") for name in ("stdout", "stderr")] for rank in range(count)]
        processes = [start_fork(commands, cwd, files[rank], LOCAL_RANK=str(rank), **cluster) for rank in range(count)]
        deadline = time.monotonic() + limit
        try:
            for process in processes:
                process.join(max(deadline - time.monotonic(), 0))
        finally:
            for process in processes:
                process.kill()
                process.join()
        printed = [path.read_text() for pair in files for path in pair]
    assert [process.exitcode for process in processes] == [0] * count, "\n".join(printed)
    return printed[0]


def keep_every(steps):
    """Return the arguments for a `ModelCheckpoint` that saves ``step-<n>.ckpt`` every ``steps`` steps."""
    saver = (
        "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {filename: 'step-{step}', "
        f"every_n_train_steps: {steps}, save_top_k: -1, auto_insert_metric_name: false}}}}"
    )
    return ["--trainer.callbacks+", saver]


def rows(path):
    """Return the rows of a CSV file as dictionaries without empty cells."""
    with Path(path).open(newline="") as file:
        return [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)]


def column(path, name):
    """Return a column of a CSV file as floats, without empty cells."""
    return [float(row[name]) for row in rows(path) if name in row]


def checkpoint(folder, name="last"):
    """Return the content of a checkpoint in a run folder."""
    return torch.load(Path(folder, "checkpoints", f"{name}.ckpt"), weights_only=True)


def assert_same(actual, expected):
    """Assert that nested containers of tensors are bit-equal."""
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(actual[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for actual_item, expected_item in zip(actual, expected, strict=True):
            assert_same(actual_item, expected_item)
    else:
        assert actual == expected


def damage(path):
    """Flip a bit in the largest record of a checkpoint, which is a tensor, and return the record's name."""
    with zipfile.ZipFile(path) as archive:
        record = max(
            (info for info in archive.infolist() if "/data/" in info.filename), key=lambda info: info.file_size
        )
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack("<HH", content[record.header_offset + 26 : record.header_offset + 30])
    content[record.header_offset + 30 + name + extra + record.file_size // 2] ^= 1
    path.write_bytes(content)
    return record.filename
