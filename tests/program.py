"""Run the program in tests with tiny configs, and read the files it writes."""

import contextlib
import csv
import functools
import io
import json
import os
import socket
import struct
import subprocess
import sys
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

_scaled_once = functools.cache(samples._scaled)  # shared by all tests


class OddPhotos(SamplePhotos):
    """`SamplePhotos` with 33 held-out images, an odd number for two processes."""

    def setup(self, stage):
        super().setup(stage)
        self.val_set = self.test_set = Photographs(self.test_set.images[:-1])


def tiny(composer):
    """Return the arguments for the config of a tiny composer, such as ``ipc`` or ``transinr``, and tiny data."""
    return ["--config", str(TESTS / "configs" / f"tiny_{composer}.yaml")]


def _main(args):
    """Run the program with command-line arguments."""
    with mock.patch.object(samples, "_scaled", _scaled_once), mock.patch.object(sys, "argv", ["cli.py"]):
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


_COMMANDS = "import json, sys, program; [program.run(*command) for command in json.loads(sys.argv[1])]"


def run_two(commands, cwd, limit=240):
    """Run commands of the program one after the other in two processes, started as on a cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *FOLDERS))),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    arguments = json.dumps([[str(argument) for argument in command] for command in commands])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _COMMANDS, arguments],
            cwd=cwd,
            env=environment | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=limit)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)


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
