"""Check the scenes of a data set: count all of them and read each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import get_args

from datamodules.scenes.base import SceneSet, notes_on
from datamodules.storage.folders import Split
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting
from datamodules.storage.views import Scene
from tools.check.cameras import camera_facts
from tools.check.images import Findings, Problem, SplitFindings


def check_scenes(data: SceneSet, *, decode: bool = True) -> Findings:
    """Count the scenes of a data set and read each, regardless of ``on_bad_scene``; add facts of the cameras to its notes.

    Args:
        data: The data set.
        decode: Whether to decode every image, in parallel on all available processors, or read only the headers.

    Raises:
        ValueError: If there are no scenes. The message says how to get them.
    """
    folders, problems = _folders(data)
    if not folders:
        raise ValueError(problems[0].detail)
    rows, readable = [], list[Scene]()
    for splits, paths in folders.items():
        scenes, unreadable = data.readable(splits[0])
        if decode:
            unreadable |= _undecodable(scenes)
        rows.append(SplitFindings(", ".join(splits), len(paths), None))
        readable += scenes
        problems += [Problem(", ".join(splits), "unreadable", path, reason) for path, reason in unreadable.items()]
    if readable:
        distinct = list({scene.images: scene for scene in readable}.values())  # a scene may be in several splits
        data.notes |= notes_on(distinct) | camera_facts(distinct)
    return Findings(rows, problems, data.root)


def folder_counts(findings: Findings, noun: str) -> list[str]:
    """Return the number of scenes or shapes, and of unreadable ones, of every split, one line each."""
    lines = []
    for row in findings.rows:
        unreadable = findings.number("unreadable", row.splits)
        lines.append(
            f"{row.splits}: {row.images:,} {noun}, {f'{unreadable:,} unreadable' if unreadable else 'all readable'}"
        )
    return lines


def _folders(data: SceneSet) -> tuple[dict[tuple[Split, ...], list[Path]], list[Problem]]:
    """Return the scene folders by split, with equal held-out splits merged, and a problem per split without scenes."""
    by_splits: dict[tuple[Split, ...], list[Path]] = {}
    problems = []
    for split in get_args(Split):
        try:
            folders = data.scenes(split)
        except ValueError as error:
            problems.append(Problem(split, "missing", "", str(error), 0))
            continue
        if not folders:
            detail = f"{type(data).__name__} has no scenes of the split {split} in {data.root}: {data.how_to_get()}"
            problems.append(Problem(split, "missing", "", detail, 0))
            continue
        same = next((splits for splits, others in by_splits.items() if splits != ("train",) and others == folders), ())
        by_splits[(*same, split)] = by_splits.pop(same, folders)
    return by_splits, problems


def _undecodable(scenes: Sequence[Scene]) -> dict[str, str]:
    """Return the reasons why images of scenes cannot be decoded, by scene folder."""
    reasons: dict[str, str] = {}
    with counting("decoding scenes", len(scenes)) as show, closing(in_order(_decode_error, scenes)) as results:
        for done, (scene, reason) in enumerate(zip(scenes, results, strict=True), 1):
            if reason is not None:
                image = scene.images[0]
                folder = next((parent for parent in image.parents if parent.name == scene.name), image.parent)
                reasons[str(folder)] = reason
            show(done)
    return reasons


def _decode_error(scene: Scene) -> str | None:
    """Return why an image of a scene cannot be decoded; None if all can."""
    try:
        for frame in range(len(scene.images)):
            scene.read(frame)
    except ValueError as error:
        return str(error)
    return None
