"""Commands beside cli.py: ``python -m tools.NAME --help``."""

from __future__ import annotations

import sys
from types import TracebackType

from application.threads import limit_spinning


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print one message if memory ran out, else the traceback."""
    from application.failures import explain_failure  # imports torch

    message = explain_failure(error)
    if message is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(f"error: {message}", file=sys.stderr)


if sys.argv[:1] == ["-m"]:  # a command is about to be imported and run
    limit_spinning()
    sys.excepthook = _report
