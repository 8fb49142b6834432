"""What is wrong with the scenes of a data set: all are counted, and each is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import get_args

from datamodules.scenes.base import SceneSet
from datamodules.scenes.draws import posed
from datamodules.storage.folders import Split
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting
from datamodules.storage.views import Scene
from tools.check.images import Findings, Problem, SplitFindings


def check_scenes(data: SceneSet, *, decode: bool = True) -> Findings:
    """Count the scenes of a data set and look at each, whatever ``on_bad_scene`` lets training bear.

    Args:
        data: The data set.
        decode: Whether every image is decoded, by all processors that this process may use, or only its header is read.

    Raises:
        ValueError: If there are no scenes, with the way to get them.
    """
    folders, refusals = _folders(data)
    if not folders:
        raise ValueError(refusals[0].detail)
    rows, problems = [], refusals
    for splits, found in folders.items():
        scenes, broken = data.readable(splits[0])
        if decode:
            broken |= _undecodable(data, scenes)
        rows.append(SplitFindings(", ".join(splits), len(found), None))
        problems += [Problem(", ".join(splits), "unreadable", path, told) for path, told in broken.items()]
    return Findings(rows, problems, data.root)


def told_counts(findings: Findings) -> list[str]:
    """Return how many scenes every split has, and how many of them are of use, a line each."""
    lines = []
    for row in findings.rows:
        broken = findings.number("unreadable", row.splits)
        lines.append(f"{row.splits}: {row.images:,} scenes, {f'{broken:,} of them broken' if broken else 'all of use'}")
    return lines


def _folders(data: SceneSet) -> tuple[dict[tuple[Split, ...], list[Path]], list[Problem]]:
    """Return the folders of splits, those with the same scenes as one, and why others have none."""
    found: dict[tuple[Split, ...], list[Path]] = {}
    refusals = []
    for split in get_args(Split):
        try:
            folders = data.scenes(split)
        except ValueError as error:
            refusals.append(Problem(split, "missing", "", str(error), 0))
            continue
        if not folders:
            told = f"{type(data).__name__} has no scenes of the split {split} in {data.root}: {data.how_to_get()}"
            refusals.append(Problem(split, "missing", "", told, 0))
            continue
        same = next((splits for splits, others in found.items() if splits != ("train",) and others == folders), ())
        found[(*same, split)] = found.pop(same, folders)
    return found, refusals


def _undecodable(data: SceneSet, scenes: Sequence[Scene]) -> dict[str, str]:
    """Return why images of scenes cannot be decoded, by folder."""
    found: dict[str, str] = {}
    look = partial(_fault, data)
    with counting("decoding scenes", len(scenes)) as show, closing(in_order(look, scenes)) as faults:
        for done, (scene, told) in enumerate(zip(scenes, faults, strict=True), 1):
            if told is not None:
                found[str(_folder(scene))] = told
            show(done)
    return found


def _folder(scene: Scene) -> Path:
    """Return the folder of a scene, which its images lie in or below."""
    image = scene.images[0]
    return next((folder for folder in image.parents if folder.name == scene.name), image.parent)


def _fault(data: SceneSet, scene: Scene) -> str | None:
    """Return why an image of a scene cannot be decoded, or None."""
    try:
        for frame in range(len(scene.images)):
            posed(scene, [frame], scene.name, data.read_image)
    except ValueError as error:
        return str(error)
    return None
