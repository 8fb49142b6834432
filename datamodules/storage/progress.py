"""Progress bars for bytes and items, shown by the first process if stderr is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


def is_first_process() -> bool:
    """Return whether this is the process of rank 0, which prints messages."""
    return getattr(rank_zero_only, "rank", 0) == 0


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with bytes, speed and remaining time.

    Args:
        label: Description of the work.
        total: Number of bytes, None if unknown.

    Yields:
        A function that takes the number of bytes done so far.
    """
    with _bar(label, total, 0, DownloadColumn(), TransferSpeedColumn()) as show:
        yield show


@contextmanager
def counting(label: str, total: int, begun: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with the number of items, speed and remaining time.

    Args:
        label: Description of the work.
        total: Number of items.
        begun: Number of items done before.

    Yields:
        A function that takes the number of items done so far.
    """
    with _bar(label, total, begun, MofNCompleteColumn(), _ItemSpeedColumn()) as show:
        yield show


@contextmanager
def _bar(label: str, total: int | None, begun: int, *columns: ProgressColumn) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with these columns between the bar and the remaining time."""
    console = Console(stderr=True)
    quiet = not console.is_terminal or not is_first_process()
    all_columns = (TextColumn("{task.description}", markup=False), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*all_columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(label, total=total, completed=begun)
        yield lambda done: bar.update(task, completed=done)


class _ItemSpeedColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """Return the speed as text."""
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")
