"""What W&B recorded offline, read back for tests."""

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
    """Be a user without an account, whose home is a folder of the test, on a machine without a network."""
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
    """Return the records of the only W&B run in the folder of a run: a LevelDB log of protocol buffers."""
    wandb.teardown()  # its process writes the last records when it ends
    [path] = folder.glob("wandb/*run-*/run-*.wandb")
    content, position, record, found = path.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        left = 2**15 - position % 2**15
        if left < 7:  # a block ends with padding
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return found


def make_logger(local=None, stage="fit", checkpoint_path=None, config=None, **settings):
    """Return the logger of W&B beside a CSVLogger."""
    return BoundedWandbLogger(
        WandbSettings(**settings), local or CSVLogger("runs", "unnamed"), config, stage, checkpoint_path
    )
