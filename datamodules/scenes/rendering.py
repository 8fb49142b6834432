"""Render objects to scene folders in the layout of learnit's ShapeNet, each object atomically, on one or more processes."""

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
from typing import Any, Literal, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from datamodules.cameras import centred_intrinsics, focal_length, look_at
from datamodules.randomness import generator_at, seed_at
from datamodules.scenes.raycast import Caster
from datamodules.storage.files import flush_folder, locked, refusal_of_link, written_whole
from datamodules.storage.folders import NamedFile, Split
from datamodules.storage.meshes import RADIUS, Mesh, UpAxis, read_mesh
from datamodules.storage.progress import counting

_FORMAT = 1  # version of the renderer: increase it if images change for the same settings
_MAX_LISTED = 5  # meshes listed in an error message
_TRANSFORMS = "transforms.json"
_BATCH = 16  # objects that are flushed to disk together; an interrupted run loses at most these


@dataclass(frozen=True)
class RenderSettings:
    """Settings of the cameras, the images and the splits.

    Args:
        views: Number of images per object.
        size: Height and width of the images in pixels.
        seed: Seed of cameras and splits.
        field_of_view: Field of view in degrees, horizontal and vertical; must fit a ball of radius 1.4 at ``distance``.
        distance: Distance of the cameras from the origin.
        cameras: ``own``: cameras drawn for every object from its name; ``shared``: the same cameras for all objects.
        elevation: Minimum and maximum elevation in degrees; cameras are uniform on this part of the sphere.
        up: Axis of the mesh files that points up.
        val: Fraction of the objects for validation, selected by their names alone.
        test: Fraction of the objects for the test, selected in the same way.

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
        """Raise a ``ValueError`` if a setting is out of range."""
        if self.views < 1 or self.size < 1:
            raise ValueError(f"views is {self.views}, size {self.size}: each must be at least 1.")
        if not (RADIUS < self.distance < math.inf):
            raise ValueError(
                f"distance is {self.distance:g}: it must be finite and above {RADIUS:g}, the radius of the objects."
            )
        narrowest = 2 * math.degrees(math.asin(RADIUS / self.distance))
        if not narrowest <= self.field_of_view < 180:
            raise ValueError(
                f"field_of_view is {self.field_of_view:g} degrees: objects of radius {RADIUS:g} at distance {self.distance:g} "
                f"need at least {math.ceil(100 * narrowest) / 100:g} degrees ({math.radians(narrowest):.4f} rad), below 180."
            )
        if not -90 <= self.elevation[0] <= self.elevation[1] <= 90:
            raise ValueError(
                f"elevation is {self.elevation[0]:g} to {self.elevation[1]:g}: expected two angles from -90 to 90 degrees, in "
                "ascending order."
            )
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ValueError(
                f"val is {self.val:g}, test {self.test:g}: expected fractions in [0, 1) with a sum below 1."
            )
        if self.cameras not in ("own", "shared") or self.up not in ("y", "z"):
            raise ValueError(
                f"cameras is {self.cameras!r}, up {self.up!r}: cameras must be own or shared, and up y or z."
            )


class RenderReport(NamedTuple):
    """Outcome of rendering a list of meshes.

    Attributes:
        rendered: Names of the objects that this call rendered.
        kept: Names of the objects that were rendered before.
        failed: Reasons why meshes could not be read, by name.
    """

    rendered: list[str]
    kept: list[str]
    failed: dict[str, str]


class RenderedObject(Protocol):
    """What is rendered: a mesh file, or a generated object."""

    @property
    def name(self) -> str:
        """Name of the object and of its folder."""

    def facts(self) -> Mapping[str, Any]:
        """Return what its images depend on besides the settings, for JSON; other facts render it again."""

    def triangles(self, up: UpAxis) -> Mesh:
        """Return its triangles, z up, with radius 1.4 around the origin.

        Raises:
            ValueError: If they cannot be read.
        """


class MeshFile(NamedTuple):
    """A mesh file to render.

    Attributes:
        name: Name of the object.
        path: The file.
    """

    name: str
    path: Path

    def facts(self) -> Mapping[str, Any]:
        """Return the CRC-32 of the file."""
        return {"mesh_crc32": zlib.crc32(self.path.read_bytes())}

    def triangles(self, up: UpAxis) -> Mesh:
        """Return the triangles of the file.

        Raises:
            ValueError: If the file cannot be read; the message names it.
        """
        return read_mesh(self.path, up)


class _Task(NamedTuple):
    """An object to render."""

    item: RenderedObject
    folder: Path
    settings: RenderSettings


def render_folder(
    meshes: Sequence[NamedFile],
    out: Path,
    category: str,
    settings: RenderSettings,
    workers: int = 1,
    overwrite: bool = False,
) -> RenderReport:
    """Render meshes as scenes in the layout of learnit's ShapeNet; see `render_objects`."""
    return render_objects([MeshFile(*mesh) for mesh in meshes], out, category, settings, workers, overwrite)


def render_objects(
    objects: Sequence[RenderedObject],
    out: Path,
    category: str,
    settings: RenderSettings,
    workers: int = 1,
    overwrite: bool = False,
    splits: Mapping[Split, Sequence[str]] | None = None,
) -> RenderReport:
    """Render objects as scenes in the layout of learnit's ShapeNet; those that were rendered before are kept.

    The images of an object depend only on the object, its name and the settings. An object's folder appears once it is
    complete. A lock ensures that one process at a time writes a category.

    Args:
        objects: The objects.
        out: Folder of the data; created if missing.
        category: Name of the folder in ``out`` that receives the objects.
        settings: Settings of cameras, images and splits.
        workers: Number of processes; 1 renders in the current process.
        overwrite: Whether to delete the rendered category first.
        splits: Names by split; drawn from the names if None.

    Raises:
        ValueError: If an argument is out of range, if the category contains other files or was rendered with other settings,
            or if no object can be read.
        OSError: If the folder cannot be written.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}: it must be at least 1.")
    if not category or Path(category).name != category or category.startswith("."):
        raise ValueError(f"category is {category!r}: it must be a folder name without a path, such as chairs.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, but OUT must be a folder: pass the meshes first and OUT last.")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / category):
        _prepare(out, category, settings, overwrite)
        tasks = [_Task(item, out / category / item.name, settings) for item in objects]
        report = _render_missing(tasks, workers, category)
        if not report.rendered and not report.kept:
            reasons = "".join(f"\n  {reason}" for reason in list(report.failed.values())[:_MAX_LISTED])
            raise ValueError(f"None of {len(report.failed):,} meshes can be read:{reasons}")
        if splits is None:
            names = sorted(path.parent.name for path in (out / category).glob(f"[!.]*/{_TRANSFORMS}"))
            splits = _draw_splits(names, settings)
        _write_json(splits_file(out, category), splits)
    return report


def _prepare(out: Path, category: str, settings: RenderSettings, overwrite: bool) -> None:
    """Create the folder and the settings file of a category, after checking any existing ones."""
    folder, settings_file = out / category, out / f"{_singular(category)}_rendering.json"
    content = json.loads(json.dumps({"format": _FORMAT} | asdict(settings)))
    if settings_file.exists() and overwrite:
        shutil.rmtree(folder, ignore_errors=True)
        splits_file(out, category).unlink(missing_ok=True)
    elif settings_file.exists():
        _check_settings(folder, settings_file, content)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} contains files that were not rendered here: choose another OUT or --category.")
    folder.mkdir(exist_ok=True)
    _write_json(settings_file, content)


def _check_settings(folder: Path, settings_file: Path, settings: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` if the settings in a file differ from the given ones."""
    try:
        existing = dict(json.loads(settings_file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{settings_file} is damaged: render again with --overwrite, or choose another OUT."
        ) from error

    def text(value: object) -> str:  # as on the command line
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    names = [name for name in settings if existing.get(name) != settings[name]]
    if names:
        differences = ", ".join(f"{name} {text(existing.get(name))}, not {text(settings[name])}" for name in names)
        raise ValueError(
            f"{folder} was rendered with {differences}: use the same settings, choose another OUT, or render again with "
            "--overwrite."
        )


def _render_missing(tasks: Sequence[_Task], workers: int, category: str) -> RenderReport:
    """Render the objects that do not exist yet."""
    missing = [task for task in tasks if not _exists(task)]
    rendered: list[str] = []
    failed: dict[str, str] = {}
    with counting(f"rendering {category}", len(tasks), len(tasks) - len(missing)) as show:
        for done, (name, reason) in enumerate(_render_all(missing, workers), len(tasks) - len(missing) + 1):
            if reason is None:
                rendered.append(name)
            else:
                failed[name] = reason
            show(done)
    kept = {task.item.name for task in tasks} - {task.item.name for task in missing}
    return RenderReport(sorted(rendered), sorted(kept), dict(sorted(failed.items())))


def _render_all(tasks: Sequence[_Task], workers: int) -> Iterator[tuple[str, str | None]]:
    """Render objects on several processes; yield their names, and None or the reason why they cannot be read."""
    size = max(1, min(_BATCH, len(tasks) // (4 * workers)))
    batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    if min(workers, len(batches)) <= 1:
        for batch in batches:
            yield from _render(batch)
        return
    # On Linux, fork as data loaders do: a spawned process imports torch first, which takes seconds.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(min(workers, len(batches)), context, torch.set_num_threads, (1,))
    try:
        for future in as_completed([pool.submit(_render, batch) for batch in batches]):
            yield from future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "A rendering process was killed, perhaps because memory ran out: run the command again with fewer --workers; it "
            "resumes."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _render(tasks: Sequence[_Task]) -> list[tuple[str, str | None]]:
    """Write the folders of objects atomically; return their names, and None or the reason why they cannot be read."""
    results = [(task.item.name, _write_part(task)) for task in tasks]
    if hasattr(os, "sync"):
        os.sync()  # once for all their images
    for task, (_, reason) in zip(tasks, results, strict=True):
        if reason is None:
            shutil.rmtree(task.folder, ignore_errors=True)  # the rendering of an earlier object with this name
            _part_of(task).rename(task.folder)
    flush_folder(tasks[0].folder.parent)
    return results


def _write_part(task: _Task) -> str | None:
    """Write the images and cameras of an object to a temporary folder; return the reason if its mesh cannot be read."""
    try:
        mesh = task.item.triangles(task.settings.up)
    except ValueError as error:
        return str(error)
    part = _part_of(task)
    if part.is_symlink():
        raise ValueError(refusal_of_link(part))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    size, poses = task.settings.size, camera_poses(task.settings, task.item.name)
    focals = torch.full((len(poses), 2), focal_length(math.radians(task.settings.field_of_view), size))
    images = Caster(mesh).render(poses, centred_intrinsics(focals, (size, size)), (size, size))
    for frame, image in enumerate(images):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(part / _image_name(frame), compress_level=4)
    (part / _TRANSFORMS).write_text(json.dumps(_transforms(task, poses), indent=1), encoding="utf-8")
    return None


def _part_of(task: _Task) -> Path:
    """Return the temporary folder of an object, which is renamed once it is complete."""
    return task.folder.with_name(f".{task.folder.name}.part")


def _image_name(frame: int) -> str:
    """Return the file name of the image of a frame."""
    return f"{frame:03d}.png"


def _transforms(task: _Task, poses: Tensor) -> dict[str, Any]:
    """Return the content of ``transforms.json``."""
    frames = [
        {
            "file_path": f"./{_image_name(frame).removesuffix('.png')}",
            "transform_matrix": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]],
        }
        for frame, pose in enumerate(poses)
    ]
    return {"camera_angle_x": math.radians(task.settings.field_of_view), **task.item.facts(), "frames": frames}


def camera_poses(settings: RenderSettings, name: str) -> Tensor:
    """Return the poses ``(views, 3, 4)`` of the cameras of an object.

    Every camera is drawn from its own index, so a larger number of views extends a smaller one.

    Args:
        settings: Settings of the cameras.
        name: Name of the object; shared cameras do not depend on it.

    Example:
        >>> camera_poses(RenderSettings(views=3), "chair").shape
        torch.Size([3, 3, 4])
    """
    owner = name if settings.cameras == "own" else ""
    generators = [generator_at("camera", settings.seed, owner, frame) for frame in range(settings.views)]
    draws = torch.stack([torch.rand(2, generator=generator) for generator in generators]).double()
    azimuth = 2 * math.pi * draws[:, 0]
    low, high = (math.sin(math.radians(angle)) for angle in settings.elevation)
    z = low + (high - low) * draws[:, 1]  # uniform in height is uniform on the sphere
    radius = (1 - z**2).clamp_min(0).sqrt()
    positions = settings.distance * torch.stack((radius * azimuth.cos(), radius * azimuth.sin(), z), dim=-1)
    return look_at(positions).float()


def _exists(task: _Task) -> bool:
    """Return whether the same object was rendered before."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((task.folder / _TRANSFORMS).read_text(encoding="utf-8"))
        return all(content[key] == value for key, value in task.item.facts().items())
    return False


def _draw_splits(names: Sequence[str], settings: RenderSettings) -> dict[Split, list[str]]:
    """Return names by split. The split of a name depends on a hash of it, so adding objects does not move others.

    With at least three objects, every split with a nonzero fraction gets at least one, taken in the order of the hashes.
    """
    hashes = {name: seed_at("split", settings.seed, name) / 2**63 for name in names}
    order = sorted(names, key=lambda name: hashes[name])
    val_end, test_end = 0, 0
    if len(order) >= 3:
        bounds = settings.val, settings.val + settings.test
        num_val, num_both = (sum(value < bound for value in hashes.values()) for bound in bounds)
        min_val, min_test = bool(settings.val), bool(settings.test)
        test_end = min(max(num_both, num_val + min_test, min_val + min_test), len(order) - 1)
        val_end = min(max(num_val, min_val), test_end - min_test)
    splits: dict[Split, list[str]] = {
        "train": order[test_end:],
        "val": order[:val_end],
        "test": order[val_end:test_end],
    }
    return {split: sorted(members) for split, members in splits.items()}


def _singular(category: str) -> str:
    """Return the prefix of the files of a category."""
    return category.removesuffix("s") or category


def splits_file(out: Path, category: str) -> Path:
    """Return the path of the JSON file that lists the objects of every split."""
    return out / f"{_singular(category)}_splits.json"


def _write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
