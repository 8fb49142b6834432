"""Read OBJ, PLY, STL and GLB meshes as coloured triangles, normalised in size and orientation."""

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
from datamodules.storage.images import ImageFileError, check_pixels, quiet

ENDINGS = (".obj", ".ply", ".stl", ".glb")
RADIUS = 1.4  # as in published scenes of objects, with cameras at a distance of 4

GREY = 0.8  # default colour, in all channels

UpAxis = Literal["y", "z"]

_GENERIC = ("models", "model", "model_normalized")  # equal for all ShapeNetCore objects, so not part of a name
_MAX_DIGITS = 12  # of the number of a vertex
_GLB_HEADER = 12  # bytes: magic number, version, length

_FORMATS = "OBJ, PLY, STL and GLB"


class Mesh(NamedTuple):
    """Triangles of an object, z up.

    Attributes:
        corners: ``(F, 3, 3)`` float32, corners x axes, in world units.
        colours: ``(F, 3, 3)`` float32 in [0, 1], corners x channels.
    """

    corners: NDArray[np.float32]
    colours: NDArray[np.float32]


def mesh_files(paths: Sequence[Path]) -> list[NamedFile]:
    """Find the mesh files at the given paths, and name them; the files of a folder are in alphabetical order.

    A name consists of the parts of the path relative to the folder, joined by hyphens, without the suffix and without the parts
    that are equal for all objects of ShapeNetCore: ``03001627/1a2b/models/model_normalized.obj`` becomes ``03001627-1a2b``. A
    name does not depend on other files.

    Args:
        paths: Files, and folders that are searched recursively.

    Raises:
        ValueError: If a path does not exist, a folder has no meshes, a file has another format, or two meshes have the same
            name.

    Example:
        ``mesh_files([Path("shapenet/03001627")])``
    """
    by_name: dict[str, Path] = {}
    for file in (file for path in paths for file in _files_at(path)):
        if by_name.setdefault(file.name, file.path).resolve() != file.path.resolve():
            raise ValueError(
                f"{by_name[file.name]} and {file.path} would both be named {file.name}: pass only one of them, or rename one."
            )
    return [NamedFile(name, path) for name, path in by_name.items()]


def _files_at(path: Path) -> Iterator[NamedFile]:
    """Yield the meshes at a path with their names."""
    if not path.exists():
        raise ValueError(f"There is no mesh or folder {path}: pass a file or a folder of meshes ({_FORMATS}).")
    if path.is_file():
        _check_format(path)
    files = files_below(path, ENDINGS)
    if not files:
        raise ValueError(f"The folder {path} contains no meshes ({_FORMATS}): pass another.")
    for file, relative in files:
        yield NamedFile(_name(relative) or _name(file.resolve()).rpartition("-")[2] or file.stem, file)


def _check_format(path: Path) -> None:
    """Raise a ``ValueError`` if the suffix of a file is not that of a supported format."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} has no supported mesh format: pass {_FORMATS} files ({', '.join(ENDINGS)}).")


def _name(path: PurePath) -> str:
    """Return the parts of a path that identify an object, joined by hyphens."""
    parts = [part for part in (*path.parent.parts, path.stem) if part != path.anchor]
    while parts and parts[-1] in _GENERIC:
        parts.pop()
    return "-".join(parts)


def read_mesh(path: Path, up: UpAxis = "y", radius: float = RADIUS) -> Mesh:
    """Read the triangles of all parts of a file, z up, with the centre of the bounding box at the origin.

    Colours are those of faces, vertices or materials; textures are sampled at the corners of triangles. Parts whose texture is
    missing or no image have the main colour of their material, and parts without a colour are light grey.

    Args:
        path: The file.
        up: Axis of the file that points up; ``y`` rotates the object by 90 degrees about x, which turns its z to -y.
        radius: Distance of the farthest corner from the origin after scaling.

    Raises:
        ValueError: If the file is missing, damaged, of an unsupported format, or without triangles, extent or area, or if a
            texture is damaged or too large; the message names it.

    Example:
        ``read_mesh(Path("chair.glb")).corners.shape``
    """
    corners, colours = _triangles(path)
    if up == "y":
        corners = z_up(corners)
    points = corners.reshape(-1, 3)
    corners = corners - (points.min(0) + points.max(0)) / 2
    with np.errstate(over="ignore"):  # reported below
        extent = float(np.linalg.norm(corners, axis=-1).max())
    if extent == 0 or not math.isfinite(extent):
        raise ValueError(f"The mesh {path} cannot be scaled, its extent is {extent:g}: fix or remove it.")
    scaled = corners * (radius / extent)
    sides = np.diff(scaled, axis=1)
    if not np.cross(sides[:, 0], sides[:, 1]).any():
        raise ValueError(f"The mesh {path} has only degenerate triangles without area: fix or remove it.")
    return Mesh(scaled.astype(np.float32), colours)


def z_up(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points ``(..., 3)`` with y up after rotating them by 90 degrees about x, which turns y to z, and z to -y."""
    return np.stack((corners[..., 0], -corners[..., 2], corners[..., 1]), axis=-1)


def read_corners(path: Path) -> NDArray[np.float64]:
    """Return the corners ``(F, 3, 3)`` of the triangles of all parts of a file, in the coordinates of the file.

    Raises:
        ValueError: If the file is missing, damaged, of an unsupported format, or without triangles; the message names it.
    """
    return np.concatenate([corners for _, corners in _parts(path)])


def _triangles(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the corners and colours of all triangles in a file, in the coordinates of the file."""
    parts = _parts(path)
    return np.concatenate([corners for _, corners in parts]), np.concatenate(
        [_colours(part, path) for part, _ in parts]
    )


def _parts(path: Path) -> list[tuple[trimesh.Trimesh, NDArray[np.float64]]]:
    """Return the parts of a file that have triangles, each with their corners in the coordinates of the file."""
    try:
        return _parts_of(_load(path), path)
    except ValueError:
        if path.suffix.lower() == ".obj" and path.is_file():
            _check_obj(path)  # names the line
        raise


def _parts_of(scene: trimesh.Scene, path: Path) -> list[tuple[trimesh.Trimesh, NDArray[np.float64]]]:
    """Return the parts of a scene that have triangles."""
    parts = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        part = scene.geometry[name]
        if isinstance(part, trimesh.Trimesh) and len(part.faces):
            triangles = _corners(part, path)
            if not (np.isfinite(triangles).all() and np.isfinite(transform).all()):
                raise ValueError(f"The mesh {path} has non-finite coordinates: fix or remove it.")
            parts.append((part, triangles @ transform[:3, :3].T + transform[:3, 3]))
    if not parts:
        raise ValueError(f"The mesh {path} has no triangles: pass a file with faces.")
    return parts


def _corners(part: trimesh.Trimesh, path: Path) -> NDArray[np.float64]:
    """Return the corners ``(F, 3, 3)`` of the triangles of a part, after checking the indices of its faces."""
    faces, vertices = part.faces, part.vertices
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(
            f"The mesh {path} has vertices {vertices.shape} and triangles {faces.shape}; both need 3 columns: fix or remove it."
        )
    lowest, highest = int(faces.min()), int(faces.max())
    if lowest < 0 or highest >= len(vertices):
        raise ValueError(
            f"The mesh {path} has {len(vertices)} vertices, but a face refers to vertex "
            f"{lowest if lowest < 0 else highest}, counted from 0: fix or remove it."
        )
    corners: NDArray[np.float64] = np.asarray(vertices, dtype=np.float64)[faces]
    return corners


def _load(path: Path) -> trimesh.Scene:
    """Return the contents of a mesh file."""
    if not path.is_file():
        raise ValueError(f"There is no mesh {path}: pass a file ({_FORMATS}).")
    _check_format(path)
    if path.suffix.lower() == ".glb":
        _check_glb(path)
    try:
        with quiet:  # about large textures, which are checked before they are decoded
            return trimesh.load_scene(path, process=False)
    except Exception as error:  # parsers raise arbitrary exceptions for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"The mesh {path} cannot be read ({reason}): get it from its source again, or remove it."
        ) from error


def _check_glb(path: Path) -> None:
    """Raise a ``ValueError`` if a chunk is longer than its file: the reader would allocate memory for it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        position = len(file.read(_GLB_HEADER))
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[:4], "little")
            position += 8 + length
            if position > size:
                raise ValueError(
                    f"The mesh {path} is damaged: a chunk of {length:,} bytes does not fit into its {size:,} bytes. Get it "
                    "from its source again, or remove it."
                )
            file.seek(position)


def _check_obj(path: Path) -> None:
    """Raise a ``ValueError`` with the line of a vertex without three finite numbers, or of a face with invalid indices."""
    vertices, largest, line_of_largest = 0, 0, 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"The mesh {path} cannot be read ({error.strerror}): pass another file.") from error
    for number, line in enumerate(text.splitlines(), 1):
        keyword, *words = line.split("#")[0].split() or [""]
        if keyword == "v":
            vertices += 1
            if len(words) < 3 or not all(map(_is_finite, words[:3])):
                raise ValueError(
                    f"The mesh {path}, line {number}: the vertex {' '.join(words)!r:.60} has not three finite numbers: fix or "
                    "remove it."
                )
        elif keyword == "f":
            if problem := _problem_of_face(words, vertices):
                raise ValueError(f"The mesh {path}, line {number}: {problem}: fix or remove it.")
            highest = max(int(word.partition("/")[0]) for word in words)
            if highest > largest:
                largest, line_of_largest = highest, number
    if largest > vertices:
        raise ValueError(
            f"The mesh {path}, line {line_of_largest}: a face refers to vertex {largest} of {vertices}: fix or remove it."
        )


def _problem_of_face(words: Sequence[str], vertices: int) -> str:
    """Return what is wrong with the indices of a face of an OBJ; an empty string if nothing is."""
    if len(words) < 3:
        return f"a face has {len(words)} corners, not at least 3"
    for word in words:
        digits = word.partition("/")[0]
        if not digits.lstrip("-").isdecimal() or len(digits) > _MAX_DIGITS:
            return f"a corner of a face is {word!r:.40}, not the number of a vertex"
        if int(digits) == 0 or int(digits) < -vertices:
            return f"a face refers to vertex {digits}, counted from 1 or back from the {vertices} before it"
    return ""


def _is_finite(word: str) -> bool:
    """Return whether a word is a finite number."""
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _colours(part: trimesh.Trimesh, path: Path) -> NDArray[np.float32]:
    """Return the colours ``(F, 3, 3)`` of the corners of a part, in [0, 1]."""
    visual: Any = part.visual
    if visual.kind == "texture":
        colours = _material_colours(visual, len(part.vertices), path)[part.faces]
    elif visual.kind == "vertex":
        colours = visual.vertex_colors[part.faces]
    elif visual.kind == "face":
        colours = visual.face_colors[:, None].repeat(3, axis=1)
    else:
        return np.full((len(part.faces), 3, 3), GREY, dtype=np.float32)
    return np.asarray(colours[..., :3] / np.float32(255), dtype=np.float32)


def _material_colours(visual: Any, count: int, path: Path) -> NDArray[np.uint8]:
    """Return the RGBA colours ``(count, 4)`` of vertices with a material."""
    material = visual.material
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    if type(image) is Image.Image and image.size == (2, 2):  # trimesh's placeholder if a file has no material
        return np.full((count, 4), round(255 * GREY), dtype=np.uint8)
    if visual.uv is not None and image is not None and len(visual.uv) == count:
        return _texture_colours(material, image, visual.uv, path)
    return np.tile(np.asarray(material.main_color, dtype=np.uint8), (count, 1))


def _texture_colours(material: Any, image: Image.Image, uv: NDArray[np.float64], path: Path) -> NDArray[np.uint8]:
    """Return the RGBA colours ``(N, 4)`` of a texture at positions ``(N, 2)``."""
    stream = getattr(image, "fp", None)  # of the encoded image, until it is decoded
    try:
        with quiet:
            if stream is not None:
                check_pixels(image.size, len(stream.getbuffer()))
            if math.prod(image.size) > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ImageFileError(f"has {image.width:,} x {image.height:,} pixels: downscale it first.")
            return np.asarray(material.to_color(np.nan_to_num(uv)))
    except ImageFileError as error:
        raise ValueError(f"The mesh {path} has a texture that {error}") from error
    except MemoryError:  # not a fault of the file
        raise
    except Exception as error:  # decoders raise arbitrary exceptions for damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"The mesh {path} has a texture that is corrupt or truncated ({reason}): get it from its source again."
        ) from error
