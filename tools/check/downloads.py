"""Check the archive of a data set, and find interrupted downloads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from datamodules.storage.download import Source, download
from tools.check.images import Problem


def check_downloads(sources: Sequence[Source], root: Path) -> tuple[list[Problem], list[str]]:
    """Return the problems of the archives of a data set, and notes that are not problems.

    Checksums are recomputed even if the archives were verified before.

    Args:
        sources: The archives; if empty, there is nothing to check.
        root: Download folder of the archives.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    for source in sources:
        path = root / source.filename
        if not path.exists():
            notes.append(f"The archive {path} does not exist.")
            continue
        with suppress(OSError):
            path.with_name(f"{path.name}.verified").unlink(missing_ok=True)
        try:
            download(source, root)
            notes.append(f"The archive {path} has the expected checksum.")
        except ValueError as error:
            problems.append(Problem("", "archive", str(path), str(error)))
    if sources:
        parts = sorted([*root.glob("*.part"), *root.glob("*/*.part")])
        notes += [_leftover(part) for part in parts if not part.name.startswith(".")]
    return problems, notes


def _leftover(path: Path) -> str:
    """Describe the partial result of an interrupted download or unpacking."""
    if path.is_dir():
        return f"{path} is partially unpacked: the next unpacking replaces it."
    received, length = path.stat().st_size, None
    with suppress(OSError, ValueError, TypeError, KeyError):
        length = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))["length"]
    total = f" of {length:,}" if isinstance(length, int) else ""
    return f"{path} is a partial download of {received:,}{total} bytes: the next download resumes it."
