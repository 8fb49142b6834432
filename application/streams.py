"""Standard streams that never raise, and a filter for routine messages of Lightning's log."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
    "lightning.pytorch.accelerators.cuda",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)
_ROUTINE = re.compile(
    "|".join(
        (
            r"💡 Tip",
            r"(GPU|TPU|HPU) available",
            r"LOCAL_RANK:",
            r"`Trainer\(.*\)` was configured so",
            r"`Trainer\.fit` stopped: `max_(steps|epochs)=",
            r"`Trainer\(barebones=True\)` started running",
            r"Restor(ing|ed) .*from the checkpoint",
            r"Loaded model weights from the checkpoint",
            r"Loading `train_dataloader` to estimate",
            r"Using .*(Automatic Mixed Precision|bfloat16|float16)",
            r"You are using a CUDA device",
            r"`weights_only` was not set",
            r"Initializing distributed",
            r"-+\s*distributed_backend=",
        )
    )
)


class RobustStream:
    """A text stream that discards output instead of raising once it cannot be written.

    This happens with a closed pipe, a closed terminal or a full disk.

    Args:
        stream: Stream to write to; all other attributes are those of this stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the wrapped stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or discard it."""
        try:
            return self._stream.write(text)
        except OSError:
            self._discard()
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines, or discard them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the buffer, or discard it."""
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def _discard(self) -> None:
        """Redirect the file descriptor to the null device, also for other writers and for the flush at exit."""
        null = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError, ValueError):  # an in-memory stream has no file descriptor
            os.dup2(null, self._stream.fileno())
        os.close(null)


@contextmanager
def robust_output() -> Iterator[None]:
    """Prevent output from raising.

    Within the context, standard output and standard error escape characters that their encoding lacks
    (``backslashreplace``), and discard output that cannot be written (`RobustStream`). In-memory streams are left unchanged.
    """
    streams = sys.stdout, sys.stderr
    errors = [getattr(stream, "errors", None) for stream in streams]
    robust = [_robust(stream) for stream in streams]
    sys.stdout, sys.stderr = robust
    try:
        yield
    finally:
        for stream in robust:
            if isinstance(stream, RobustStream):
                stream.flush()
        sys.stdout, sys.stderr = streams
        for stream, handling in zip(streams, errors, strict=True):
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                stream.reconfigure(errors=handling)


def _robust(stream: TextIO) -> TextIO:
    """Return a stream that accepts every character and never raises; in-memory and closed streams are returned unchanged."""
    if not isinstance(stream, io.TextIOWrapper) or stream.closed:
        return stream
    stream.reconfigure(errors="backslashreplace")
    return cast(TextIO, RobustStream(stream))


def _is_informative(record: logging.LogRecord) -> bool:
    """Return whether a record of Lightning's log is more than a routine message."""
    return record.levelno > logging.INFO or not _ROUTINE.match(record.getMessage().lstrip())


def quiet_lightning() -> None:
    """Filter routine messages out of Lightning's log; requested output, such as a profile or a time limit, is kept."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if _is_informative not in logger.filters:
            logger.addFilter(_is_informative)
