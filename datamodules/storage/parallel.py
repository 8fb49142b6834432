"""Many files, read by all processors: in order, a few ahead."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from datamodules.storage.folders import NamedFile
from datamodules.storage.progress import counting

_AHEAD = 2  # items per thread that wait for their turn

Item = TypeVar("Item")
Result = TypeVar("Result")


def processors() -> int:
    """Return the processors that this process may use."""
    return os.cpu_count() or 1 if sys.platform in ("win32", "darwin") else len(os.sched_getaffinity(0))


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """Yield what a function makes of items, in their order, computed by a thread per processor.

    No more than a few results wait to be taken, so that memory stays bounded. An error is raised where its result would be.

    Args:
        function: What is called; it should leave Python's lock now and then, as decoders do.
        items: What it is called with, taken as the work goes on.

    Example:
        >>> list(in_order(abs, [-3, 2, -1]))
        [3, 2, 1]
    """
    threads = processors()
    ahead: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > _AHEAD * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def unreadable_of(files: Sequence[NamedFile], reason: Callable[[NamedFile], str | None], label: str) -> dict[str, str]:
    """Return why files cannot be read, by path, after looking at all of them.

    Args:
        files: The files.
        reason: Reads one and says why it cannot be, None if it can.
        label: What goes on.
    """
    found: dict[str, str] = {}
    with counting(label, len(files)) as show:
        for done, (file, told) in enumerate(zip(files, in_order(reason, files), strict=True), 1):
            if told is not None:
                found[str(file.path)] = told
            show(done)
    return found
