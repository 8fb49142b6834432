"""Anybody's meshes: OBJ, PLY, STL and GLB files as coloured triangles of one size and orientation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

from datamodules.storage.folders import NamedFile, files_below

ENDINGS = (".obj", ".ply", ".stl", ".glb")
RADIUS = 1.4  # of published scenes of objects, seen from a distance of 4

_GREY = 0.8  # of what has no colour
_UNNAMED = ("models", "model", "model_normalized")  # ShapeNetCore names an object by the folder around these
_KINDS = "OBJ, PLY, STL and GLB"


class Mesh(NamedTuple):
    """Triangles of an object, z up.

    Attributes:
        corners: ``(F, 3, 3)`` float32, corner by axis, in world units.
        colours: ``(F, 3, 3)`` float32 in [0, 1], corner by channel.
    """

    corners: NDArray[np.float32]
    colours: NDArray[np.float32]


def mesh_files(paths: Sequence[Path]) -> list[NamedFile]:
    """Return the meshes that are named or lie in folders that are named, in alphabetical order in each.

    Their names are their places below the folder, joined by hyphens, without the endings and without what is the same for all
    objects of ShapeNetCore, so that ``03001627/1a2b/models/model_normalized.obj`` is ``03001627-1a2b``. A name depends on no
    other file.

    Args:
        paths: Files, and folders of which all meshes are taken, in their subfolders too.

    Raises:
        ValueError: If there is no such path, no mesh in a folder, a file of another kind, or two meshes with one name.

    Example:
        ``mesh_files([Path("shapenet/03001627")])``
    """
    found: dict[str, Path] = {}
    for file in (file for path in paths for file in _named(path)):
        if found.setdefault(file.name, file.path).resolve() != file.path.resolve():
            raise ValueError(
                f"{found[file.name]} and {file.path} would both be called {file.name}: name one of them only, "
                "or rename one of them."
            )
    return [NamedFile(name, path) for name, path in found.items()]


def _named(path: Path) -> Iterator[NamedFile]:
    """Yield the meshes at a path with their names."""
    if not path.exists():
        raise ValueError(f"There is no mesh or folder {path}: name a file or a folder of meshes ({_KINDS}).")
    if path.is_file() and path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} is no mesh that can be read: {_KINDS} can, by the endings {', '.join(ENDINGS)}.")
    files = files_below(path, ENDINGS)
    if not files:
        raise ValueError(f"The folder {path} holds no meshes ({_KINDS}): name another.")
    for file, place in files:
        yield NamedFile(_name(place) or _name(file.resolve()).rpartition("-")[2] or file.stem, file)


def _name(place: PurePath) -> str:
    """Return the parts of a place that tell objects apart, joined by hyphens."""
    parts = [part for part in (*place.parent.parts, place.stem) if part != place.anchor]
    while parts and parts[-1] in _UNNAMED:
        parts.pop()
    return "-".join(parts)


def read_mesh(path: Path, up: Literal["y", "z"] = "y", radius: float = RADIUS) -> Mesh:
    """Return the triangles of all parts of a file, in their places, with z up, the bounding box around the origin.

    Colours are those of faces, vertices or materials; a texture is looked up at the corners of triangles. What has none is
    light grey.

    Args:
        path: The file.
        up: Axis of the file that points up; if y, objects are turned by 90 degrees about x, so that their z comes to face -y.
        radius: Distance of the farthest corner from the origin.

    Raises:
        ValueError: If the file is missing, of no kind that can be read, damaged, without triangles, extent or area, with its
            name and the way out.

    Example:
        ``read_mesh(Path("chair.glb")).corners.shape``
    """
    corners, colours = _triangles(path)
    if up == "y":
        corners = np.stack((corners[..., 0], -corners[..., 2], corners[..., 1]), axis=-1)
    places = corners.reshape(-1, 3)
    corners = corners - (places.min(0) + places.max(0)) / 2
    with np.errstate(over="ignore"):  # which is said in words
        extent = float(np.linalg.norm(corners, axis=-1).max())
    if extent == 0 or not math.isfinite(extent):
        raise ValueError(f"The mesh {path} has no extent that can be scaled ({extent:g}): fix it, or leave it out.")
    scaled = corners * (radius / extent)
    sides = np.diff(scaled, axis=1)
    if not np.cross(sides[:, 0], sides[:, 1]).any():
        raise ValueError(f"The mesh {path} has lines for triangles, without any area: fix it, or leave it out.")
    return Mesh(scaled.astype(np.float32), colours)


def _triangles(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the corners and colours of the triangles of a file, as they are there."""
    scene = _scene(path)
    corners, colours = [np.zeros((0, 3, 3))], [np.zeros((0, 3, 3), dtype=np.float32)]
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        part = scene.geometry[name]
        if isinstance(part, trimesh.Trimesh) and len(part.faces):
            places = _places(part, path)
            if not (np.isfinite(places).all() and np.isfinite(transform).all()):
                raise ValueError(f"The mesh {path} has corners that are no finite numbers: fix it, or leave it out.")
            corners.append(places @ transform[:3, :3].T + transform[:3, 3])
            colours.append(_colours(part))
    if sum(map(len, corners)) == 0:
        raise ValueError(f"The mesh {path} has no triangles: name a file with faces, or leave it out.")
    return np.concatenate(corners), np.concatenate(colours)


def _places(part: trimesh.Trimesh, path: Path) -> NDArray[np.float64]:
    """Return the corners of the triangles of a part, ``(F, 3, 3)``."""
    least, most = int(part.faces.min()), int(part.faces.max())
    if least < 0 or most >= len(part.vertices):
        raise ValueError(
            f"The mesh {path} has {len(part.vertices)} vertices, and faces name vertex {least if least < 0 else most}: they "
            "count from 0. Fix it, or leave it out."
        )
    places: NDArray[np.float64] = part.triangles
    return places


def _scene(path: Path) -> trimesh.Scene:
    """Return all that a file holds."""
    if not path.is_file():
        raise ValueError(f"There is no mesh {path}: name a file ({_KINDS}).")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} is no mesh that can be read: {_KINDS} can, by the endings {', '.join(ENDINGS)}.")
    try:
        return trimesh.load_scene(path, process=False)
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"The mesh {path} cannot be read ({reason}): take it from its source again, or leave it out."
        ) from error


def _colours(part: trimesh.Trimesh) -> NDArray[np.float32]:
    """Return the colours of the corners of a part, ``(F, 3, 3)`` in [0, 1]."""
    visual: Any = part.visual
    if visual.kind == "texture":
        found = _of_material(visual, len(part.vertices))[part.faces]
    elif visual.kind == "vertex":
        found = visual.vertex_colors[part.faces]
    elif visual.kind == "face":
        found = visual.face_colors[:, None].repeat(3, axis=1)
    else:
        return np.full((len(part.faces), 3, 3), _GREY, dtype=np.float32)
    return np.asarray(found[..., :3] / np.float32(255), dtype=np.float32)


def _of_material(visual: Any, count: int) -> NDArray[np.uint8]:
    """Return the colours that a material gives to so many vertices, RGBA."""
    material = visual.material
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    if type(image) is Image.Image and image.size == (2, 2):  # trimesh's own, where a file names no material
        return np.full((count, 4), round(255 * _GREY), dtype=np.uint8)
    if visual.uv is not None and image is not None:
        found = material.to_color(np.nan_to_num(visual.uv))
        if len(found) == count:
            return np.asarray(found)
    return np.tile(np.asarray(material.main_color, dtype=np.uint8), (count, 1))
