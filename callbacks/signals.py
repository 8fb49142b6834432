"""SIGTERM and SIGUSR1: training saves before it ends, evaluations keep what they have, all else ends at once."""

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

from callbacks.folders import output_folder, relative_path
from callbacks.predictions import PredictionWriter
from callbacks.results import ResultsTable
from callbacks.saving import LastCheckpoint

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_SAME = 0.5  # seconds within which a repeated signal counts as the same one


class StopOnSignal(Callback):
    """Stop on SIGTERM or SIGUSR1 with exit status 128 + the signal's number.

    Training saves a checkpoint after the current optimizer step. Tests and predictions write the results so far. Before the
    first batch the program exits at once, and so it does on a second signal. With several processes all stop at the same
    step. SIGUSR1 in a SLURM job also requeues the job after the checkpoint is saved.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()
        self._deferred = False
        self._trainer: Trainer | None = None
        self._group: Any = None
        self._shared_batches = 0

    def install(self) -> None:
        """Install the handlers of this process; outside the main thread do nothing."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.signal(number, self.handle)
                self._before.setdefault(number, before)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                signal.signal(number, signal.SIG_DFL if before is None else before)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal where a loop is running, else exit."""
        if os.getpid() != self._pid:  # a forked worker
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.received:
            if now - self._at > _SAME and not _is_child():
                self._forward(signal.SIGKILL)
                os._exit(128 + self.received)
            return
        self.received, self._at = number, now
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else a worker that got the signal too raises in mid-step
        self._forward(number)
        if not self._deferred:
            _say(f"{_name(number)}: stopped before the first batch; nothing was saved.")
            raise SystemExit(_status(number))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the handlers: those of the trainer call collectives and do not save."""
        self._trainer = trainer
        trainer._signal_connector.register_signal_handlers = self.install  # type: ignore[method-assign]
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop after steps from now on, not at once."""
        self._deferred = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop after an optimizer step; after the last of an epoch wait for its end."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or loop.batch_progress.is_last_batch:
            return
        self._stop_training(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop after an epoch and its validation."""
        if self._agreed():  # the checkpoint callbacks run last and would save the epoch after this
            for callback in trainer.checkpoint_callbacks:
                callback.on_train_epoch_end(trainer, pl_module)
            self._stop_training(trainer, saved=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where loader workers died of the same signal, between two steps."""
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
        """Count the batches that all processes have."""
        self._share(trainer.num_test_batches)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches that all processes have."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._share(trainer.num_val_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches that all processes have."""
        self._share(trainer.num_predict_batches)

    def on_test_batch_start(self, *arguments: Any, **named: Any) -> None:
        """Stop after batches from now on, not at once."""
        self._deferred = True

    def on_predict_batch_start(self, *arguments: Any, **named: Any) -> None:
        """Stop after batches from now on, not at once."""
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
        """Stop a validation of its own; one within training is finished first."""
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

    def _share(self, batches: list[int | float]) -> None:
        """Take the smallest number of batches of any process."""
        count = torch.tensor(min(sum(batches), 2**31))
        if self._group is not None:
            torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MIN, group=self._group)
        self._shared_batches = int(count)

    def _agreed(self) -> int:
        """Return the signal that any process has received, else 0; to be called on all processes."""
        if self._group is not None:
            number = torch.tensor(self.received)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
            if int(number) and not self.received:
                self.received, self._at = int(number), time.monotonic()
        return self.received

    def _stop_training(self, trainer: Trainer, saved: bool = False) -> None:
        """Save, say so and exit, if a signal was received."""
        number = self._agreed()
        if not number:
            return
        savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
        saver = savers[0] if savers else LastCheckpoint()
        path = Path(saver.last_model_path) if saved and saver.last_model_path else saver.save(trainer)
        folder = output_folder(trainer)
        if trainer.is_global_zero:
            told = f"{_name(number)}: training stopped at step {trainer.global_step}. "
            if path is None or folder is None:
                reason = "fast_dev_run" if trainer.fast_dev_run else "no logger"  # type: ignore[attr-defined]
                told += f"No checkpoint was saved ({reason})."
            else:
                config = relative_path(folder / "config.yaml")
                file = relative_path(path)
                told += f"Checkpoint: {file}. Resume: python cli.py fit --config {config} --ckpt_path {file}"
            _say(told)
            if path is not None:
                _requeue(number)
        self._end(number)

    def _stop_evaluation(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> None:
        """Write what there is, say so and exit, if a signal was received."""
        self._deferred = True
        if batch_idx >= self._shared_batches or not (number := self._agreed()):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (ResultsTable, PredictionWriter)):
                callback.write_partial(trainer, pl_module)
        if trainer.is_global_zero:
            _say(
                f"{_name(number)}: {trainer.state.fn and trainer.state.fn.value!s} stopped after batch {batch_idx + 1}."
            )
        self._end(number)

    def _end(self, number: int) -> None:
        """Exit when all processes are here."""
        if self._group is not None:
            torch.distributed.barrier(group=self._group)
        raise SystemExit(_status(number))

    def _forward(self, number: int) -> None:
        """Signal the processes that the trainer has started."""
        launcher = self._trainer.strategy.launcher if self._trainer is not None else None
        for process in getattr(launcher, "procs", []):
            with contextlib.suppress(OSError):
                process.send_signal(number)


def _is_child() -> bool:
    """Return whether the trainer's own launcher started this process."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & set(os.environ)


def _status(number: int) -> int:
    """Return the exit status; 0 for children of the launcher, which kills the main process for any other."""
    return 0 if _is_child() else 128 + number


def _name(number: int) -> str:
    """Return the name of a signal."""
    return signal.Signals(number).name


def _say(line: str) -> None:
    """Print a line, on the first process."""
    if not _is_child():
        print(line, file=sys.stderr, flush=True)


def _requeue(number: int) -> None:
    """Requeue the SLURM job of this process if SIGUSR1 asked for it."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or number != signal.SIGUSR1:
        return
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        _say(f"SLURM job {job} was not requeued: scontrol is not in PATH. Submit the job again to resume.")
        return
    done = subprocess.run([scontrol, "requeue", job], check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        _say(f"SLURM job {job} was not requeued: scontrol ended with {done.returncode}: {done.stderr.strip()}")
    else:
        _say(f"SLURM job {job} was requeued.")
