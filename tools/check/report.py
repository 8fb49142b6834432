"""Findings for people: a table, the first images of every kind, and what fixes them; and for programs: a CSV."""

from __future__ import annotations

import csv
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich import box
from rich.table import Table

from datamodules.audio.base import RecordingSet
from datamodules.images.base import ImageSet
from tools.check.images import Findings, Kind, Problem

_NAMED = 5  # files of every kind that are named
_COLUMNS: tuple[tuple[Kind, ...], ...] = (("missing",), ("extra", "unused"), ("unreadable",))  # those of all data
_MEANINGS: dict[Kind, str] = {
    "missing": "Missing",
    "extra": "More than were published",
    "unreadable": "Unreadable",
    "wrong size": "Of another size than published",
    "archive": "Archives",
    "unused": "Of no split, which does no harm",
    "small": "Small, which blurs them but is no error",
    "silent": "Silent, which is no error",
    "short": "Shorter than a piece, which is no error",
    "sample_rate": "Of another rate, which are resampled",
    "channels": "Of several channels, which are mixed",
}


def counts(data: ImageSet | RecordingSet, findings: Findings) -> Table:
    """Return the counts of every split as a table that fits 80 columns."""
    own = _own_kinds(data)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for heading in (things(data), "published", "missing", "extra", "unreadable", *own):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in findings.rows:
        columns = (*_COLUMNS, *((kind,) for kind in own))
        numbers = [sum(findings.number(kind, row.splits) for kind in kinds) for kinds in columns]
        wanted = "-" if row.wanted is None else f"{row.wanted:,}"
        table.add_row(row.splits or "no split", f"{row.images:,}", wanted, *(f"{number:,}" for number in numbers))
    return table


def named(problems: Sequence[Problem]) -> list[str]:
    """Return the first problems of every kind in words, a line each."""
    lines = []
    for kind in get_args(Kind):
        found = [problem for problem in problems if problem.kind == kind]
        if found:
            lines.append(f"{_MEANINGS[kind]}: {sum(problem.images for problem in found):,}")
            lines += [f"  {problem.detail}" for problem in found[:_NAMED]]
        if len(found) > _NAMED:
            lines.append(f"  and {len(found) - _NAMED:,} more: --csv FILE writes all of them.")
    return lines


def things(data: ImageSet | RecordingSet) -> str:
    """Return what a data set consists of, in the plural."""
    return "files" if isinstance(data, RecordingSet) else "images"


def can_fetch(data: ImageSet | RecordingSet) -> bool:
    """Return whether a data set knows where it can be downloaded."""
    return type(data).fetch is not RecordingSet.fetch if isinstance(data, RecordingSet) else data.source is not None


def fixing(data: ImageSet | RecordingSet, findings: Findings, command: Sequence[str]) -> list[str]:
    """Return what fixes what was found, a line each; none if all is right.

    Args:
        data: The data set.
        findings: What was found of it.
        command: What checked it, as in ``["python", "-m", "tools.check", "--config", "FILE"]``.
    """
    kinds = {problem.kind for problem in findings.problems}
    archives = [problem for problem in findings.problems if problem.kind == "archive"]
    lines = []
    if not kinds & {"missing", "extra", "unreadable", "wrong size"}:
        lines += [f"Fix: {shlex.join(['rm', archive.path])}" for archive in archives]
    elif can_fetch(data):
        aside = _aside(findings.folder, data.root, things(data))
        lines.append(f"Fix: {aside}{fetching(archives, command)}")
    else:
        lines.append(f"Fix: {_by_hand(data)}")
    if "unreadable" in kinds:
        lines.append("Or leave out what is unreadable: --data.init_args.on_bad_file skip")
    if any(row.wanted is not None for row in findings.rows) and kinds & {"missing", "extra"}:
        lines.append("Or take what is there: --data.init_args.partial true")
    return lines


def fetching(archives: Sequence[Problem], command: Sequence[str]) -> str:
    """Return what deletes wrong archives, fetches a data set and checks it again.

    Example:
        >>> wrong = Problem("", "archive", "data/a.zip", "data/a.zip is cut off.")
        >>> fetching([wrong], ["python", "-m", "tools.check"])
        'rm data/a.zip && python -m tools.check --fetch true'
    """
    return " && ".join([*(shlex.join(["rm", one.path]) for one in archives), shlex.join([*command, "--fetch", "true"])])


def write(path: Path, problems: Sequence[Problem], what: str = "images") -> None:
    """Write all problems as a CSV: split, path, problem, the number of what it stands for, and what is wrong."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["split", "path", "problem", what, "detail"])
        table.writerows([one.splits, one.path, one.kind, one.images, one.detail] for one in problems)


def visible(text: str) -> str:
    r"""Return a text in one line, what cannot be printed spelled out.

    Example:
        >>> visible("a\nb\x1b.png")
        'a b\\x1b.png'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(text.split("\n")))


def _own_kinds(data: ImageSet | RecordingSet) -> tuple[Kind, ...]:
    """Return the kinds that have a column in tables of this kind of data alone."""
    if isinstance(data, RecordingSet):
        return "short", "silent"
    return ("small",) if data.shape is None else ("wrong size",)


def _by_hand(data: ImageSet | RecordingSet) -> str:
    """Return what to do about files that cannot be fetched."""
    known = "" if isinstance(data, RecordingSet) else data.how_to_get()
    return known or f"take these {things(data)} from their source again, or delete them."


def _aside(folder: Path, root: Path, what: str) -> str:
    """Return what moves a data set out of the way; nothing is deleted, for other files may lie with it."""
    parts = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    if not parts:
        return f"move the {what} out of {folder}, then "
    place = root / parts[0]
    names = (place.with_name(f"{place.name}.old{number or ''}") for number in itertools.count())
    return shlex.join(["mv", str(place), str(next(name for name in names if not name.exists()))]) + " && "
