"""How to continue after a command that ended early."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.folders import relative_path
from callbacks.saving import LastCheckpoint


def resume_hint(trainer: Trainer) -> str:
    """Return the last checkpoint of a run and the command that resumes it; it needs no other process.

    Args:
        trainer: Trainer whose command ended early.
    """
    if trainer.state.fn != TrainerFn.FITTING:
        return "Run the command again."
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
    path = Path(savers[0].last_model_path) if savers and savers[0].last_model_path else None
    if path is None or not path.is_file():
        return "No checkpoint was saved yet: run the command again."
    path, config = relative_path(path), relative_path(path.parent.parent / "config.yaml")
    if not config.is_file():
        return f"Last checkpoint: {path}. Resume: run the command again with --ckpt_path {path}"
    return f"Last checkpoint: {path}. Resume: python cli.py fit --config {config} --ckpt_path {path}"
