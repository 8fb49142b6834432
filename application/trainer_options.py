"""Trainer options that switch off callbacks of the default config, and options that the models do not support."""

from __future__ import annotations

from jsonargparse import Namespace
from jsonargparse.util import import_object
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

_EXCLUDED_BY_BAREBONES = (
    "enable_checkpointing",
    "logger",
    "enable_progress_bar",
    "log_every_n_steps",
    "enable_model_summary",
    "num_sanity_val_steps",
)
_HALF_PRECISION = ("bf16-true", "16-true")


def apply_switches(trainer: Namespace) -> None:
    """Remove the callbacks that options of the trainer switch off.

    ``enable_progress_bar: false`` removes progress bars, ``enable_checkpointing: false`` removes callbacks that save
    checkpoints, and ``barebones: true`` removes both, the logger, and the defaults of options that it excludes.

    Args:
        trainer: Arguments of the trainer; modified in place.

    Raises:
        ValueError: If the precision stores coordinates and losses in 16 bits.
    """
    if trainer.get("precision") in _HALF_PRECISION:
        raise ValueError(
            f"--trainer.precision is {trainer.precision}, which stores coordinates, losses and weights in 16 bits, but "
            "coordinates need float32. Use bf16-mixed, which computes in bfloat16 where that is safe, or 32-true."
        )
    if trainer.get("barebones"):
        for name in _EXCLUDED_BY_BAREBONES:
            trainer[name] = None
    disabled: tuple[type, ...] = ()
    if trainer.get("barebones") or trainer.get("enable_progress_bar") is False:
        disabled += (ProgressBar,)
    if trainer.get("barebones") or trainer.get("enable_checkpointing") is False:
        disabled += (Checkpoint,)
    callbacks = trainer.get("callbacks")
    if disabled and isinstance(callbacks, list):
        trainer.callbacks = [
            callback for callback in callbacks if not issubclass(import_object(callback.class_path), disabled)
        ]
