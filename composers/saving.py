"""Checkpoints of a training run: the last state, always, and the best by a metric."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from composers.callbacks import output_folder

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class LastCheckpoint(Checkpoint):
    """Save the state of training as ``checkpoints/last.ckpt``, and keep the one before as ``previous.ckpt``.

    Saves at the end of every epoch, after its validation, at the end of training, and every few minutes in between.

    Args:
        minutes: Minutes from one save to the next within an epoch.

    Raises:
        ValueError: If ``minutes`` is not positive.
    """

    def __init__(self, minutes: float = 15.0) -> None:
        if not minutes > 0:
            raise ValueError(f"minutes is {minutes}; it must be positive.")
        self.minutes = minutes
        self.last_model_path = ""
        self._saved_at = time.monotonic()
        self._saved_step = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch."""
        self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of training."""
        if self._saved_step != trainer.global_step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> Path | None:
        """Save the state of training now; to be called on all processes.

        Returns:
            The file, or None where nothing is saved: outside training, in its sanity check, under ``fast_dev_run``, and
            without a run folder.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        if (folder := output_folder(trainer)) is None:
            return None
        path = folder / "checkpoints" / LAST
        if trainer.is_global_zero and path.is_file():
            spare = path.with_name(f".{PREVIOUS}.{os.getpid()}")
            spare.unlink(missing_ok=True)
            os.link(path, spare)
            spare.replace(path.with_name(PREVIOUS))
        trainer.save_checkpoint(path)
        self.last_model_path = str(path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        return path
