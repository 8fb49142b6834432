"""Exponential moving average (EMA) of the weights over training."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import AveragedModel

from composers.training import sharding

# Attributes of a model that refer to the trainer, with its data and its connections to other processes
_NOT_COPIED = ("_trainer", "optimizer", "scheduler")
_CURRENT = "current_model_state"  # Lightning's key of the weights that training continues from


class AveragedWeights(EMAWeightAveraging):
    """Average the weights over the optimizer steps; validation and everything that loads a checkpoint use the average.

    A checkpoint holds the average as its weights, and also the current weights, from which training continues. Before the first
    update there is no average: validation and checkpoints use the current weights. Buffers are not averaged. Unlike with
    Lightning's callback, all callbacks of validation see the average, it is kept on the device of the model, and checkpoints
    saved during validation or at the end of training are correct.

    Args:
        decay: Weight of the previous average in every update, in [0, 1).
        update_every_n_steps: Optimizer steps between two updates.
        update_starting_at_step: Optimizer step of the first update, counted from 0.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self, decay: float = 0.999, update_every_n_steps: int = 1, update_starting_at_step: int | None = None
    ) -> None:
        if not 0 <= decay < 1 or update_every_n_steps < 1 or (update_starting_at_step or 0) < 0:
            raise ValueError(
                f"decay is {decay}, update_every_n_steps {update_every_n_steps} and update_starting_at_step "
                f"{update_starting_at_step}: they must be in [0, 1), at least 1 and at least 0."
            )
        super().__init__(
            use_buffers=False,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )
        self._swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average.

        Raises:
            ValueError: If the weights are sharded.
        """
        if stage != "fit":
            return
        if sharding.is_sharded(trainer.strategy):
            raise ValueError(
                "Averaged weights cannot be sharded: use configs/overlays/ema.yaml or fsdp.yaml, not both."
            )
        attributes = vars(pl_module)
        kept = {name: attributes[name] for name in _NOT_COPIED if name in attributes}
        attributes.update(dict.fromkeys(kept))
        try:
            self._average_model = AveragedModel(pl_module, use_buffers=False, **self._kwargs)
        finally:
            attributes.update(kept)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the device of the model."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the model, before other callbacks of validation use it."""
        if self._averaged and not self._swapped:
            self._exchange(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the current weights, before checkpoints are saved."""
        if self._swapped:
            self._exchange(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing; see `on_validation_start`."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing; see `on_validation_end`."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the last checkpoint needs the current weights."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model."""
        if self._averaged:
            self._copy_average_to_current(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as the weights, and the current weights beside them."""
        if not self._averaged:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            checkpoint["state_dict"], checkpoint[_CURRENT] = checkpoint[_CURRENT], checkpoint["state_dict"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average and the current weights of a resumed run; if it has no average, start one at the next update."""
        if self._average_model is not None and _CURRENT in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @property
    def _averaged(self) -> bool:
        """Whether there is an average."""
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def _exchange(self, pl_module: LightningModule) -> None:
        """Exchange the weights of the model and the average."""
        self._swap_models(pl_module)
        self._swapped = not self._swapped


def check_averaging(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Check that a resumed run continues to average its weights.

    Raises:
        ValueError: If the checkpoint has an average, and the trainer does not average weights.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if _CURRENT in checkpoint and not any(isinstance(callback, EMAWeightAveraging) for callback in callbacks):
        raise ValueError(
            f"{trainer.ckpt_path} holds averaged weights, and this run does not average: add `--config "
            f"configs/overlays/ema.yaml`, or start a new run from the average with `--weights {trainer.ckpt_path}`."
        )
