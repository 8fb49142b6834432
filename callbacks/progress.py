"""Progress of a run: a bar of one line in a terminal, lines of text elsewhere."""

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

_MAX_BAR_WIDTH = 40  # characters
_NAMES = {"validate": "Validation", "test": "Test", "predict": "Prediction"}


class ProgressBar(RichProgressBar):
    """Show the progress of a run and the time left.

    In a terminal, this is a bar of one line. Elsewhere (log file, pipe, batch system), a line of text is printed every
    ``seconds`` and after every validation.

    Args:
        seconds: Seconds between two lines of text.

    Raises:
        ValueError: If ``seconds`` is negative.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        if not seconds >= 0:
            raise ValueError(f"seconds is {seconds}; it must be 0 or more.")
        super().__init__(leave=False, theme=RichProgressBarTheme(metrics_format=".2f"))
        self.seconds = seconds
        self._plain = False
        self._printed_at = 0.0  # time of the last line
        self._start: tuple[float, int] | None = None  # time and global step at the first step of this training
        self._stage_start = 0.0  # start time of the current validation, test or prediction
        self._left: float | None = None  # seconds until training ends

    @property
    def is_enabled(self) -> bool:
        """Whether the bar is shown."""
        return bool(super().is_enabled) and not self._plain

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Select the bar or lines of text."""
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
                table_column=Column(max_width=_MAX_BAR_WIDTH),  # shrinks in a narrow terminal
            ),
            BatchesProcessedColumn(style=self.theme.batch_progress),
            _TimeLeft(self),
        ]
        columns[2]._table_column = Column(no_wrap=True)
        return columns

    def _init_progress(self, trainer: Trainer) -> None:
        """Create the bar; metrics are truncated instead of wrapped."""
        super()._init_progress(trainer)
        if self._metric_component is not None:
            self._metric_component._table_column = Column(no_wrap=True, overflow="ellipsis")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics shown in the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._start, self._left, self._printed_at = None, None, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar, or print a line if one is due."""
        self._left = self._time_left(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._due():
            metrics = _metrics_text(trainer.callback_metrics, "train/")
            self._print(f"Step {self._position(trainer)}{metrics}{_left_text(self._left)}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_validation_start(trainer, pl_module)
        self._start_stage(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_test_start(trainer, pl_module)
        self._start_stage(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_predict_start(trainer, pl_module)
        self._start_stage(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the bar, or print a line if one is due."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if not trainer.sanity_checking:
            self._print_batch(trainer, batch_idx, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the bar, or print a line if one is due."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._print_batch(trainer, batch_idx, trainer.num_test_batches[dataloader_idx])

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the bar, or print a line if one is due."""
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._print_batch(trainer, batch_idx, trainer.num_predict_batches[dataloader_idx])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the bar, or print the metrics of the validation."""
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking:
            return
        metrics = _metrics_text(trainer.callback_metrics, "val/")  # on all processes, because it may reduce over them
        if self._plain and trainer.state.fn == "fit":
            self._print(f"Validation at step {self._position(trainer)}{metrics}{_left_text(self._left)}")

    def _start_stage(self, trainer: Trainer) -> None:
        """Start the clock of a validation, test or prediction."""
        self._stage_start = time.monotonic()
        if trainer.state.fn != "fit":
            self._printed_at = self._stage_start

    def _due(self) -> bool:
        """Return whether a line of text is due."""
        return self._plain and time.monotonic() - self._printed_at >= self.seconds

    def _print(self, line: str) -> None:
        """Print a line, on the first process only."""
        self._printed_at = time.monotonic()
        if self._enabled:  # the trainer disables the bar on all other processes
            print(line, flush=True)

    def _print_batch(self, trainer: Trainer, batch_idx: int, batches: float) -> None:
        """Print the progress of an evaluation, if a line is due."""
        if self._due():
            done = batch_idx + 1
            left = (time.monotonic() - self._stage_start) / done * (batches - done)
            name = _NAMES.get(str(trainer.state.fn.value if trainer.state.fn else ""), "Validation")
            total = "?" if batches == float("inf") else f"{batches:,.0f}"
            self._print(f"{name}: batch {done:,} of {total}{_left_text(left)}")

    def _position(self, trainer: Trainer) -> str:
        """Return the step and the epoch of training with their totals, where these are known."""
        total = trainer.estimated_stepping_batches
        steps = f"{trainer.global_step:,} of {total:,.0f}" if 0 <= total < float("inf") else f"{trainer.global_step:,}"
        epochs = f" of {trainer.max_epochs:,}" if trainer.max_epochs is not None and trainer.max_epochs > 0 else ""
        return f"{steps}, epoch {trainer.current_epoch + 1:,}{epochs}"

    def _time_left(self, trainer: Trainer) -> float | None:
        """Return the seconds until training ends, by its number of steps or by ``max_time``; None if unknown."""
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
        """Return the text before the bar; without the last epoch if the length of training is set in steps."""
        last = self.trainer.max_epochs
        return f"Epoch {current_epoch}" + (f"/{last - 1}" if last is not None and last > 0 else "")


class _TimeLeft(ProgressColumn):
    """The time left: of training in the training bar, of the batches in all other bars."""

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
    """Return the time left as the end of a line; empty if it is unknown or below half a second."""
    return "" if seconds is None or not 0.5 < seconds < float("inf") else f", {clock(seconds)} left"


def _metrics_text(metrics: Mapping[str, Tensor], prefix: str) -> str:
    """Return the metrics of a stage as part of a line."""
    values = {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}
    return "".join(f", {name} {value:.4g}" for name, value in values.items())
