"""The folder of a run, and how paths are shown."""

from __future__ import annotations

import os
from pathlib import Path

from lightning import Trainer

from callbacks.progress import ProgressBar as ProgressBar  # configs of earlier runs name it here

NO_FOLDER = os.devnull  # the trainer's default_root_dir where nothing is written


def output_folder(trainer: Trainer) -> Path | None:
    """Return the folder of this run, made if it is missing; to be called on all processes, which agree on it.

    Returns:
        The folder, or None where nothing is written: under ``fast_dev_run``, and in the program without a logger.
    """
    folder = planned_folder(trainer)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def planned_folder(trainer: Trainer) -> Path | None:
    """Return what `output_folder` returns without making it."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    return None if getattr(trainer, "fast_dev_run", False) or folder == Path(NO_FOLDER) else folder


def relative_path(path: str | Path) -> Path:
    """Return a path relative to the working directory where it lies below it."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
