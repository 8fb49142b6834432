"""Standard output and log of the program: nothing that is printed ends a run, and only what is of use is logged."""

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
_NOISE = re.compile(
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


class LastingStream:
    """A text stream that goes on without an error when nobody reads it any more.

    A closed pipe, a terminal that has gone and a full disk are such cases; what is written from then on is dropped.

    Args:
        stream: What is written to; all else is its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines, or drop them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Lead what is written from now on, also by others and at exit, to nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError, ValueError):  # a stream in memory has no number
            os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let nothing that is printed end the program.

    Within the context, characters that the encoding of standard output or standard error lacks are printed as their numbers
    (``backslashreplace``), and what nobody reads any more is dropped (`LastingStream`). Streams that are no files are left as
    they are.
    """
    before = sys.stdout, sys.stderr
    errors = [getattr(stream, "errors", None) for stream in before]
    within = [_lasting(stream) for stream in before]
    sys.stdout, sys.stderr = within
    try:
        yield
    finally:
        for stream in within:
            if isinstance(stream, LastingStream):
                stream.flush()
        sys.stdout, sys.stderr = before
        for stream, handling in zip(before, errors, strict=True):
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                stream.reconfigure(errors=handling)


def _lasting(stream: TextIO) -> TextIO:
    """Return a stream that takes every character, and does not end the program."""
    if not isinstance(stream, io.TextIOWrapper) or stream.closed:
        return stream
    stream.reconfigure(errors="backslashreplace")
    return cast(TextIO, LastingStream(stream))


def _of_use(record: logging.LogRecord) -> bool:
    """Return whether a record of Lightning's log is of use to the user."""
    return record.levelno > logging.INFO or not _NOISE.match(record.getMessage().lstrip())


def quiet_lightning() -> None:
    """Leave out of Lightning's log what it says in every run; what was asked for, a profile or a time limit, is logged."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if _of_use not in logger.filters:
            logger.addFilter(_of_use)
