"""Options of the trainer that switch off what the default config brings along, and options that do not fit the models."""

from __future__ import annotations

from jsonargparse import Namespace
from jsonargparse.util import import_object
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

_OFF_IN_BAREBONES = (
    "enable_checkpointing",
    "logger",
    "enable_progress_bar",
    "log_every_n_steps",
    "enable_model_summary",
    "num_sanity_val_steps",
)
_HALF = ("bf16-true", "16-true")


def settle_trainer(trainer: Namespace) -> None:
    """Take out of the config of a trainer the callbacks that its options switch off.

    ``enable_progress_bar: false`` takes out progress bars, ``enable_checkpointing: false`` the callbacks that save checkpoints,
    and ``barebones: true`` these, the logger, and the default values of options that it excludes.

    Args:
        trainer: Its arguments; changed in place.

    Raises:
        ValueError: If the precision keeps coordinates and losses in 16 bits.
    """
    if trainer.get("precision") in _HALF:
        raise ValueError(
            f"--trainer.precision is {trainer.precision}, which keeps coordinates, losses and weights in 16 bits: coordinates "
            "need float32. Use bf16-mixed, which computes in bfloat16 where that is safe, or 32-true."
        )
    if trainer.get("barebones"):
        for name in _OFF_IN_BAREBONES:
            trainer[name] = None
    unwanted: tuple[type, ...] = ()
    if trainer.get("barebones") or trainer.get("enable_progress_bar") is False:
        unwanted += (ProgressBar,)
    if trainer.get("barebones") or trainer.get("enable_checkpointing") is False:
        unwanted += (Checkpoint,)
    callbacks = trainer.get("callbacks")
    if unwanted and isinstance(callbacks, list):
        trainer.callbacks = [one for one in callbacks if not issubclass(import_object(one.class_path), unwanted)]
