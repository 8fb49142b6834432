"""Check the shapes of a data set: count all of them and read each."""

from __future__ import annotations

from functools import partial
from typing import get_args

from datamodules.shapes.shape_set import ShapeSet
from datamodules.storage.folders import NamedFile, Split
from datamodules.storage.parallel import unreadable_of
from tools.check.images import Findings, Problem, SplitFindings


def check_shapes(data: ShapeSet, *, decode: bool = True) -> Findings:
    """Count the shapes of a data set and read each, regardless of ``on_bad_shape``.

    Args:
        data: The data set.
        decode: Whether to read all points, in parallel on all available processors, or only the headers.

    Raises:
        ValueError: If there are no shapes. The message says how to get them.
    """
    rows, problems = [], []
    for splits, files in _files(data).items():
        label = ", ".join(splits)
        if not files:
            detail = f"{type(data).__name__} has no shapes of the split {label} in {data.root}: {data.how_to_get()}"
            problems.append(Problem(label, "missing", "", detail, 0))
            continue
        reasons = unreadable_of(files, partial(_reason, data=data, decode=decode), "reading shapes")
        rows.append(SplitFindings(label, len(files), None))
        problems += [Problem(label, "unreadable", path, reason) for path, reason in reasons.items()]
    return Findings(rows, problems, data.root)


def _files(data: ShapeSet) -> dict[tuple[Split, ...], list[NamedFile]]:
    """Return the files by split, with equal held-out splits merged."""
    by_splits: dict[tuple[Split, ...], list[NamedFile]] = {}
    for split in get_args(Split):
        files = data.files(split)
        same = next((splits for splits, others in by_splits.items() if splits != ("train",) and others == files), ())
        by_splits[(*same, split)] = by_splits.pop(same, files)
    return by_splits


def _reason(file: NamedFile, data: ShapeSet, decode: bool) -> str | None:
    """Return why a shape cannot be used; None if it can."""
    reason = data.problem(file)
    if reason is None and decode:
        try:
            data.read(file)
        except ValueError as error:
            reason = str(error)
    return reason
