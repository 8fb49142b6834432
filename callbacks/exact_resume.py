"""Training progress in checkpoints, so that a resumed run equals an uninterrupted one bit by bit.

Lightning restores its counters differently depending on the hook that saved them: an optimizer step is counted twice or
not at all, an epoch ends twice under ``max_steps``, and gradients accumulated before the save are lost. Here, every
checkpoint stores one position, from which the counters are derived.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage as ValidationStage
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import RestartStage as EpochStage
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import RestartStage as BatchStage
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.averaging import check_averaging

_EPOCHS, _BATCHES = "epoch_progress", "epoch_loop.batch_progress"
_STEPS, _STATE = "epoch_loop.automatic_optimization.optim_progress", "epoch_loop.state_dict"
_VALIDATED = "epoch_loop.val_loop.batch_progress"
_STEPPED = "_batches_that_stepped"


class Position(NamedTuple):
    """Position at which training continues.

    Attributes:
        epoch: Index of the epoch, counted from 0.
        batch: Number of completed batches of this epoch, a multiple of the batches per optimizer step within an epoch.
        total: Number of completed batches of all epochs.
        steps: Number of completed optimizer steps.
        validate: Whether the validation after these batches has not finished.
    """

    epoch: int
    batch: int
    total: int
    steps: int
    validate: bool = False


def position(loop: dict[str, Any], accumulated: int = 1, batches: float = float("inf")) -> Position:
    """Return the position at which training continues, from the state of a fit loop saved in any hook.

    Args:
        loop: ``checkpoint["loops"]["fit_loop"]``. If validation is due after the completed batches, ``completed`` of the
            batches of the epoch is below ``processed``.
        accumulated: Number of batches per optimizer step. Batches after the last optimizer step are repeated.
        batches: Number of batches per epoch.

    Example:
        >>> epochs = {"ready": 2, "started": 2, "processed": 1, "completed": 1}
        >>> done = {"ready": 4, "started": 4, "processed": 4, "completed": 4}
        >>> loop = {
        ...     "epoch_progress": {"total": epochs, "current": epochs},
        ...     "epoch_loop.batch_progress": {"total": done, "current": done, "is_last_batch": False},
        ...     "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": {"total": {"completed": 1}}}},
        ... }
        >>> position(loop, accumulated=3)
        Position(epoch=1, batch=3, total=3, steps=1, validate=False)
    """
    epochs, done = loop[_EPOCHS]["current"], loop[_BATCHES]["current"]
    epoch, batch, total = epochs["processed"], done["processed"], loop[_BATCHES]["total"]["processed"]
    steps = loop[_STEPS]["optimizer"]["step"]["total"]["completed"]
    validate = done["completed"] < batch
    last = (loop[_BATCHES]["is_last_batch"] and done["ready"] == batch) or batch >= batches
    if epochs["started"] < epochs["ready"]:  # before the first batch of an epoch
        return Position(epoch, 0, total, steps)
    if epochs["ready"] == epoch:  # the epoch is counted, but training may have ended within it
        if last or not batch:
            return Position(epoch, 0, total, steps)
        epoch, validate = epoch - 1, False
    if last:
        return Position(epoch, batch, total, steps, True) if validate else Position(epoch + 1, 0, total, steps)
    beyond = batch % accumulated
    return Position(epoch, batch - beyond, total - beyond, steps, validate and not beyond)


class ExactResume(Callback):
    """Make a resumed run equal to an uninterrupted one, regardless of the hook that saved the checkpoint."""

    def __init__(self) -> None:
        self._position: Position | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the position of training."""
        store(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the position of training; raise a `ValueError` if the run stops averaging its weights."""
        if trainer.state.fn == TrainerFn.FITTING:
            check_averaging(trainer, checkpoint)
        self._position = read(checkpoint) if trainer.state.fn == TrainerFn.FITTING else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the loops to the position."""
        stored, self._position = self._position, None
        if stored is not None:
            restore(trainer, stored)


def store(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Store the position of training in a checkpoint that is being saved."""
    if trainer.state.fn != TrainerFn.FITTING:
        return
    fit, loop = trainer.fit_loop, checkpoint["loops"]["fit_loop"]
    done = loop[_BATCHES]["current"]
    if done["completed"] < done["processed"] or trainer.validating:
        due = _validating(fit.epoch_loop.val_loop) if trainer.validating else _validation_is_due(fit)
        done["completed"] = done["processed"] - due
    where = position(loop, trainer.accumulate_grad_batches, trainer.num_training_batches)
    _write(loop, where)
    if where.validate:
        loop[_BATCHES]["current"]["completed"] -= 1  # as in on_train_batch_end, before validation


def read(checkpoint: dict[str, Any]) -> Position:
    """Return the position stored in a loaded checkpoint, and replace its counters by some that Lightning does not change."""
    loop = checkpoint["loops"]["fit_loop"]
    where = position(loop)
    if where.validate and loop[_BATCHES]["is_last_batch"]:  # not stored by `store`: Lightning skips the validation
        where = Position(where.epoch + 1, 0, where.total, where.steps)
    _write(loop, where)
    return where


def restore(trainer: Trainer, where: Position) -> None:
    """Set the loops to a position; call it in ``on_train_start``, after the loops are restored and reset."""
    fit = trainer.fit_loop
    epoch_loop = fit.epoch_loop
    val_loop = epoch_loop.val_loop
    val_loop.restarting = False
    due = _validation_is_due(fit) if where.batch else False
    if where.batch and where.batch >= trainer.num_training_batches and not due:
        where = Position(where.epoch + 1, 0, where.total, where.steps)
        for counters in (fit.epoch_progress.current, fit.epoch_progress.total):
            vars(counters).update(_equal(where.epoch))
    epoch_loop._batches_that_stepped = where.steps
    inside = where.batch > 0
    fit._restarting, epoch_loop._restarting = False, inside
    fit._restart_stage = EpochStage.RESTARTED_MID_EPOCH if inside else EpochStage.NONE
    epoch_loop._restart_stage = BatchStage.RESTARTED_ON_LAST if inside else BatchStage.NONE
    val_loop._has_run = False
    if due:  # Lightning validates, or skips validation, and counts another optimizer step
        epoch_loop._batches_that_stepped -= 1
        if where.validate:
            val_loop._restart_stage = ValidationStage.RESTARTED_MID_EVALUATION


def _validation_is_due(fit: _FitLoop) -> bool:
    """Return whether validation is due after the completed batches."""
    assert fit._data_fetcher is not None
    return fit.epoch_loop._should_check_val_fx(fit._data_fetcher)


def _validating(loop: _EvaluationLoop) -> bool:
    """Return whether a validation has batches left."""
    progress = loop.batch_progress
    counters: Any = progress.current
    return not progress.is_last_batch or counters.completed < counters.processed


def _write(loop: dict[str, Any], where: Position) -> None:
    """Replace the counters of a fit loop by those of a position."""
    inside = where.batch > 0
    epochs = _equal(where.epoch) | ({"ready": where.epoch + 1, "started": where.epoch + 1} if inside else {})
    loop[_EPOCHS] = {"total": dict(epochs), "current": dict(epochs)}
    loop[_BATCHES] = {"total": _equal(where.total), "current": _equal(where.batch), "is_last_batch": False}
    loop[_STATE][_STEPPED] = where.steps
    validated = loop[_VALIDATED]
    for counters in (validated["total"], validated["current"]):
        counters.update(_equal(counters["completed"]))


def _equal(count: int) -> dict[str, int]:
    """Return Lightning's counters for ``count`` completed items."""
    return dict.fromkeys(("ready", "started", "processed", "completed"), count)
