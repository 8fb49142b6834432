"""Checks of the output folder before a run, and messages for exceptions."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from jsonargparse import ArgumentError

from composers.base import Composer
from datamodules.configuration import readable

_CHECKPOINTS_ON_DISK = 3  # the best, the last, and the one being written
_VALUES_PER_PARAMETER = 3  # the weight and two moments of Adam
# A message with this text contains the traceback of a data loader worker, and ends with the error.
_WORKER_ERROR = "in DataLoader worker process"


def check_output_folder(folder: Path, composer: Composer, command: str) -> None:
    """Raise if an output folder cannot be written or its disk is too small.

    Args:
        folder: Folder that the command writes to.
        composer: Model whose size determines the size of checkpoints.
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: If the folder cannot be written, or for ``fit`` if the disk lacks space for the checkpoints.
    """
    option = "--output" if command == "predict" else "--trainer.logger.init_args.save_dir"
    parent = _nearest_existing(folder)
    try:
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(parent))
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ValueError(
            f"The output folder {folder} cannot be written: {error.strerror} ({parent}). "
            f"Make it writable, or choose another folder with {option}."
        ) from error
    size = sum(parameter.numel() * parameter.element_size() for parameter in composer.parameters())
    needed, free = _CHECKPOINTS_ON_DISK * _VALUES_PER_PARAMETER * size, shutil.disk_usage(parent).free
    if command == "fit" and needed > free:
        raise ValueError(
            f"The disk of the output folder {folder} has {free / 1e6:.1f} MB free; the checkpoints of this model need "
            f"about {needed / 1e6:.1f} MB. Free some space, or choose another folder with {option}."
        )


def explain(error: Exception) -> str | None:
    """Return the message of an exception for the user, or None if the traceback is needed."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {error}. Earlier checkpoints are intact."
    if isinstance(error, RuntimeError):
        return None
    if isinstance(error, ArgumentError):
        return (
            f"{readable(error)}\nSee --help of the command, and `fit --model.help CLASS` for the arguments of a class."
        )
    if "Union subtypes" in str(error):
        return readable(error)
    if _WORKER_ERROR in str(error):
        return str(error).rpartition(f"\n{type(error).__name__}: ")[2].strip()
    return str(error)


def _nearest_existing(path: Path) -> Path:
    """Return the path, or its closest parent that exists."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow broken links
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
