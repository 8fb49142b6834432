"""Read point clouds and depth images of objects as points on a surface, with normals where a file has them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import trimesh
from numpy.typing import NDArray

from datamodules.storage.images import open_image, quiet

TABLES = (".xyz", ".txt", ".csv")
ENDINGS = (".ply", *TABLES, ".npy", ".npz")
DEPTH_ENDING = ".png"  # beside a JSON of the same name
FEWEST = 4  # points of a surface in space

_FORMATS = "PLY, XYZ, TXT, CSV, NPY, NPZ, and depth images in NPZ or PNG with JSON"
_COLUMNS = "3 columns (x, y, z) or 6 (and a normal)"
_UNIT_TOLERANCE = 0.1  # of the median length of normals; the fourth to sixth columns may be colours instead
_SATURATED = 65535  # of 16-bit depth: nothing measured
_MILLIMETRES = 1000.0  # per metre
_FACING = (
    0.1  # smallest cosine between a normal of a depth image and the ray: below it the points are on different surfaces
)

Coordinates = NDArray[np.float64]


class PointCloud(NamedTuple):
    """Points on a surface, in the units of their file.

    Attributes:
        points: ``(P, 3)`` float64, finite and distinct.
        normals: ``(P, 3)`` float64 of length 1, or 0 where a normal is unknown; None if all are.
        notes: Remarks on the file, as text for the user.
    """

    points: Coordinates
    normals: Coordinates | None = None
    notes: tuple[str, ...] = ()


def read_points(path: str | Path) -> PointCloud:
    """Read a point cloud or a depth image.

    Point clouds are PLY files without faces, with normals ``nx``, ``ny``, ``nz`` or without; text files (XYZ, TXT, CSV) with 3
    columns, or 6 with normals, separated by blanks, commas or semicolons, with or without a line of headings; NPY files of such
    an array; and NPZ files with ``points (P, 3)`` and optionally ``normals (P, 3)``. Repeated points are removed.

    Depth images are NPZ files with ``depth (H, W)``, ``focal`` in pixels (one number, or along columns and rows) and optionally
    ``pose (3, 4)``, camera to world as in `datamodules.cameras`; or 16-bit PNG files in millimetres, beside a JSON file of the
    same name with ``focal`` and optionally ``pose``. Depth is measured along the optical axis, which passes through the centre
    of the image; 0 and non-finite numbers are pixels without a measurement. Normals are those of triangles of neighbouring
    pixels, which face the camera.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is missing, damaged, empty, of another format, or holds non-finite numbers, fewer than 4
            distinct points, or normals whose length is not about 1; the message names it.

    Example:
        ``points, normals, notes = read_points("scan.ply")``
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: pass a file with points ({_FORMATS}).")
    ending = path.suffix.lower()
    if ending == DEPTH_ENDING:
        return _distinct(_of_depth(*_read_png(path), path), path)
    if ending == ".npz":
        arrays = _read_arrays(path)
        if "depth" in arrays:
            focal, pose = arrays.get("focal"), arrays.get("pose")
            return _distinct(_of_depth(np.asarray(arrays["depth"]), focal, pose, path), path)
        return _distinct(_of_columns(_joined(arrays, path), path), path)
    if ending not in ENDINGS:
        raise ValueError(f"{path} has no supported format for points: pass {_FORMATS}.")
    read = _read_ply if ending == ".ply" else _read_npy if ending == ".npy" else _read_table
    return _distinct(_of_columns(read(path), path), path)


def has_faces(path: Path) -> bool:
    """Return whether the header of a PLY file states faces, which make it a mesh.

    A file that cannot be read, or has no header, has none.
    """
    try:
        with path.open("rb") as file:
            header = file.read(1 << 16).partition(b"end_header")[0]
    except OSError:
        return False
    counts = [
        line.split()[2] for line in header.splitlines() if line.startswith(b"element face ") and len(line.split()) > 2
    ]
    return any(count.isdigit() and int(count) > 0 for count in counts)


def is_depth_image(path: Path) -> bool:
    """Return whether a file is a PNG beside a JSON of the same name."""
    return path.suffix.lower() == DEPTH_ENDING and path.with_suffix(".json").is_file()


def _read_ply(path: Path) -> Coordinates:
    """Return the columns of the vertices of a PLY file."""
    try:
        with path.open("rb") as file:
            vertices = trimesh.exchange.ply.load_ply(file)["metadata"]["_ply_raw"]["vertex"]["data"]
        names = ["x", "y", "z", *(["nx", "ny", "nz"] if "nx" in _names(vertices) else [])]
        return np.column_stack([np.asarray(vertices[name], dtype=np.float64).reshape(-1) for name in names])
    except Exception as error:  # parsers raise arbitrary exceptions for damaged files
        raise ValueError(_unreadable(path, error)) from error


def _names(vertices: Any) -> tuple[str, ...]:
    """Return the names of the properties of vertices: a structured array of binary files, a mapping of text files."""
    return tuple(vertices) if isinstance(vertices, Mapping) else tuple(vertices.dtype.names or ())


def _read_table(path: Path) -> Coordinates:
    """Return the columns of a text file."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            lines = [line.replace(",", " ").replace(";", " ") for line in file]
        headings = 1 if lines and not _is_number(lines[0].split()) else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty file, which is reported below
            return np.loadtxt(lines, ndmin=2, skiprows=headings)
    except (ValueError, OSError) as error:
        raise ValueError(_unreadable(path, str(error).partition(";")[0])) from error  # without a hint to programmers


def _is_number(words: list[str]) -> bool:
    """Return whether the first word of a line is a number, or the line is empty or a comment."""
    if not words or words[0].startswith("#"):
        return True
    try:
        float(words[0])
    except ValueError:
        return False
    return True


def _read_npy(path: Path) -> Coordinates:
    """Return the array in an NPY file."""
    try:
        array = np.load(path, allow_pickle=False)
        return np.asarray(array, dtype=np.float64)
    except Exception as error:  # truncated files raise various exceptions
        raise ValueError(_unreadable(path, error)) from error


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays in an NPZ file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # truncated files raise various exceptions
        raise ValueError(_unreadable(path, error)) from error


def _joined(arrays: Mapping[str, NDArray[Any]], path: Path) -> Coordinates:
    """Return the columns of an NPZ file with points, or with a single array."""
    if "points" not in arrays and len(arrays) != 1:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'no arrays'}: save points (P, 3) and optionally normals (P, 3), or depth "
            "(H, W) and focal."
        )
    try:
        points = np.asarray(arrays.get("points", next(iter(arrays.values()))), dtype=np.float64)
        normals = np.asarray(arrays["normals"], dtype=np.float64) if "normals" in arrays else None
    except (TypeError, ValueError) as error:
        raise ValueError(_unreadable(path, error)) from error
    if normals is None:
        return points
    if points.ndim != 2 or points.shape[1] != 3 or normals.shape != points.shape:
        raise ValueError(
            f"{path} holds points {points.shape} and normals {normals.shape}: save as many normals as points, (P, 3) each."
        )
    return np.column_stack((points, normals))


def _of_columns(columns: Coordinates, path: Path) -> PointCloud:
    """Return the point cloud of an array with 3 or 6 columns."""
    if not columns.size:
        raise ValueError(f"{path} contains no points: pass another file.")
    if columns.ndim != 2 or columns.shape[1] not in (3, 6):
        held = f"{columns.shape[1]} column(s)" if columns.ndim == 2 else f"an array of shape {columns.shape}"
        raise ValueError(f"{path} has {held}; points have {_COLUMNS}: remove or add columns.")
    if not (finite := np.isfinite(columns).all(1)).all():
        raise ValueError(
            f"{path} has non-finite numbers in {int((~finite).sum()):,} of {len(columns):,} points, first in point "
            f"{int(finite.argmin())}, counted from 0: remove these points."
        )
    if columns.shape[1] == 3:
        return PointCloud(columns)
    return _with_normals(columns[:, :3], columns[:, 3:], path)


def _with_normals(points: Coordinates, normals: Coordinates, path: Path) -> PointCloud:
    """Return a point cloud with normals of length 1; those of length 0 are unknown."""
    lengths = np.linalg.norm(normals, axis=1)
    known = lengths > 0
    if not known.any():
        return PointCloud(points, None, ("all normals are zero: used without",))
    median = float(np.median(lengths[known]))
    if abs(median - 1) > _UNIT_TOLERANCE:
        raise ValueError(
            f"The normals in {path} have a median length of {median:.3g}, not 1: normalise them, or remove them if they "
            "are colours."
        )
    units = np.divide(normals, lengths[:, None], out=np.zeros_like(normals), where=known[:, None])
    unknown = int((~known).sum())
    return PointCloud(points, units, (f"{unknown:,} normals unknown",) if unknown else ())


def _distinct(cloud: PointCloud, path: Path) -> PointCloud:
    """Return a point cloud without repeated points, in the order of the file."""
    order = np.lexsort(cloud.points.T)
    is_new = np.ones(len(order), bool)
    is_new[1:] = (cloud.points[order[1:]] != cloud.points[order[:-1]]).any(1)
    first = order[is_new]
    if len(first) < FEWEST:
        raise ValueError(
            f"{path} has {len(first)} distinct point(s); a surface needs at least {FEWEST}: pass more points of the surface."
        )
    repeated = len(cloud.points) - len(first)
    if not repeated:
        return cloud
    first.sort()
    normals = None if cloud.normals is None else cloud.normals[first]
    return PointCloud(cloud.points[first], normals, (*cloud.notes, f"{repeated:,} repeated points removed"))


def _read_png(path: Path) -> tuple[Coordinates, Any, Any]:
    """Return the depth in metres, the focal length and the pose of a 16-bit PNG and its JSON."""
    described = path.with_suffix(".json")
    if not described.is_file():
        raise ValueError(
            f'{path} has no {described.name} beside it, which a depth image needs: write {{"focal": F}} with the focal length '
            "in pixels, or pass another file."
        )
    try:
        facts = json.loads(described.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(_unreadable(described, error)) from error
    if not isinstance(facts, dict):
        raise ValueError(f'{described} holds no object: write {{"focal": F}} with the focal length in pixels.')
    try:
        with quiet, open_image(path) as image:
            mode, levels = image.mode, np.asarray(image)
    except Exception as error:  # decoders raise arbitrary exceptions for damaged data
        raise ValueError(_unreadable(path, error)) from error
    if not mode.startswith("I"):
        raise ValueError(
            f"{path} is an image of mode {mode}; depth images have 16 bits, in millimetres: save it as such."
        )
    return np.where(levels == _SATURATED, 0, levels) / _MILLIMETRES, facts.get("focal"), facts.get("pose")


def _of_depth(depth: NDArray[Any], focal: Any, pose: Any, path: Path) -> PointCloud:
    """Return the measured points of a depth image ``(H, W)``, with the normals that face the camera."""
    if depth.ndim != 2 or depth.dtype.kind not in "fiu":
        raise ValueError(f"depth in {path} is an array {depth.shape} of {depth.dtype}: save numbers (H, W).")
    focals = _numbers(focal, ((), (1,), (2,)), "focal", "the focal length in pixels", path)
    if not (focals > 0).all():
        raise ValueError(f"focal in {path} is {focals.tolist()}: it must be positive, in pixels.")
    matrix = np.eye(4)[:3] if pose is None else _numbers(pose, ((3, 4), (4, 4)), "pose", "camera to world", path)
    along, down = np.broadcast_to(focals, 2)
    distance = np.nan_to_num(depth.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if (distance < 0).any():
        raise ValueError(
            f"depth in {path} has negative numbers, down to {distance.min():g}: save distances, 0 if unknown."
        )
    measured = distance > 0
    if not measured.any():
        raise ValueError(f"{path} has no pixel with a depth above 0: pass another depth image.")
    height, width = depth.shape
    columns, rows = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    rays = np.stack((columns / along, -rows / down, -np.ones_like(columns)), axis=-1)  # right, up, backwards
    points = rays * distance[..., None]
    normals = _normals_of_depth(points, measured)
    turned = matrix[:3, :3]
    note = f"depth image, {int(measured.sum()):,} of {measured.size:,} pixels measured"
    return PointCloud(points[measured] @ turned.T + matrix[:3, 3], normals[measured] @ turned.T, (note,))


def _normals_of_depth(points: Coordinates, measured: NDArray[np.bool_]) -> Coordinates:
    """Return the normals ``(H, W, 3)`` of the pixels of a depth image, 0 at its edges and where depth is discontinuous.

    Args:
        points: ``(H, W, 3)`` in the camera's axes.
        measured: ``(H, W)``, whether a pixel has a point.
    """
    normals = np.zeros_like(points)
    right, below = points[:-1, 1:] - points[:-1, :-1], points[1:, :-1] - points[:-1, :-1]
    cross = np.cross(below, right)  # towards the camera
    length = np.linalg.norm(cross, axis=-1, keepdims=True)
    units = np.divide(cross, length, out=np.zeros_like(cross), where=length > 0)
    here = points[:-1, :-1]
    facing = -(units * here).sum(-1) > _FACING * np.linalg.norm(here, axis=-1)
    usable = facing & measured[:-1, :-1] & measured[:-1, 1:] & measured[1:, :-1]
    normals[:-1, :-1][usable] = units[usable]
    return normals


def _numbers(value: Any, shapes: tuple[tuple[int, ...], ...], name: str, meaning: str, path: Path) -> Coordinates:
    """Return an array of one of some shapes, or raise a ``ValueError``."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if array.shape not in shapes or not np.isfinite(array).all():
        stated = " or ".join(str(shape) if shape else "one number" for shape in shapes)
        held = "missing" if value is None else f"{value!r:.80}"
        raise ValueError(f"{name} of the depth image {path} is {held}: state {meaning}, {stated}.")
    return array


def _unreadable(path: Path, error: Exception | str) -> str:
    """Return the error message for a file that cannot be read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path} cannot be read ({reason}): get it from its source again, or remove it."
