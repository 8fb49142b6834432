"""What can be known before time is spent: whether results can be written; and what an error means to a user."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from jsonargparse import ArgumentError

from composers.base import Composer
from datamodules.configuration import readable

_CHECKPOINTS_AT_ONCE = 3  # the best, the last, and one being written
_FROM_A_WORKER = "in DataLoader worker process"  # begins a message that holds the whole traceback, the error last
_NUMBERS_PER_PARAMETER = 3  # the weight and two moments of Adam


def check_output_folder(folder: Path, composer: Composer, command: str) -> None:
    """Refuse an output folder that cannot take the results.

    Args:
        folder: What the command writes to.
        composer: The model, whose size is that of the checkpoints of ``fit``.
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: If the folder cannot be written, or the disk has no room for the checkpoints of a training run.
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
            f"Make it writable or choose another with {option}."
        ) from error
    size = sum(parameter.numel() * parameter.element_size() for parameter in composer.parameters())
    needed, free = _CHECKPOINTS_AT_ONCE * _NUMBERS_PER_PARAMETER * size, shutil.disk_usage(parent).free
    if command == "fit" and needed > free:
        raise ValueError(
            f"The disk of the output folder {folder} has {free / 1e6:.1f} MB free; the checkpoints of this model need "
            f"about {needed / 1e6:.1f} MB. Make room or choose another with {option}."
        )


def explain(error: Exception) -> str | None:
    """Return an error as a message to a user, or None if only its traceback can tell."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {error}. Earlier checkpoints are as they were."
    if isinstance(error, RuntimeError):
        return None
    if isinstance(error, ArgumentError):
        return f"{readable(error)}\nSee --help of the command, and fit --model.help CLASS for the arguments of a class."
    if "Union subtypes" in str(error):
        return readable(error)
    if _FROM_A_WORKER in str(error):
        return str(error).rpartition(f"\n{type(error).__name__}: ")[2].strip()
    return str(error)


def _nearest_existing(path: Path) -> Path:
    """Return the path, or the closest folder above it that exists."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links to places that do not exist
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
