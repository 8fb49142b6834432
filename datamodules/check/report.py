"""Findings for people: a table, the first pictures of every kind, and what mends them; and for programs: a CSV."""

from __future__ import annotations

import csv
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich import box
from rich.table import Table

from datamodules.check.pictures import Findings, Kind, Problem
from datamodules.picture_sets import PictureSet

_NAMED = 5  # pictures of every kind that are named
_MEANINGS: dict[Kind, str] = {
    "missing": "Missing",
    "extra": "More than were published",
    "unreadable": "Unreadable",
    "wrong size": "Of another size than published",
    "archive": "Archives",
    "unused": "Of no split, which does no harm",
    "small": "Small, which blurs them but is no error",
}


def counts(data: PictureSet, findings: Findings) -> Table:
    """Return the counts of every split as a table that fits 80 columns."""
    size: Kind = "small" if data.shape is None else "wrong size"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for heading in ("pictures", "published", "missing", "extra", "unreadable", size):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in findings.rows:
        columns: list[tuple[Kind, ...]] = [("missing",), ("extra", "unused"), ("unreadable",), (size,)]
        numbers = [sum(findings.number(kind, row.splits) for kind in kinds) for kinds in columns]
        wanted = "-" if row.wanted is None else f"{row.wanted:,}"
        table.add_row(row.splits or "no split", f"{row.pictures:,}", wanted, *(f"{number:,}" for number in numbers))
    return table


def named(problems: Sequence[Problem]) -> list[str]:
    """Return the first problems of every kind in words, a line each."""
    lines = []
    for kind in get_args(Kind):
        found = [problem for problem in problems if problem.kind == kind]
        if found:
            lines.append(f"{_MEANINGS[kind]}: {sum(problem.pictures for problem in found):,}")
            lines += [f"  {problem.detail}" for problem in found[:_NAMED]]
        if len(found) > _NAMED:
            lines.append(f"  and {len(found) - _NAMED:,} more: --csv FILE writes all of them.")
    return lines


def mending(data: PictureSet, findings: Findings, command: Sequence[str]) -> list[str]:
    """Return what mends what was found, a line each; none if all is right.

    Args:
        data: The data set.
        findings: What was found of it.
        command: What checked it, as in ``["python", "-m", "datamodules.check", "--config", "FILE"]``.
    """
    kinds = {problem.kind for problem in findings.problems}
    archives = [problem for problem in findings.problems if problem.kind == "archive"]
    lines = []
    if not kinds & {"missing", "extra", "unreadable", "wrong size"}:
        lines += [f"Mend: {shlex.join(['rm', archive.path])}" for archive in archives]
    elif data.source is None:
        lines.append(f"Mend: {_by_hand(data)}")
    else:
        lines.append(f"Mend: {_aside(findings.folder, data.root)}{fetching(archives, command)}")
    if "unreadable" in kinds:
        lines.append("Or leave out what is unreadable: --data.init_args.on_bad_file skip")
    if kinds & {"missing", "extra"}:
        lines.append("Or take what is there: --data.init_args.partial true")
    return lines


def fetching(archives: Sequence[Problem], command: Sequence[str]) -> str:
    """Return what deletes wrong archives, fetches a data set and checks it again.

    Example:
        >>> wrong = Problem("", "archive", "data/a.zip", "data/a.zip is cut off.")
        >>> fetching([wrong], ["python", "-m", "datamodules.check"])
        'rm data/a.zip && python -m datamodules.check --fetch true'
    """
    return " && ".join([*(shlex.join(["rm", one.path]) for one in archives), shlex.join([*command, "--fetch", "true"])])


def write(path: Path, problems: Sequence[Problem]) -> None:
    """Write all problems as a CSV: split, path, problem, the number of pictures and what is wrong."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["split", "path", "problem", "pictures", "detail"])
        table.writerows([one.splits, one.path, one.kind, one.pictures, one.detail] for one in problems)


def visible(text: str) -> str:
    r"""Return a text in one line, what cannot be printed spelled out.

    Example:
        >>> visible("a\nb\x1b.png")
        'a b\\x1b.png'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(text.split("\n")))


def _by_hand(data: PictureSet) -> str:
    """Return what to do about pictures that cannot be fetched."""
    return data.how_to_get() or "take these pictures from their source again, or delete them."


def _aside(folder: Path, root: Path) -> str:
    """Return what moves a data set out of the way; nothing is deleted, for other files may lie with the pictures."""
    parts = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    if not parts:
        return f"move the pictures out of {folder}, then "
    place = root / parts[0]
    names = (place.with_name(f"{place.name}.old{number or ''}") for number in itertools.count())
    return shlex.join(["mv", str(place), str(next(name for name in names if not name.exists()))]) + " && "
