"""Handle losses and gradients that are not finite."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from composers.training.sharding import local

_MAX_NAMES = 10  # in a message


class NonFinite(Callback):
    """Stop training, or skip the update, if a loss or a gradient is not finite.

    With fp16 and a gradient scaler, only losses are checked: the scaler skips infinite gradients itself.

    Args:
        action: ``stop`` ends training with an error before the update; ``skip`` skips the update and continues.
        max_skips: Number of consecutive updates that are not finite at which ``skip`` ends training, too.

    Raises:
        ValueError: If ``action`` is another value or ``max_skips`` is not positive.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop", max_skips: int = 50) -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"action is {action}; allowed are stop and skip.")
        if max_skips < 1:
            raise ValueError(f"max_skips is {max_skips}; it must be at least 1.")
        self.action = action
        self.max_skips = max_skips
        self.skipped = 0
        self._consecutive = 0
        self._batch: Any = None
        self._bad: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped updates."""
        return {"skipped": self.skipped} if self.skipped else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of skipped updates."""
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch for the names of its instances."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Record the instances whose loss is not finite."""
        if torch.isfinite(loss).all():
            return
        losses = getattr(pl_module, "instance_losses", None)
        names = list(getattr(self._batch, "names", []))
        if losses is None or len(names) != len(losses):
            self._bad.append("unknown")
            return
        finite = torch.isfinite(losses).tolist()
        self._bad += [name for name, is_finite in zip(names, finite, strict=True) if not is_finite] or names

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Stop or skip the update, on all processes.

        Raises:
            ValueError: If a loss or a gradient is not finite and the update is not skipped.
        """
        bad, self._bad = self._bad, []
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        gradients = [] if scaled else [local(part.grad) for part in pl_module.parameters() if part.grad is not None]
        finite = not gradients or bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all())
        if trainer.strategy.reduce_boolean_decision(finite and not bad, all=True):
            self._consecutive = 0
        else:
            self._consecutive += 1
            self._stop_or_skip(trainer, optimizer, _gather_names(bad))
        if self.action == "skip":
            pl_module.log("train/skipped_steps", float(self.skipped))

    def _stop_or_skip(self, trainer: Trainer, optimizer: Optimizer, bad: list[str]) -> None:
        """Stop with an error, or clear the gradients so that the optimizer step changes nothing."""
        more = f" and {len(bad) - _MAX_NAMES} more" if len(bad) > _MAX_NAMES else ""
        what = f"The loss of {', '.join(bad[:_MAX_NAMES])}{more}" if bad else "A gradient (with finite losses)"
        message = f"{what} is not finite at step {trainer.global_step}, epoch {trainer.current_epoch}"
        if self.action == "stop" or self._consecutive >= self.max_skips:
            if not trainer.is_global_zero:
                raise SystemExit(1)  # the first process prints the error
            fix = "lower the learning rate, check these data, or skip such updates with `--non_finite.action skip`"
            if self.action == "skip":
                message += f", {self._consecutive} step(s) in succession"
                fix = "lower the learning rate or check these data"
            raise ValueError(f"{message}. The model was not updated and checkpoints are unchanged: {fix}.")
        self.skipped += 1
        optimizer.zero_grad(set_to_none=True)
        if trainer.is_global_zero:
            print(f"{message}: the update is skipped ({self.skipped} so far).", flush=True)


def _gather_names(names: list[str]) -> list[str]:
    """Return the names of all processes; call it on all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return names
    parts: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, names)
    return [name for part in parts for name in part]
