"""The progress of a run: a bar of one line in a terminal, and plain lines where the output is none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, Timer
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
    RichProgressBarTheme,
)
from lightning.pytorch.trainer.states import RunningStage
from rich.console import Console
from rich.progress import ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text
from torch import Tensor

_WIDEST_BAR = 40  # characters
_NAMES = {"validate": "Validation", "test": "Test", "predict": "Prediction"}


class ProgressBar(RichProgressBar):
    """Show the progress of a run and the time left.

    In a terminal this is a bar of one line. Elsewhere (a log file, a pipe, a batch system), a line of text is printed every
    half minute and after every validation.

    Args:
        seconds: Seconds from one line of text to the next.

    Raises:
        ValueError: If ``seconds`` is negative.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        if not seconds >= 0:
            raise ValueError(f"seconds is {seconds}; it must be 0 or more.")
        super().__init__(leave=False, theme=RichProgressBarTheme(metrics_format=".2f"))
        self.seconds = seconds
        self._plain = False
        self._told = 0.0  # when the last line was printed
        self._start: tuple[float, int] | None = None  # time and steps at the first step of this training
        self._stage_start = 0.0  # when this validation, test or prediction began
        self._left: float | None = None

    @property
    def is_enabled(self) -> bool:
        """Whether the bar is drawn."""
        return bool(super().is_enabled) and not self._plain

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose between the bar and lines of text."""
        super().setup(trainer, pl_module, stage)
        self._plain = not Console().is_terminal

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Return the columns before the metrics."""
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            CustomBarColumn(
                bar_width=None,
                complete_style=self.theme.progress_bar,
                finished_style=self.theme.progress_bar_finished,
                pulse_style=self.theme.progress_bar_pulse,
                table_column=Column(max_width=_WIDEST_BAR),  # gives way where the terminal is narrow
            ),
            BatchesProcessedColumn(style=self.theme.batch_progress),
            _TimeLeft(self),
        ]
        columns[2]._table_column = Column(no_wrap=True)
        return columns

    def _init_progress(self, trainer: Trainer) -> None:
        """Make the bar, with metrics that are cut off rather than wrapped."""
        super()._init_progress(trainer)
        if self._metric_component is not None:
            self._metric_component._table_column = Column(no_wrap=True, overflow="ellipsis")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics of the bar."""
        found = super().get_metrics(trainer, pl_module)
        return {key: value for key, value in found.items() if key != "v_num"}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._start, self._left, self._told = None, None, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar, or print a line when it is time."""
        self._left = self._time_left(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._due():
            metrics = _named(trainer.callback_metrics, "train/")
            self._tell(f"{self._steps(trainer)}{metrics}{_left_text(self._left)}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_validation_start(trainer, pl_module)
        self._begin(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_test_start(trainer, pl_module)
        self._begin(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_predict_start(trainer, pl_module)
        self._begin(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the bar, or print a line when it is time."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if not trainer.sanity_checking:
            self._tell_batch(trainer, batch_idx, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the bar, or print a line when it is time."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._tell_batch(trainer, batch_idx, trainer.num_test_batches[dataloader_idx])

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the bar, or print a line when it is time."""
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._tell_batch(trainer, batch_idx, trainer.num_predict_batches[dataloader_idx])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the bar, or print the metrics of the validation."""
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking:
            return
        metrics = _named(trainer.callback_metrics, "val/")  # on all processes, for they may have to sum up
        if self._plain and trainer.state.fn == "fit":
            self._tell(f"Validation at {self._steps(trainer, start='')}{metrics}{_left_text(self._left)}")

    def _begin(self, trainer: Trainer) -> None:
        """Start the clock of a validation, test or prediction."""
        self._stage_start = time.monotonic()
        if trainer.state.fn != "fit":
            self._told = self._stage_start

    def _due(self) -> bool:
        """Return whether it is time for a line of text."""
        return self._plain and time.monotonic() - self._told >= self.seconds

    def _tell_batch(self, trainer: Trainer, batch_idx: int, batches: float) -> None:
        """Print which batch of an evaluation is done, when it is time."""
        if self._due():
            done = batch_idx + 1
            left = (time.monotonic() - self._stage_start) / done * (batches - done)
            name = _NAMES.get(str(trainer.state.fn.value if trainer.state.fn else ""), "Validation")
            self._tell(f"{name}: batch {done:,} of {_count(batches)}{_left_text(left)}")

    def _tell(self, line: str) -> None:
        """Print a line, on one process."""
        self._told = time.monotonic()
        if self._enabled:  # which the trainer takes from all processes but the first
            print(line, flush=True)

    def _steps(self, trainer: Trainer, start: str = "Step") -> str:
        """Return the step and the epoch of training, in words."""
        total = trainer.estimated_stepping_batches
        steps = f"{trainer.global_step:,} of {total:,.0f}" if 0 <= total < float("inf") else f"{trainer.global_step:,}"
        epochs = f" of {trainer.max_epochs:,}" if trainer.max_epochs is not None and trainer.max_epochs > 0 else ""
        return f"{start or 'step'} {steps}, epoch {trainer.current_epoch + 1:,}{epochs}"

    def _time_left(self, trainer: Trainer) -> float | None:
        """Return the seconds until training ends, by its steps or by ``max_time``; None while they are not known."""
        now = (time.monotonic(), trainer.global_step)
        self._start = self._start or now
        estimates = [
            left
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and (left := callback.time_remaining(RunningStage.TRAINING)) is not None
        ]
        done, total = now[1] - self._start[1], trainer.estimated_stepping_batches
        if done and 0 <= total < float("inf"):
            estimates.append((now[0] - self._start[0]) / done * (total - now[1]))
        return max(0.0, min(estimates)) if estimates else None

    def _get_train_description(self, current_epoch: int) -> str:
        """Return what stands before the bar; without a last epoch where the steps are what is counted."""
        last = self.trainer.max_epochs
        return f"Epoch {current_epoch}" + (f"/{last - 1}" if last is not None and last > 0 else "")


class _TimeLeft(ProgressColumn):
    """The time left: of training in its bar, of the batches in all others."""

    max_refresh = 0.5

    def __init__(self, bar: ProgressBar) -> None:
        super().__init__(Column(no_wrap=True))
        self.bar = bar

    def render(self, task: Task) -> Text:
        """Return the time left."""
        left = self.bar._left if task.id == self.bar.train_progress_bar_id else task.time_remaining
        return Text("" if left is None else f"{clock(left)} left", style=self.bar.theme.time)


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds.

    Example:
        >>> clock(59.6), clock(90061)
        ('0:01:00', '25:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _left_text(seconds: float | None) -> str:
    """Return the end of a line of text: the time left, where it is known."""
    return "" if seconds is None or not 0.5 < seconds < float("inf") else f", {clock(seconds)} left"


def _count(number: float) -> str:
    """Return a number of batches, in words."""
    return "?" if number == float("inf") else f"{number:,.0f}"


def _named(metrics: Mapping[str, Tensor], prefix: str) -> str:
    """Return the metrics of a stage as a part of a line of text."""
    found = {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}
    return "".join(f", {name} {value:.4g}" for name, value in found.items())
