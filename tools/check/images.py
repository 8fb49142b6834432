"""What is wrong with the images of a data set: all are counted, and each is looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from datamodules.images.base import ImageSet
from datamodules.storage.folders import NamedFile, Split
from datamodules.storage.images import image_files
from tools.check.single import faults

Kind = Literal[
    "missing",
    "extra",
    "unreadable",
    "wrong size",
    "archive",
    "unused",
    "small",
    "silent",
    "short",
    "sample_rate",
    "channels",
]

_WARNINGS = ("unused", "small", "silent", "short", "sample_rate", "channels")


class Problem(NamedTuple):
    """Something that is wrong with an image, a recording or an archive.

    Attributes:
        splits: Where it belongs, as in ``val, test``; empty if to none.
        kind: ``missing``; ``extra``, more than were published; ``unreadable``; ``wrong size``, another than was published; or
            ``archive``, whose checksum is wrong. Only warnings are ``unused``, of no split, and ``small``, which is enlarged;
            of recordings ``silent``, ``short``, of another ``sample_rate``, and ``channels`` that are mixed.
        path: The file; of a missing image the name; empty where only a number is known.
        detail: What is wrong, in words that name the path.
        images: How many it stands for.
    """

    splits: str
    kind: Kind
    path: str
    detail: str
    images: int = 1


class SplitFindings(NamedTuple):
    """A split, or several that have the same images or recordings.

    Attributes:
        splits: As in ``train`` or ``val, test``; empty for what is of no split.
        images: How many were found.
        wanted: How many were published; None if nobody says.
    """

    splits: str
    images: int
    wanted: int | None


class Findings(NamedTuple):
    """What a check found.

    Attributes:
        rows: The counts.
        problems: All that is wrong, warnings among it.
        folder: The folder that all of them are in.
    """

    rows: list[SplitFindings]
    problems: list[Problem]
    folder: Path

    def number(self, kind: Kind, splits: str | None = None) -> int:
        """Return how many have a problem of a kind, in one row or all."""
        return sum(one.images for one in self.problems if one.kind == kind and splits in (None, one.splits))

    @property
    def all_right(self) -> bool:
        """Whether there is nothing but warnings."""
        return all(problem.kind in _WARNINGS for problem in self.problems)


class ProblemGroup(NamedTuple):
    """Splits with the same files, and what is known of them.

    Attributes:
        splits: As in ``train`` or ``val, test``.
        files: Those that are there.
        names: Those that were published; None if nobody says.
        wanted: How many were published; None if nobody says.
        refusal: Why there are no files.
    """

    splits: str
    files: list[NamedFile]
    names: list[str] | None
    wanted: int | None
    refusal: str = ""


def check_images(data: ImageSet, *, decode: bool = True) -> Findings:
    """Count the images of a data set and look at each, whatever ``partial`` and ``on_bad_file`` let training bear.

    Args:
        data: The data set.
        decode: Whether every image is decoded, by all processors that this process may use, or only its header is read.

    Raises:
        ValueError: If there are no images, with the way to get them.
    """
    groups = merged([_group(data, split) for split in get_args(Split)])
    files = {file.path for group in groups for file in group.files}
    if not files:
        refusals = [group.refusal for group in groups if group.refusal]
        raise ValueError(refusals[0] if refusals else f"{type(data).__name__} has no images in {data.root}.")
    folder = Path(os.path.commonpath([path.parent for path in files]))
    unused = [
        Problem("", "unused", str(path), f"{path} belongs to no split.")
        for path, _ in image_files(folder)
        if path not in files
    ]
    rows = [SplitFindings(group.splits, len(group.files), group.wanted) for group in groups]
    rows += [SplitFindings("", len(unused), None)] if unused else []
    counted = [problem for group in groups for problem in miscounted(group)]
    return Findings(rows, [*counted, *_faults(data, groups, decode), *unused], folder)


def merged(splits: Sequence[ProblemGroup]) -> list[ProblemGroup]:
    """Return those splits of which anything is known, those with the same files as one."""
    groups: list[ProblemGroup] = []
    for new in splits:
        same = [index for index, old in enumerate(groups) if _alike(old, new)]
        if same:
            groups[same[0]] = groups[same[0]]._replace(splits=f"{groups[same[0]].splits}, {new.splits}")
        elif new.files or new.wanted or new.refusal:
            groups.append(new)
    return groups


def _alike(old: ProblemGroup, new: ProblemGroup) -> bool:
    """Return whether a split has the files of another, and should have them."""
    known = new.files or new.names
    return bool(known) and new.wanted in (None, old.wanted) and new.names == old.names and new.files == old.files


def _group(data: ImageSet, split: Split) -> ProblemGroup:
    """Return a split."""
    names = data.expected(split)
    wanted = data.count(split)
    try:
        return ProblemGroup(split, data.files(split), names, wanted)
    except ValueError as error:
        return ProblemGroup(split, [], None, wanted, str(error))


def miscounted(group: ProblemGroup) -> list[Problem]:
    """Return which files are missing and which too many, as far as that is known."""
    if group.refusal:
        return [Problem(group.splits, "missing", "", group.refusal, group.wanted or 0)]
    if group.names is not None:
        names, there = set(group.names), {file.name for file in group.files}
        missing = [
            Problem(group.splits, "missing", name, f"{name} is missing.") for name in group.names if name not in there
        ]
        extra = [file.path for file in group.files if file.name not in names]
        return missing + [Problem(group.splits, "extra", str(path), f"{path} was not published.") for path in extra]
    beyond = len(group.files) - (len(group.files) if group.wanted is None else group.wanted)
    if beyond == 0:
        return []
    detail = f"{abs(beyond):,} of the split {group.splits}: which ones is not known, only their number was published."
    return [Problem(group.splits, "extra" if beyond > 0 else "missing", "", detail, abs(beyond))]


def _faults(data: ImageSet, groups: Sequence[ProblemGroup], decode: bool) -> list[Problem]:
    """Return what is wrong with single images."""
    places = [(group.splits, file.path) for group in groups for file in group.files]
    found = faults([path for _, path in places], data.size, data.shape, decode=decode)
    return [
        Problem(splits, fault.kind, str(path), fault.detail)
        for (splits, path), fault in zip(places, found, strict=True)
        if fault is not None
    ]
