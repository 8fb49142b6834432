"""Stop on SIGTERM and SIGUSR1: training saves a checkpoint, tests and predictions write the results so far."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.folders import relative_path
from callbacks.predictions import PredictionWriter
from callbacks.results import ResultsTable
from callbacks.saving import LastCheckpoint, resume_command

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_DEBOUNCE = 0.5  # seconds within which a repeated signal counts as the same signal


class StopOnSignal(Callback):
    """Stop on SIGTERM or SIGUSR1 with exit status 128 + the signal's number.

    Training saves a checkpoint after the current optimizer step. Tests and predictions write the results so far. Before the
    first batch, and on a second signal, the program exits immediately. Multiple processes stop at the same step: a signal
    that arrives after their set-up and before the first batch takes effect after the first step. In a SLURM job, SIGUSR1 also
    requeues the job after the checkpoint is saved.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._previous_handlers: dict[int, Any] = {}
        self._pid = os.getpid()
        self._deferred = False
        self._trainer: Trainer | None = None
        self._group: Any = None
        self._shared_batches = 0

    def install(self) -> None:
        """Install the signal handlers; outside the main thread, do nothing."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                previous = signal.signal(number, self.handle)
                self._previous_handlers.setdefault(number, previous)

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        if threading.current_thread() is threading.main_thread():
            for number, previous in self._previous_handlers.items():
                signal.signal(number, signal.SIG_DFL if previous is None else previous)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal while a loop is running, else exit."""
        if os.getpid() != self._pid:  # a forked data loader worker
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.received:
            if now - self._received_at > _DEBOUNCE and not is_child():
                self._forward(signal.SIGKILL)
                os._exit(128 + self.received)
            return
        self.received, self._received_at = number, now
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else a worker that received the signal too raises within a step
        self._forward(number)
        if not self._deferred:
            _log(f"{signal.Signals(number).name}: stopped before the first batch; nothing was saved.")
            raise SystemExit(_status(number))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep these handlers: those of the trainer call collectives and do not save."""
        self._trainer = trainer
        trainer._signal_connector.register_signal_handlers = self.install  # type: ignore[method-assign]
        if trainer.world_size > 1:
            self._deferred = True  # one process may be in its first batch before another
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop after a step from now on, not immediately."""
        self._deferred = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop after an optimizer step; after the last step of an epoch, wait for its end."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or loop.batch_progress.is_last_batch:
            return
        self._stop_training(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop after an epoch and its validation."""
        if self._agree():  # checkpoint callbacks run last: let them save the epoch first
            for callback in trainer.checkpoint_callbacks:
                callback.on_train_epoch_end(trainer, pl_module)
            self._stop_training(trainer, saved=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if data loader workers were killed by the same signal between two steps."""
        if (
            self.received
            and trainer.state.fn == TrainerFn.FITTING
            and trainer.world_size == 1
            and self._deferred
            and isinstance(exception, RuntimeError)
            and "DataLoader worker" in str(exception)
        ):
            for logger in trainer.loggers:
                logger.save()
            self._stop_training(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the number of batches that every process has."""
        self._count_shared_batches(trainer.num_test_batches)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the number of batches that every process has."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._count_shared_batches(trainer.num_val_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the number of batches that every process has."""
        self._count_shared_batches(trainer.num_predict_batches)

    def on_test_batch_start(self, *arguments: Any, **named: Any) -> None:
        """Stop after a batch from now on, not immediately."""
        self._deferred = True

    def on_predict_batch_start(self, *arguments: Any, **named: Any) -> None:
        """Stop after a batch from now on, not immediately."""
        self._deferred = True

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop ``cli.py validate``; a validation within training is finished first."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._stop_evaluation(trainer, pl_module, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the rows so far and stop."""
        self._stop_evaluation(trainer, pl_module, batch_idx)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the table so far and stop."""
        self._stop_evaluation(trainer, pl_module, batch_idx)

    def _count_shared_batches(self, batches: list[int | float]) -> None:
        """Store the smallest number of batches of any process."""
        count = torch.tensor(min(sum(batches), 2**31))
        if self._group is not None:
            torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MIN, group=self._group)
        self._shared_batches = int(count)

    def _agree(self) -> int:
        """Return a signal that any process has received, else 0; call it on all processes.

        All processes return the same: a signal that arrives during the call counts from the next call.
        """
        if self._group is None:
            return self.received
        shared = torch.tensor(self.received)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=self._group)
        number = int(shared)
        if number and not self.received:
            self.received, self._received_at = number, time.monotonic()
        return number

    def _stop_training(self, trainer: Trainer, saved: bool = False) -> None:
        """If a signal was received, save a checkpoint, log it and exit."""
        number = self._agree()
        if not number:
            return
        savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
        saver = savers[0] if savers else LastCheckpoint()
        path = Path(saver.last_model_path) if saved and saver.last_model_path else saver.save(trainer)
        if trainer.is_global_zero:
            message = f"{signal.Signals(number).name}: training stopped at step {trainer.global_step}. "
            if path is None:
                reason = "fast_dev_run" if trainer.fast_dev_run else "no logger"  # type: ignore[attr-defined]
                message += f"No checkpoint was saved ({reason})."
            else:
                message += f"Checkpoint: {relative_path(path)}. Resume: {resume_command(path)}"
            _log(message)
            if path is not None:
                _requeue(number)
        self._exit(number)

    def _stop_evaluation(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> None:
        """If a signal was received, write the results so far, log it and exit."""
        self._deferred = True
        if batch_idx >= self._shared_batches or not (number := self._agree()):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (ResultsTable, PredictionWriter)):
                callback.write_partial(trainer, pl_module)
        if trainer.is_global_zero:
            command = trainer.state.fn and trainer.state.fn.value
            _log(f"{signal.Signals(number).name}: {command} stopped after batch {batch_idx + 1}.")
        self._exit(number)

    def _exit(self, number: int) -> None:
        """Wait for all processes and exit."""
        if self._group is not None:
            torch.distributed.barrier(group=self._group)
        raise SystemExit(_status(number))

    def _forward(self, number: int) -> None:
        """Send a signal to the processes that the trainer has started."""
        launcher = self._trainer.strategy.launcher if self._trainer is not None else None
        for process in getattr(launcher, "procs", []):
            with contextlib.suppress(OSError):
                process.send_signal(number)


def is_child() -> bool:
    """Return whether the launcher of the trainer started this process."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & set(os.environ)


def _status(number: int) -> int:
    """Return the exit status: 0 for children of the launcher, because it kills the main process for any other status."""
    return 0 if is_child() else 128 + number


def _log(line: str) -> None:
    """Print a line to stderr, on the main process only."""
    if not is_child():
        print(line, file=sys.stderr, flush=True)


def _requeue(number: int) -> None:
    """Requeue the SLURM job of this process after SIGUSR1."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or number != signal.SIGUSR1:
        return
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        _log(f"SLURM job {job} was not requeued: scontrol is not in PATH. Submit the job again to resume.")
        return
    result = subprocess.run([scontrol, "requeue", job], check=False, capture_output=True, text=True)  # noqa: S603
    if result.returncode:
        _log(
            f"SLURM job {job} was not requeued: scontrol failed with exit status {result.returncode}: {result.stderr.strip()}"
        )
    else:
        _log(f"SLURM job {job} was requeued.")
