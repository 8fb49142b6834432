"""Checkpoints of a training run: the last state, and the best by a metric."""

from __future__ import annotations

import math
import os
import shlex
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

from callbacks.folders import output_folder, planned_folder, relative_path
from callbacks.results import headline_of
from composers.checkpoint import read
from datamodules.storage.files import naming, written_whole

CONFIG = "config.yaml"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class LastCheckpoint(Checkpoint):
    """Save the state of training as ``checkpoints/last.ckpt``, and keep the previous one as ``previous.ckpt``.

    A checkpoint is saved after every epoch and its validation, at the end of training, and every ``minutes`` in between. If the
    folder of the run was deleted or moved, it is created again with ``config.yaml``, and a message is printed.

    Args:
        minutes: Minutes between two checkpoints within an epoch.

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
        self._config: bytes | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the last checkpoint to the resumed one until another is saved."""
        self.last_model_path = str(trainer.ckpt_path or "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and keep the config in case the folder is deleted."""
        self._saved_at = time.monotonic()
        folder = planned_folder(trainer)
        if folder is not None and trainer.is_global_zero and (folder / CONFIG).is_file():
            self._config = (folder / CONFIG).read_bytes()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Add the command that resumes the run to an error."""
        if isinstance(exception, Exception) and Path(self.last_model_path).is_file():
            exception.add_note(resume_hint(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step if a checkpoint is due; the first process decides."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or loop.batch_progress.is_last_batch:
            return
        if trainer.strategy.broadcast(time.monotonic() - self._saved_at >= 60 * self.minutes):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch."""
        self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of training."""
        if self._saved_step != trainer.global_step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> Path | None:
        """Save the state of training now; call it on all processes.

        Returns:
            Path of the checkpoint, or None if nothing is saved: outside training, during the sanity check, under
            ``fast_dev_run``, and without a run folder.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        if (folder := output_folder(trainer)) is None:
            return None
        path = folder / "checkpoints" / LAST
        if trainer.is_global_zero:
            self._restore_folder(folder)
            if path.is_file():
                _link_or_copy(path, path.with_name(PREVIOUS))
        trainer.save_checkpoint(path)
        self.last_model_path = str(path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        return path

    def _restore_folder(self, folder: Path) -> None:
        """Write the config again if it is missing, and say that the folder was deleted or moved."""
        if self._config is None or (folder / CONFIG).is_file():
            return
        with written_whole(folder / CONFIG) as part:
            part.write_bytes(self._config)
        print(
            f"The run folder {relative_path(folder)} was deleted or moved during training. It is created again with {CONFIG}; "
            "it lacks earlier metrics and checkpoints.",
            file=sys.stderr,
        )


def resume_command(checkpoint: Path) -> str:
    """Return the command that resumes a run from a checkpoint in its folder."""
    config, file = (shlex.quote(str(relative_path(path))) for path in (checkpoint.parent.parent / CONFIG, checkpoint))
    return f"python cli.py fit --config {config} --ckpt_path {file}"


def resume_hint(trainer: Trainer) -> str:
    """Return a message with the last checkpoint and the command that resumes the run; no collective is called.

    Args:
        trainer: Trainer whose command ended early.
    """
    if trainer.state.fn != TrainerFn.FITTING:
        return "Run the command again."
    paths = [Path(saver.last_model_path) for saver in trainer.checkpoint_callbacks if isinstance(saver, LastCheckpoint)]
    if not paths or not paths[0].is_file():
        return "No checkpoint was saved yet: run the command again."
    path, config = relative_path(paths[0]), relative_path(paths[0].parent.parent / CONFIG)
    if not config.is_file():
        return f"Last checkpoint: {path}. Resume: run the command again with --ckpt_path {path}"
    return f"Last checkpoint: {path}. Resume: {resume_command(paths[0])}"


class BestCheckpoint(ModelCheckpoint):
    """Save the state of training with the best value of a metric, as ``ModelCheckpoint`` does, across resumed runs.

    A run that is resumed in a new folder starts with a copy of the best checkpoint of the earlier run and keeps it until
    the metric improves. If that checkpoint no longer exists, the run prints a message and starts without one. Values that
    are not finite are never the best.

    Without ``monitor``, the metric is the headline metric of the data in validation, and ``mode`` its direction.
    """

    _earlier: Mapping[str, Any] = MappingProxyType({})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the default metric, before the state is restored, whose key contains the name of the metric."""
        if self.monitor is None:
            headline = headline_of(trainer)
            self.monitor, self.mode = f"val/{headline.metric}", headline.direction
            self.kth_value = torch.tensor(math.inf if self.mode == "min" else -math.inf)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the earlier run for `on_train_start`."""
        self._earlier = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and copy the earlier best checkpoint into the folder of this run."""
        super().on_train_start(trainer, pl_module)
        self._restore(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the metric is the best; not after an epoch cut short by ``max_steps``, which has no validation."""
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether a value is finite and among the best."""
        if current is None or not trainer.strategy.reduce_boolean_decision(math.isfinite(current)):
            return False
        self._forget_missing(trainer)
        return super().check_monitor_top_k(trainer, current)

    def _forget_missing(self, trainer: Trainer) -> None:
        """Forget the best checkpoints that were deleted, so that the next one is saved; call it on all processes."""
        missing = [path for path in self.best_k_models if not Path(path).is_file()] if trainer.is_global_zero else []
        for path in trainer.strategy.broadcast(missing):
            self.best_k_models.pop(path, None)

    def _restore(self, trainer: Trainer) -> None:
        """Restore the earlier best checkpoints that still exist; call it on all processes."""
        earlier, self._earlier = self._earlier, MappingProxyType({})
        scores: Mapping[str, Tensor] = earlier.get("best_k_models") or {}
        if not scores or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        kept: dict[str, str] = {}
        if trainer.is_global_zero:
            kept = {path: new for path, score in scores.items() if (new := self._copy_earlier(trainer, path, score))}
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
                f"The earlier best checkpoint, {relative_path(path)} ({self.monitor} {score:.4g}), no longer exists, "
                "was replaced by a later one or cannot be read: the best checkpoint is selected from the resumed run only.",
                file=sys.stderr,
            )

    def _copy_earlier(self, trainer: Trainer, path: str, score: Tensor) -> str | None:
        """Copy an earlier best checkpoint into the folder of this run; return its new path, or None if it is missing."""
        assert self.dirpath is not None
        target = Path(self.dirpath, Path(path).name)
        moved = Path(trainer.ckpt_path or "").with_name(Path(path).name)  # if the folder of the run was moved
        for source in (Path(path), moved):
            if not self._is_best(source, score):
                continue
            if source.resolve() != target.resolve():
                with written_whole(target) as part:
                    shutil.copyfile(source, part)
            return str(target)
        return None

    def _is_best(self, path: Path, score: Tensor) -> bool:
        """Return whether a file is a checkpoint that was saved with this score."""
        with suppress(OSError, ValueError, AttributeError):
            state = read(path).get("callbacks", {}).get(self.state_key, {})
            scores = state.get("best_k_models", {}).values()
            return any(float(other) == float(score) for other in scores)
        return False


def _link_or_copy(path: Path, target: Path) -> None:
    """Replace ``target`` by a hard link to ``path``, or else by a copy; ``path`` exists at all times."""
    link = target.with_name(f".{target.name}.part")
    with naming(target):
        link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # the file system has no hard links
        with written_whole(target) as part:
            shutil.copyfile(path, part)
    else:
        with naming(target):
            link.replace(target)
            link.unlink(missing_ok=True)  # `replace` does nothing if both are links to the same file
