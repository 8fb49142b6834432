"""The folder of a run, and paths relative to the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from lightning import Trainer

from callbacks.progress import ProgressBar as ProgressBar  # configs of earlier versions name it here

NO_FOLDER = os.devnull  # `default_root_dir` of a trainer that writes no files


def output_folder(trainer: Trainer) -> Path | None:
    """Return the folder of this run, created if it is missing; call it on all processes, which agree on the folder.

    Returns:
        The folder, or None if no files are written: under ``fast_dev_run``, and from the command line without a logger.
    """
    folder = planned_folder(trainer)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def planned_folder(trainer: Trainer) -> Path | None:
    """Return the folder of this run, as `output_folder`, without creating it."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    return None if getattr(trainer, "fast_dev_run", False) or folder == Path(NO_FOLDER) else folder


def relative_path(path: str | Path) -> Path:
    """Return a path relative to the working directory, if it is inside; otherwise unchanged."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
