"""Check the archive of a data set, and find interrupted downloads."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from datamodules.storage.download import Source, download
from tools.check.images import Problem


def check_downloads(source: Source | None, root: Path) -> tuple[list[Problem], list[str]]:
    """Return the problems of the archive of a data set, and notes that are not problems.

    The checksum is recomputed even if the archive was verified before.

    Args:
        source: The archive; if None, there is nothing to check.
        root: Download folder of the archive.
    """
    if source is None:
        return [], []
    path = root / source.filename
    leftovers = [_leftover(part) for part in sorted(root.glob("*.part")) if not part.name.startswith(".")]
    if not path.exists():
        return [], [f"The archive {path} does not exist.", *leftovers]
    with suppress(OSError):
        path.with_name(f"{path.name}.verified").unlink(missing_ok=True)
    try:
        download(source, root)
    except ValueError as error:
        return [Problem("", "archive", str(path), str(error))], leftovers
    return [], [f"The archive {path} has the expected checksum.", *leftovers]


def _leftover(path: Path) -> str:
    """Describe the partial result of an interrupted download or unpacking."""
    if path.is_dir():
        return f"{path} is partially unpacked: the next unpacking replaces it."
    received, length = path.stat().st_size, None
    with suppress(OSError, ValueError, TypeError, KeyError):
        length = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))["length"]
    total = f" of {length:,}" if isinstance(length, int) else ""
    return f"{path} is a partial download of {received:,}{total} bytes: the next download resumes it."
