"""Report of a check: a table of counts, the first problems of every kind, their fixes, and a CSV file."""

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
from datamodules.storage.files import written_whole
from tools.check.images import Findings, Kind, Problem

_MAX_LISTED = 5  # problems of every kind that are listed
_COLUMNS: tuple[tuple[Kind, ...], ...] = (("missing",), ("extra", "unused"), ("unreadable",))  # for all data sets
_TITLES: dict[Kind, str] = {
    "missing": "Missing",
    "extra": "More than published",
    "unreadable": "Unreadable",
    "wrong size": "Wrong size",
    "too small": "Too small for training",
    "related": "Low resolutions that are missing or unreadable",
    "archive": "Archives",
    "unused": "Not in any split (harmless)",
    "small": "Smaller than the training size (warning)",
    "silent": "Silent (warning)",
    "short": "Shorter than a training excerpt (warning)",
    "sample_rate": "Other sampling rate, resampled (warning)",
    "channels": "Several channels, mixed to mono (warning)",
}


def count_table(data: ImageSet | RecordingSet, findings: Findings) -> Table:
    """Return the file counts of every split as a table that fits into 80 columns."""
    extra_kinds: tuple[tuple[Kind, ...], ...]
    if isinstance(data, RecordingSet):
        extra_kinds = (("short",), ("silent",))
    else:
        extra_kinds = (("small", "too small"),) if data.shape is None else (("wrong size",),)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for heading in (
        file_noun(data),
        "published",
        "missing",
        "extra",
        "unreadable",
        *(kinds[0] for kinds in extra_kinds),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in findings.rows:
        columns = (*_COLUMNS, *extra_kinds)
        counts = [sum(findings.number(kind, row.splits) for kind in kinds) for kinds in columns]
        published = "-" if row.num_published is None else f"{row.num_published:,}"
        table.add_row(row.splits or "no split", f"{row.images:,}", published, *(f"{count:,}" for count in counts))
    return table


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """Return the first problems of every kind, one per line below a title."""
    lines = []
    for kind in get_args(Kind):
        selected = [problem for problem in problems if problem.kind == kind]
        if selected:
            lines.append(f"{_TITLES[kind]}: {sum(problem.images for problem in selected):,}")
            lines += [f"  {problem.detail}" for problem in selected[:_MAX_LISTED]]
        if len(selected) > _MAX_LISTED:
            lines.append(f"  and {len(selected) - _MAX_LISTED:,} more; --csv FILE lists all of them.")
    return lines


def file_noun(data: ImageSet | RecordingSet) -> str:
    """Return what the files of a data set are called in the plural."""
    return "files" if isinstance(data, RecordingSet) else "images"


def can_fetch(data: ImageSet | RecordingSet) -> bool:
    """Return whether a data set can be downloaded."""
    return type(data).fetch is not RecordingSet.fetch if isinstance(data, RecordingSet) else bool(data.sources)


def fixes(data: ImageSet | RecordingSet, findings: Findings, command: Sequence[str]) -> list[str]:
    """Return how to fix the problems, one suggestion per line; empty if there are only warnings.

    Args:
        data: The data set.
        findings: Result of the check.
        command: Command that ran the check, such as ``["python", "-m", "tools.check", "--config", "FILE"]``.
    """
    kinds = {problem.kind for problem in findings.problems}
    archives = [problem for problem in findings.problems if problem.kind == "archive"]
    lines = []
    if not kinds & {"missing", "extra", "unreadable", "wrong size"}:
        lines += [f"Fix: {shlex.join(['rm', archive.path])}" for archive in archives]
    elif can_fetch(data):
        move = _move_command(findings.folder, data.root, file_noun(data))
        lines.append(f"Fix: {move}{fetch_command(archives, command)}")
    else:
        instructions = "" if isinstance(data, RecordingSet) else data.how_to_get()
        lines.append(f"Fix: {instructions or f'obtain new copies of these {file_noun(data)}, or delete them.'}")
    if "too small" in kinds:
        lines.append("Fix: remove the images that are too small, or lower size or scales.")
    folders = sorted({Path(problem.path).parent for problem in findings.problems if problem.kind == "related"})
    if isinstance(data, ImageSet):
        lines += [f"Fix: {data.how_to_replace(folder)}" for folder in folders]
    if "unreadable" in kinds:
        lines.append("Or skip unreadable files: --data.init_args.on_bad_file skip")
    if any(row.num_published is not None for row in findings.rows) and kinds & {"missing", "extra"}:
        lines.append("Or use the existing files only: --data.init_args.partial true")
    return lines


def fetch_command(archives: Sequence[Problem], command: Sequence[str]) -> str:
    """Return the shell command that deletes damaged archives, downloads the data set and checks it again.

    Example:
        >>> damaged = Problem("", "archive", "data/a.zip", "data/a.zip is truncated.")
        >>> fetch_command([damaged], ["python", "-m", "tools.check"])
        'rm data/a.zip && python -m tools.check --fetch true'
    """
    removals = [shlex.join(["rm", archive.path]) for archive in archives]
    return " && ".join([*removals, shlex.join([*command, "--fetch", "true"])])


def write_csv(path: Path, problems: Sequence[Problem], noun: str = "images") -> None:
    """Write all problems as a CSV with the columns split, path, problem, number of files and detail.

    Args:
        path: Path of the CSV file.
        problems: The problems.
        noun: Heading of the number of files.
    """
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["split", "path", "problem", noun, "detail"])
        table.writerows(
            [problem.splits, problem.path, problem.kind, problem.images, problem.detail] for problem in problems
        )


def printable(text: str) -> str:
    r"""Return a text as one line, with unprintable characters escaped.

    Example:
        >>> printable("a\nb\x1b.png")
        'a b\\x1b.png'
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.split("\n")))


def _move_command(folder: Path, root: Path, noun: str) -> str:
    """Return the shell command that moves a data set away; nothing is deleted, since other files may be in its folder."""
    parts = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    if not parts:
        return f"move the {noun} out of {folder}, then "
    source = root / parts[0]
    targets = (source.with_name(f"{source.name}.old{number or ''}") for number in itertools.count())
    return shlex.join(["mv", str(source), str(next(target for target in targets if not target.exists()))]) + " && "
