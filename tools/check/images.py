"""Check the images of a data set: count all of them and read each."""

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
    "too small",
    "related",
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
    """A problem of an image, a recording, a scene or an archive.

    Attributes:
        splits: Splits of the file, such as ``val, test``; empty if it belongs to none.
        kind: Errors are ``missing``, ``extra`` (more than published), ``unreadable``, ``wrong size`` (not the published one),
            ``too small`` (for crops that are not enlarged), ``related`` (an image of a lower resolution that is missing or
            unreadable) and ``archive`` (wrong checksum). Warnings are ``unused`` (in no split) and ``small`` (enlarged in
            training); for recordings ``silent``, ``short``, ``sample_rate`` (resampled in training) and ``channels`` (mixed to
            mono).
        path: Path of the file; the name of a missing file; empty if only the number of files is known.
        detail: Description that names the path.
        images: Number of files that it represents.
    """

    splits: str
    kind: Kind
    path: str
    detail: str
    images: int = 1


class SplitFindings(NamedTuple):
    """File counts of a split, or of several splits with the same files.

    Attributes:
        splits: Names of the splits, such as ``train`` or ``val, test``; empty for files in no split.
        images: Number of existing files.
        num_published: Number of published files; None if it is unknown.
    """

    splits: str
    images: int
    num_published: int | None


class Findings(NamedTuple):
    """Result of a check.

    Attributes:
        rows: File counts per split.
        problems: Errors and warnings.
        folder: Common parent folder of all files.
    """

    rows: list[SplitFindings]
    problems: list[Problem]
    folder: Path

    def number(self, kind: Kind, splits: str | None = None) -> int:
        """Return the number of files with a kind of problem, in one row or in all."""
        return sum(
            problem.images for problem in self.problems if problem.kind == kind and splits in (None, problem.splits)
        )

    @property
    def all_right(self) -> bool:
        """Whether there are no errors; warnings are allowed."""
        return all(problem.kind in _WARNINGS for problem in self.problems)


class ProblemGroup(NamedTuple):
    """Splits with the same files, and the published names and number of files.

    Attributes:
        splits: Names of the splits, such as ``train`` or ``val, test``.
        files: Existing files.
        names: Names of published files; None if they are unknown.
        num_published: Number of published files; None if it is unknown.
        refusal: Error message if the files of the split could not be listed.
    """

    splits: str
    files: list[NamedFile]
    names: list[str] | None
    num_published: int | None
    refusal: str = ""


def check_images(data: ImageSet, *, decode: bool = True, smallest: int | None = None) -> Findings:
    """Count the images of a data set and read each, regardless of ``partial`` and ``on_bad_file``.

    Args:
        data: The data set.
        decode: Whether to decode every image, in parallel on all available processors, or read only the headers.
        smallest: Pixels that the shorter side of training images must have at least; if None, smaller images than ``size`` of
            the data set are enlarged.

    Raises:
        ValueError: If there are no images. The message says how to get them.
    """
    groups = merged([_group(data, split) for split in get_args(Split)])
    files = {file.path for group in groups for file in group.files}
    if not files:
        refusals = [group.refusal for group in groups if group.refusal]
        raise ValueError(refusals[0] if refusals else f"{type(data).__name__} has no images in {data.root}.")
    folder = Path(os.path.commonpath([path.parent for path in files]))
    related = _related(data, groups)
    unused = [
        Problem("", "unused", str(path), f"{path} does not belong to a split.")
        for path, _ in image_files(folder)
        if path not in files and path not in related
    ]
    rows = [SplitFindings(group.splits, len(group.files), group.num_published) for group in groups]
    rows += [SplitFindings("", len(unused), None)] if unused else []
    problems = [problem for group in groups for problem in miscounted(group)]
    files_of_splits = [(group.splits, file.path) for group in groups for file in group.files]
    paths = [path for _, path in files_of_splits]
    required = [smallest if smallest and "train" in splits else 1 for splits, _ in files_of_splits]
    results = faults(paths, required, data.size if smallest is None else 1, data.shape, decode=decode)
    problems += [
        Problem(splits, fault.kind, str(path), fault.detail)
        for (splits, path), fault in zip(files_of_splits, results, strict=True)
        if fault is not None
    ]
    results = faults(list(related), [1] * len(related), 1, None, decode=decode) if related else iter(())
    problems += [
        Problem(splits, "related", str(path), fault.detail)
        for (path, splits), fault in zip(related.items(), results, strict=True)
        if fault is not None
    ]
    return Findings(rows, problems + unused, folder)


def _related(data: ImageSet, groups: Sequence[ProblemGroup]) -> dict[Path, str]:
    """Return the related files of all splits, and the splits that each belongs to."""
    return {
        file.path: group.splits
        for group in groups
        if group.files
        for split in get_args(Split)
        if split in group.splits.split(", ")
        for file in data.related_files(split)
    }


def merged(splits: Sequence[ProblemGroup]) -> list[ProblemGroup]:
    """Merge splits with the same existing and published files; drop splits without files, counts and errors."""
    groups: list[ProblemGroup] = []
    for new in splits:
        for index, group in enumerate(groups):
            if _has_same_files(group, new):
                groups[index] = group._replace(splits=f"{group.splits}, {new.splits}")
                break
        else:
            if new.files or new.num_published or new.refusal:
                groups.append(new)
    return groups


def _has_same_files(old: ProblemGroup, new: ProblemGroup) -> bool:
    """Return whether two splits have the same existing and published files."""
    is_known = bool(new.files or new.names)
    return (
        is_known
        and new.num_published in (None, old.num_published)
        and new.names == old.names
        and new.files == old.files
    )


def _group(data: ImageSet, split: Split) -> ProblemGroup:
    """Return the existing and published files of a split."""
    names, count = data.expected(split), data.count(split)
    try:
        return ProblemGroup(split, data.files(split), names, count)
    except ValueError as error:
        return ProblemGroup(split, [], None, count, str(error))


def miscounted(group: ProblemGroup) -> list[Problem]:
    """Return the missing and the extra files, by name if the published names are known, else by number."""
    if group.refusal:
        return [Problem(group.splits, "missing", "", group.refusal, group.num_published or 0)]
    if group.names is not None:
        published, existing = set(group.names), {file.name for file in group.files}
        missing = [name for name in group.names if name not in existing]
        extra = [file.path for file in group.files if file.name not in published]
        return [
            *(Problem(group.splits, "missing", name, f"{name} is missing.") for name in missing),
            *(Problem(group.splits, "extra", str(path), f"{path} was not published.") for path in extra),
        ]
    if group.num_published is None or group.num_published == len(group.files):
        return []
    surplus = len(group.files) - group.num_published
    kind: Kind = "extra" if surplus > 0 else "missing"
    detail = f"{abs(surplus):,} in split {group.splits}. Only the number of files was published, not their names."
    return [Problem(group.splits, kind, "", detail, abs(surplus))]
