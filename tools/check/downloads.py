"""What lies beside a data set: the archive it came from, and downloads that were broken off."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from datamodules.storage.download import Source, download
from tools.check.images import Problem


def check_downloads(source: Source | None, root: Path) -> tuple[list[Problem], list[str]]:
    """Return what is wrong with the archive of a data set, and what is no problem, in words.

    Its checksum is computed anew, even if an earlier download remembered it.

    Args:
        source: The archive; without one there is nothing to check.
        root: The folder that it is fetched into.
    """
    if source is None:
        return [], []
    path = root / source.filename
    if not path.exists():
        return [], [f"{path} is not there, from which images are unpacked.", *_leftovers(root)]
    with suppress(OSError):
        path.with_name(f"{path.name}.verified").unlink(missing_ok=True)
    try:
        download(source, root)
    except ValueError as error:
        return [Problem("", "archive", str(path), str(error))], _leftovers(root)
    return [], [f"{path} has the right checksum.", *_leftovers(root)]


def _leftovers(root: Path) -> list[str]:
    """Return what processes that were killed left in a folder, in words."""
    return [_leftover(path) for path in sorted(root.glob("*.part")) if not path.name.startswith(".")]


def _leftover(path: Path) -> str:
    """Return how much came of a download, or that an archive was unpacked half."""
    if path.is_dir():
        return f"{path} was unpacked half: it is removed when it is unpacked again."
    came, length = path.stat().st_size, None
    with suppress(OSError, ValueError, TypeError, KeyError):
        length = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))["length"]
    of = f" of {length:,}" if isinstance(length, int) else ""
    return f"{path} is a download that was broken off after {came:,}{of} bytes: the next one goes on."
