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
from datamodules.storage.files import UnwritableError, remedy

_CHECKPOINTS_ON_DISK = 3  # the best, the last, and the one being written
_VALUES_PER_PARAMETER = 3  # the weight and two moments of Adam
# A message with this text contains the traceback of a data loader worker, and ends with the error.
_WORKER_ERROR = "in DataLoader worker process"
# Errors of torch if a process or its data loader workers have too many open files.
_DESCRIPTORS = ("Too many open files", "received 0 items of ancdata", "unable to resize file", "unable to mmap")
_NO_DESCRIPTORS = "Too many open files. Raise the limit (ulimit -n 4096), or lower --data.init_args.num_workers."


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
    message = _message(_first(error))
    if message is None or isinstance(error, ArgumentError):
        return message
    return "\n".join([message, *getattr(error, "__notes__", ()), *getattr(_first(error), "__notes__", ())][:2])


def _first(error: Exception) -> Exception:
    """Return the error that ended a run rather than a disk error that it caused while the run ended."""
    while isinstance(error, UnwritableError) and isinstance(error.__context__, (UnwritableError, ValueError)):
        error = error.__context__
    return error


def _message(error: Exception) -> str | None:
    """Return the message of an exception without its notes; see `explain`."""
    if isinstance(error, RuntimeError):
        return _NO_DESCRIPTORS if any(text in str(error) for text in _DESCRIPTORS) else None
    if isinstance(error, ArgumentError):
        return (
            f"{readable(error)}\nSee --help of the command, and `fit --model.help CLASS` for the arguments of a class."
        )
    if "Union subtypes" in str(error):
        return readable(error)
    if _WORKER_ERROR in str(error):
        return str(error).rpartition(f"\n{type(error).__name__}: ")[2].strip()
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, UnwritableError):
        return f"{error.filename}: {error.strerror}. {remedy(error)}." if error.errno else str(error)
    return str(error)


def _nearest_existing(path: Path) -> Path:
    """Return the path, or its closest parent that exists."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow broken links
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
