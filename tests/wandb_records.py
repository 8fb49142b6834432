"""Read the records of offline W&B runs."""

import contextlib
import os
import struct

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger
from wandb.proto import wandb_internal_pb2

from application.wandb_logger import BoundedWandbLogger, WandbSettings


@contextlib.contextmanager
def no_account(folder):
    """Set the environment of a user without a W&B account or network, with a home folder of the test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.setenv("NETRC", str(folder / "netrc"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        try:
            yield
        finally:
            wandb.teardown()


def read_records(folder):
    """Return the records of the only W&B run in a run folder: a LevelDB log of protocol buffers."""
    wandb.teardown()  # the W&B process writes the last records when it exits
    [path] = folder.glob("wandb/*run-*/run-*.wandb")
    content, position, record, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        remaining = 2**15 - position % 2**15
        if remaining < 7:  # a block ends with padding
            position += remaining
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or its last part
            records.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return records


def make_logger(local=None, stage="fit", checkpoint_path=None, config=None, **settings):
    """Return the W&B logger for a CSVLogger."""
    return BoundedWandbLogger(
        WandbSettings(**settings), local or CSVLogger("runs", "unnamed"), config, stage, checkpoint_path
    )
