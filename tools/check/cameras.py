"""Describe the cameras of scenes: sizes, lenses, principal points, splits of frames, and the convention of the poses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from datamodules.storage.poses import likely_convention
from datamodules.storage.views import Scene

_CENTRED = 0.01  # largest offset of a principal point from the centre of the image in pixels


def camera_facts(scenes: Sequence[Scene]) -> dict[str, str]:
    """Return facts of the cameras of scenes, by what they describe.

    Args:
        scenes: At least one scene.
    """
    facts = {
        "sizes": _counted([f"{scene.shape[0]} x {scene.shape[1]} pixels" for scene in scenes]),
        "lenses": _lenses(scenes),
        "principal points": _principal_points(scenes),
        "convention": _conventions(scenes),
    }
    splits = [_split(scene) for scene in scenes if scene.splits]
    return facts | ({"frames": _counted(splits)} if splits else {})


def _counted(texts: Sequence[str]) -> str:
    """Return distinct texts, most frequent first, with the number of scenes if there are several."""
    counts = Counter(texts).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return "; ".join(f"{text} ({count:,} scene(s))" for text, count in counts)


def _lenses(scenes: Sequence[Scene]) -> str:
    """Return the focal lengths and the distortion of scenes."""
    focals = torch.cat([scene.intrinsics[:, :2] for scene in scenes])
    low, high = float(focals.min()), float(focals.max())
    lengths = f"{low:.5g}" if high - low < 1e-4 * high else f"{low:.5g} to {high:.5g}"
    distorted = sum(scene.distortion is not None for scene in scenes)
    undone = (
        f", OPENCV distortion undone in {distorted:,} of {len(scenes):,} scene(s)" if distorted else ", no distortion"
    )
    return f"focal length {lengths} pixels{undone}"


def _principal_points(scenes: Sequence[Scene]) -> str:
    """Return how far principal points are from the centres of images."""
    offsets = torch.cat(
        [scene.intrinsics[:, 2:] - torch.tensor((scene.shape[1] / 2, scene.shape[0] / 2)) for scene in scenes]
    )
    if float(offsets.abs().max()) <= _CENTRED:
        return "at the centre of the images"
    columns, rows = offsets.abs().amax(0).tolist()
    return f"up to {columns:.3g} columns and {rows:.3g} rows from the centre of the images"


def _split(scene: Scene) -> str:
    """Return the number of frames of every split of a scene."""
    return ", ".join(f"{split} {len(frames):,}" for split, frames in (scene.splits or {}).items())


def _conventions(scenes: Sequence[Scene]) -> str:
    """Return the convention in which scenes are read, and which they seem to have."""
    texts = []
    for scene in scenes:
        likely = likely_convention(scene.poses, scene.convention)
        if likely == scene.convention:
            texts.append(f"{likely}, in which the cameras look at a common point")
        elif likely is None:
            texts.append(f"read as {scene.convention}; the convention cannot be determined from the poses")
        else:
            texts.append(
                f"warning: read as {scene.convention}, but the poses seem to be {likely}, in which the cameras look at a "
                f"common point: set --data.init_args.convention {likely}"
            )
    return _counted(texts)
