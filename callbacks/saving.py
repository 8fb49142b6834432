"""Checkpoints of a training run: the last state, always, and the best by a metric."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.folders import output_folder, relative_path
from callbacks.results import headline_of
from composers.checkpoint import read
from datamodules.storage.files import written_whole

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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the checkpoint that is resumed as the last one until another is saved."""
        self.last_model_path = str(trainer.ckpt_path or "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step, if it is time; the first process decides."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or loop.batch_progress.is_last_batch:
            return
        if trainer.strategy.broadcast(time.monotonic() - self._saved_at >= 60 * self.minutes):
            self.save(trainer)

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
            _keep(path, path.with_name(PREVIOUS))
        trainer.save_checkpoint(path)
        self.last_model_path = str(path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        return path


class BestCheckpoint(ModelCheckpoint):
    """Save the state of training with the best value of a metric, as ``ModelCheckpoint`` does, across resumed runs.

    A run that is resumed in a new folder starts with a copy of the best checkpoint of the earlier run and keeps it until
    it is surpassed. If the earlier best no longer exists, the run says so and starts without one. A metric that is not
    finite is never the best.

    Without ``monitor``, that is the headline metric of the data in validation, and ``mode`` its direction.
    """

    _earlier: Mapping[str, Any] = MappingProxyType({})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the metric, if none is stated, before states are restored, which are found by its name."""
        if self.monitor is None:
            headline = headline_of(trainer)
            self.monitor, self.mode = f"val/{headline.metric}", headline.direction
            self.kth_value = torch.tensor(math.inf if self.mode == "min" else -math.inf)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the earlier best, which `on_train_start` restores."""
        self._earlier = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and bring the earlier best into the folder of this run, which nothing refuses any more."""
        super().on_train_start(trainer, pl_module)
        self._restore(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch if its metric is the best; an epoch that ``max_steps`` cut short was not validated."""
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether a value is among the best; one that is not finite is not."""
        if current is None or not trainer.strategy.reduce_boolean_decision(math.isfinite(current)):
            return False
        return super().check_monitor_top_k(trainer, current)

    def _restore(self, trainer: Trainer) -> None:
        """Restore the earlier best models, as far as their files are there; to be called on all processes."""
        earlier, self._earlier = self._earlier, MappingProxyType({})
        scores: Mapping[str, Tensor] = earlier.get("best_k_models") or {}
        if not scores or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        kept: dict[str, str] = {}
        if trainer.is_global_zero:
            kept = {path: new for path, score in scores.items() if (new := self._brought(trainer, path, score))}
        kept = trainer.strategy.broadcast(kept)
        self.best_k_models = {new: scores[path] for path, new in kept.items()}
        worst, best = (max, min) if self.mode == "min" else (min, max)
        if self.best_k_models:
            self.best_model_path = best(self.best_k_models, key=lambda path: float(self.best_k_models[path]))
            self.best_model_score = self.best_k_models[self.best_model_path]
            if len(self.best_k_models) == self.save_top_k:
                self.kth_best_model_path = worst(self.best_k_models, key=lambda path: float(self.best_k_models[path]))
                self.kth_value = self.best_k_models[self.kth_best_model_path]
        path = earlier["best_model_path"]
        if path not in kept and trainer.is_global_zero:
            score = float(earlier["best_model_score"])
            print(
                f"The earlier best checkpoint, {relative_path(path)} ({self.monitor} {score:.4g}), no longer exists, was "
                "replaced by a later one or cannot be read: the best is chosen anew from here on.",
                file=sys.stderr,
            )

    def _brought(self, trainer: Trainer, path: str, score: Tensor) -> str | None:
        """Return the path in the folder of this run of an earlier best model, copied there; None if it is gone."""
        assert self.dirpath is not None
        target = Path(self.dirpath, Path(path).name)
        beside = Path(trainer.ckpt_path or "").with_name(Path(path).name)
        for source in (Path(path), beside):
            if not self._is_best(source, score):
                continue
            if source.resolve() != target.resolve():
                with written_whole(target) as part:
                    shutil.copyfile(source, part)
            return str(target)
        return None

    def _is_best(self, path: Path, score: Tensor) -> bool:
        """Return whether a file is the checkpoint that was saved with this score."""
        with suppress(OSError, ValueError, AttributeError):
            state = read(path).get("callbacks", {}).get(self.state_key, {})
            found = state.get("best_k_models", {}).values()
            return any(float(other) == float(score) for other in found)
        return False


def _keep(path: Path, kept: Path) -> None:
    """Give a file a second name, by a hard link or else a copy; the file is there at every moment."""
    spare = kept.with_name(f".{kept.name}.part")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:  # not on this file system
        with written_whole(kept) as part:
            shutil.copyfile(path, part)
    else:
        spare.replace(kept)
        spare.unlink(missing_ok=True)  # still there if both names led to the same file
