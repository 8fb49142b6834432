"""Process many files in parallel threads, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from datamodules.storage.folders import NamedFile
from datamodules.storage.progress import counting

_AHEAD = 2  # pending results per thread

Item = TypeVar("Item")
Result = TypeVar("Result")


def processors() -> int:
    """Return the number of processors that this process may use, by affinity and by the quota of its container."""
    import joblib  # here, because only preparation of data needs it

    count: int = joblib.cpu_count()
    return count


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """Yield the results of a function in the order of its items, computed by one thread per processor.

    Only a few results are computed ahead, so that memory stays bounded. An error is raised in the place of its result.

    Args:
        function: Function to call; it should release the global interpreter lock, as decoders do.
        items: Its arguments, consumed lazily.

    Example:
        >>> list(in_order(abs, [-3, 2, -1]))
        [3, 2, 1]
    """
    threads = processors()
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > _AHEAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def unreadable_of(files: Sequence[NamedFile], reason: Callable[[NamedFile], str | None], label: str) -> dict[str, str]:
    """Check all files, and return the reasons why files cannot be read, by path.

    Args:
        files: The files.
        reason: Function that reads a file and returns why it cannot be read, or None.
        label: Label of the progress bar.
    """
    reasons: dict[str, str] = {}
    with counting(label, len(files)) as show:
        for done, (file, message) in enumerate(zip(files, in_order(reason, files), strict=True), 1):
            if message is not None:
                reasons[str(file.path)] = message
            show(done)
    return reasons
