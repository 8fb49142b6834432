"""Scenes of meshes in the layout of learnit's ShapeNet: objects are written whole, one after the other or at a time."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from datamodules.cameras import focal_length, look_at
from datamodules.randomness import generator_at, seed_at
from datamodules.scenes.raycast import Caster
from datamodules.storage.files import flush_folder, locked, refusal_of_link, written_whole
from datamodules.storage.folders import NamedFile, Split
from datamodules.storage.meshes import RADIUS, read_mesh
from datamodules.storage.progress import counting

_FORMAT = 1  # of the images: another look of the same settings gets another number
_NAMED = 5  # meshes that a message names
_TRANSFORMS = "transforms.json"


@dataclass(frozen=True)
class RenderSettings:
    """What images of objects depend on besides the objects, and how objects are split.

    Args:
        views: Images of an object.
        size: Pixels along each side of an image.
        seed: Of cameras and splits.
        field_of_view: Degrees, along rows and columns; wide enough for a ball of radius 1.4 at the distance.
        distance: Of the cameras from the origin.
        cameras: ``own`` cameras of every object, drawn by its name, or the same ``shared`` by all.
        elevation: Degrees above the horizontal plane, least and most; cameras are drawn evenly from that part of the sphere.
        up: Axis of the meshes that points up.
        val: Part of the objects for validation, by the names of objects alone.
        test: The same for the test.

    Raises:
        ValueError: If a number is out of range.
    """

    views: int = 50
    size: int = 128
    seed: int = 0
    field_of_view: float = 45.0
    distance: float = 4.0
    cameras: Literal["own", "shared"] = "own"
    elevation: tuple[float, float] = (0.0, 60.0)
    up: Literal["y", "z"] = "y"
    val: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        if self.views < 1 or self.size < 1:
            raise ValueError(f"views is {self.views}, size {self.size}: each is at least 1.")
        if not (RADIUS < self.distance < math.inf):
            raise ValueError(
                f"distance is {self.distance:g}: objects have radius {RADIUS:g}, cameras stay outside of it."
            )
        least = 2 * math.degrees(math.asin(RADIUS / self.distance))
        if not least <= self.field_of_view < 180:
            raise ValueError(
                f"field_of_view is {self.field_of_view:g} degrees: objects of radius {RADIUS:g} at distance {self.distance:g} "
                f"fit into {math.ceil(100 * least) / 100:g} degrees ({math.radians(least):.4f} rad) or more, below 180."
            )
        if not -90 <= self.elevation[0] <= self.elevation[1] <= 90:
            raise ValueError(
                f"elevation is {self.elevation[0]:g} to {self.elevation[1]:g}: degrees from -90 to 90, least first."
            )
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ValueError(f"val is {self.val:g}, test {self.test:g}: parts of the objects, below 1 together.")
        if self.cameras not in ("own", "shared") or self.up not in ("y", "z"):
            raise ValueError(f"cameras is {self.cameras!r}, up {self.up!r}: own or shared, y or z.")


class RenderReport(NamedTuple):
    """What became of meshes.

    Attributes:
        made: Names of objects that were rendered now.
        kept: Names of those that had been.
        bad: Why meshes could not be read, by name.
    """

    made: list[str]
    kept: list[str]
    bad: dict[str, str]


class _Task(NamedTuple):
    """An object to be rendered."""

    mesh: NamedFile
    folder: Path
    settings: RenderSettings


def render_folder(
    meshes: Sequence[NamedFile],
    out: Path,
    category: str,
    settings: RenderSettings,
    workers: int = 1,
    overwrite: bool = False,
    splits: Mapping[Split, Sequence[str]] | None = None,
) -> RenderReport:
    """Render meshes as scenes in the layout of learnit's ShapeNet; those that were rendered before are left as they are.

    An object depends on its mesh, its name and the settings alone. Its folder is there when it is whole. One process at a time
    writes a category.

    Args:
        meshes: The meshes.
        out: Folder of the data, made if it is missing.
        category: Folder of the objects in it.
        settings: How they are rendered.
        workers: Processes that render; 1 renders in this one.
        overwrite: Whether to remove first what was rendered to the category.
        splits: Names by split; drawn by the names if None.

    Raises:
        ValueError: If an argument is out of range, the category holds something else or was rendered with other settings, or
            no mesh can be read; with the way out.
        OSError: If the folder cannot be written.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}: at least 1 process renders.")
    if not category or Path(category).name != category or category.startswith("."):
        raise ValueError(f"category is {category!r}: name a folder without any path, such as chairs.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, and OUT a folder: name the meshes first and OUT last.")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / category):
        _prepare(out, category, settings, overwrite)
        found = _render_all([_Task(mesh, out / category / mesh.name, settings) for mesh in meshes], workers)
        if not found.made and not found.kept:
            raise ValueError(_none_good(found.bad))
        names = sorted(path.parent.name for path in (out / category).glob(f"[!.]*/{_TRANSFORMS}"))
        _write_json(splits_file(out, category), splits or _drawn(names, settings))
    return found


def _prepare(out: Path, category: str, settings: RenderSettings, overwrite: bool) -> None:
    """Make the folder of a category, after seeing that what it holds was rendered with these settings."""
    folder, stated = out / category, out / f"{_singular(category)}_rendering.json"
    wanted = json.loads(json.dumps({"format": _FORMAT} | asdict(settings)))
    if stated.exists() and overwrite:
        shutil.rmtree(folder, ignore_errors=True)
        splits_file(out, category).unlink(missing_ok=True)
    elif stated.exists():
        _compare(folder, stated, wanted)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds what was not rendered here: name another OUT, or another --category.")
    folder.mkdir(exist_ok=True)
    _write_json(stated, wanted)


def _compare(folder: Path, stated: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse settings that differ from those of a file."""
    try:
        found = dict(json.loads(stated.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{stated} is damaged: render all anew with --overwrite, or name another OUT.") from error
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        told = ", ".join(f"{name} {_told(found.get(name))}, not {_told(wanted[name])}" for name in differing)
        raise ValueError(
            f"{folder} was rendered with {told}: go on with those, name another OUT, or render all anew with --overwrite."
        )


def _told(value: object) -> str:
    """Return a setting as it is written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _none_good(bad: Mapping[str, str]) -> str:
    """Return that no mesh could be read, and why."""
    named = "".join(f"\n  {reason}" for reason in list(bad.values())[:_NAMED])
    return f"None of {len(bad):,} meshes can be read:{named}"


def _render_all(tasks: Sequence[_Task], workers: int) -> RenderReport:
    """Render objects that are not there."""
    left = [task for task in tasks if not _is_there(task)]
    made: list[str] = []
    bad: dict[str, str] = {}
    with counting("rendering objects", len(tasks), len(tasks) - len(left)) as show:
        for done, (name, reason) in enumerate(_rendered(left, workers), len(tasks) - len(left) + 1):
            if reason is None:
                made.append(name)
            else:
                bad[name] = reason
            show(done)
    kept = {task.mesh.name for task in tasks} - {task.mesh.name for task in left}
    return RenderReport(sorted(made), sorted(kept), dict(sorted(bad.items())))


def _rendered(tasks: Sequence[_Task], workers: int) -> Iterator[tuple[str, str | None]]:
    """Yield the names of objects when they are rendered, and why they cannot be."""
    if min(workers, len(tasks)) <= 1:
        yield from map(_render, tasks)
        return
    # forked as loaders are where that is usual: a fresh process first imports torch, for seconds
    kind = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(kind)
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, torch.set_num_threads, (1,))
    try:
        for future in as_completed([pool.submit(_render, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "A process that rendered was ended, perhaps for want of memory: run it again with fewer --workers; it goes on."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _render(task: _Task) -> tuple[str, str | None]:
    """Write the folder of an object whole, and return its name and None, or why its mesh cannot be read."""
    try:
        mesh = read_mesh(task.mesh.path, task.settings.up)
    except ValueError as error:
        return task.mesh.name, str(error)
    part = task.folder.with_name(f".{task.folder.name}.part")
    if part.is_symlink():
        raise ValueError(refusal_of_link(part))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    size, angle = task.settings.size, math.radians(task.settings.field_of_view)
    poses = camera_poses(task.settings, task.mesh.name)
    names = [f"{frame:03d}" for frame in range(len(poses))]
    images = Caster(mesh).render(poses, torch.full((len(poses), 2), focal_length(angle, size)), (size, size))
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(part / f"{name}.png", compress_level=4)
    frames = [
        {"file_path": f"./{name}", "transform_matrix": _square(pose)} for name, pose in zip(names, poses, strict=True)
    ]
    _write_json(
        part / _TRANSFORMS, {"camera_angle_x": angle, "mesh_crc32": _checksum(task.mesh.path), "frames": frames}
    )
    shutil.rmtree(task.folder, ignore_errors=True)  # of an earlier mesh of this name
    if hasattr(os, "sync"):
        os.sync()  # once, not for each image
    part.rename(task.folder)
    flush_folder(task.folder.parent)
    return task.mesh.name, None


def camera_poses(settings: RenderSettings, name: str) -> Tensor:
    """Return the cameras of an object, ``(views, 3, 4)``, each drawn by its own number: more views leave the first as they are.

    Args:
        settings: How it is rendered.
        name: Of the object; shared cameras do not depend on it.

    Example:
        >>> camera_poses(RenderSettings(views=3), "chair").shape
        torch.Size([3, 3, 4])
    """
    owner = name if settings.cameras == "own" else ""
    places = [("camera", settings.seed, owner, frame) for frame in range(settings.views)]
    around, height = torch.stack([torch.rand(2, generator=generator_at(*place)) for place in places]).double().unbind(1)
    low, high = (math.sin(math.radians(angle)) for angle in settings.elevation)
    upwards = low + (high - low) * height
    level, angles = (1 - upwards**2).clamp_min(0).sqrt(), 2 * math.pi * around
    positions = settings.distance * torch.stack((level * angles.cos(), level * angles.sin(), upwards), dim=-1)
    return look_at(positions).float()


def _square(pose: Tensor) -> list[list[float]]:
    """Return a pose as a 4 x 4 matrix."""
    return [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]


def _is_there(task: _Task) -> bool:
    """Return whether an object was rendered, from the same mesh."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((task.folder / _TRANSFORMS).read_text(encoding="utf-8"))["mesh_crc32"]
        return bool(found == _checksum(task.mesh.path))
    return False


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    return zlib.crc32(path.read_bytes())


def _drawn(names: Sequence[str], settings: RenderSettings) -> dict[Split, list[str]]:
    """Return names by split: every name has a number of its own, so that others do not change where it belongs.

    Where there are three objects at least, a split of some part gets one, that of the least number if need be.
    """
    places = {name: seed_at("split", settings.seed, name) / 2**63 for name in names}
    order = sorted(names, key=lambda name: places[name])
    val, test = 0, 0
    if len(order) >= 3:
        below = [
            sum(place < part for place in places.values()) for part in (settings.val, settings.val + settings.test)
        ]
        wanted = bool(settings.val), bool(settings.test)
        test = min(max(below[1], below[0] + wanted[1], sum(wanted)), len(order) - 1)
        val = min(max(below[0], wanted[0]), test - wanted[1])
    parts: dict[Split, list[str]] = {"train": order[test:], "val": order[:val], "test": order[val:test]}
    return {split: sorted(part) for split, part in parts.items()}


def _singular(category: str) -> str:
    """Return what files of a category are named by."""
    return category.removesuffix("s") or category


def splits_file(out: Path, category: str) -> Path:
    """Return the file that says which object belongs to which split."""
    return out / f"{_singular(category)}_splits.json"


def _write_json(path: Path, content: object) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
