"""Scenes in folders: posed images, checked as far as that goes without decoding them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.cameras import focal_length
from datamodules.storage.images import quiet, read_image

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = 33  # bytes, to the end of the first chunk
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_ORTHONORMAL = 1e-3  # what a rotation may deviate from one
_LENS = frozenset(("camera_angle_x", "fl_x", "fl_y", "w", "h", "cx", "cy"))  # of all frames, or of one
_OFF_CENTRE = 0.01  # of a side, by which the optical axis may miss the middle
_LARGEST = 1e9  # of focal lengths and positions: float32 has neither pixels nor places beyond
_SMALLEST = 1e-6  # of focal lengths
_SRN_LENS = 10  # numbers of intrinsics.txt, where it states more than the focal length

Matrices = NDArray[np.float64]


class Scene(NamedTuple):
    """A scene that can be read: its images, and the cameras that took them.

    Attributes:
        name: Of its folder.
        images: Files, one per frame.
        poses: ``(F, 3, 4)`` float32, camera to world: axes right, up, backwards in columns, then the position.
        focals: ``(F, 2)`` float32 focal lengths in pixels, along columns and rows.
        shape: Rows and columns of all images.
    """

    name: str
    images: tuple[Path, ...]
    poses: Tensor
    focals: Tensor
    shape: tuple[int, int]


def read_transforms(folder: str | Path) -> Scene:
    """Read a scene that ``transforms.json`` describes, as Blender's exporters for NeRF write it; frames in its order.

    It holds ``camera_angle_x``, the horizontal field of view in radians, or focal lengths ``fl_x`` and ``fl_y`` in pixels, of
    all frames or each; and ``frames``, each with ``file_path`` and ``transform_matrix``, 4 x 4 or 3 x 4, camera to world. The
    image of a frame is the last part of ``file_path`` with ``.png``, in the same folder; else what ``file_path`` names below
    the folder, with its ending or ``.png``.

    Args:
        folder: Of the scene.

    Raises:
        ValueError: If the description is missing, damaged or impossible, or images are missing, cut off or of several sizes;
            the message names the file.
    """
    folder = Path(folder)
    path = folder / "transforms.json"
    described = _json(path)
    frames = described.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{path} has no frames: a list of at least one, each with file_path and transform_matrix.")
    images = _images(folder, [frame.get("file_path") for frame in frames])
    where = [f"{path}, frame {number}" for number in range(len(frames))]
    matrices = [_matrix(frame.get("transform_matrix"), place) for frame, place in zip(frames, where, strict=True)]
    poses = _poses(matrices, where)
    shape = _common_shape(images)
    shared = _focals(described, shape, where[0]) if any(_LENS.isdisjoint(frame) for frame in frames) else None
    focals = [
        shared if shared and _LENS.isdisjoint(frame) else _focals(described | frame, shape, place)
        for frame, place in zip(frames, where, strict=True)
    ]
    return Scene(folder.name, images, poses, torch.tensor(focals), shape)


def read_srn(folder: str | Path) -> Scene:
    """Read a scene in the layout of scene representation networks; frames in the order of their names.

    ``intrinsics.txt`` begins with the focal length in pixels, and may state the optical axis and the rows and columns that it
    is for: ``f cx cy 0``, ``0 0 0``, ``1``, ``height width``; focal lengths are scaled to images of another size.
    ``pose/*.txt`` hold 16 numbers each, camera to world with the axes right, down, forwards, which are turned; ``rgb/*.png``
    are the images of the same names.

    Args:
        folder: Of the scene.

    Raises:
        ValueError: If a file is missing, damaged or impossible, or images are of several sizes; the message names it.
    """
    folder = Path(folder)
    files = sorted(path for path in (folder / "pose").glob("*.txt") if not path.name.startswith("."))
    images = tuple(sorted(path for path in (folder / "rgb").glob("*.png") if not path.name.startswith(".")))
    if not images or [path.stem for path in files] != [path.stem for path in images]:
        odd = sorted({path.stem for path in files} ^ {path.stem for path in images})
        named = f"; {odd[0]} is in one of them alone" if odd else ""
        raise ValueError(
            f"{folder} has {len(files)} pose/*.txt and {len(images)} rgb/*.png{named}: each image has a pose of its name. "
            "Take the scene from its source again."
        )
    matrices = []
    for path in files:
        numbers = _numbers(path)
        if len(numbers) != 16:
            raise ValueError(f"{path} has {len(numbers)} numbers: a pose has 16. Take the scene from its source again.")
        matrices.append(_matrix(numbers.reshape(4, 4), str(path)) * (1.0, -1.0, -1.0, 1.0))
    poses, shape = _poses(matrices, [str(path) for path in files]), _common_shape(images)
    focals = torch.tensor(_srn_focals(folder / "intrinsics.txt", shape))
    return Scene(folder.name, images, poses, focals.expand(len(files), 2), shape)


def read_view(path: str | Path, drop_alpha: bool = False) -> Tensor:
    """Return an image as colours on white; one without transparency as it is.

    Args:
        path: The file.
        drop_alpha: Whether the colours of RGBA are taken as they are, whatever its transparency.

    Returns:
        ``(3, H, W)`` uint8.

    Raises:
        ValueError: If the image cannot be read; the message names it.
    """
    with suppress(Exception), quiet, Image.open(path) as image:  # what is wrong with it, reading says below
        if drop_alpha and image.mode == "RGBA":
            return torch.from_numpy(np.array(image)[..., :3]).permute(2, 0, 1).contiguous()
    return read_image(path).pixels


def is_opaque(path: str | Path) -> bool:
    """Return whether an image, judged by its header, has no transparency; one that cannot be read is not opaque."""
    with suppress(Exception), quiet, Image.open(path) as image:
        return not image.has_transparency_data
    return False


def _json(path: Path) -> dict[str, Any]:
    """Return what a JSON holds."""
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"There is no {path}: a scene is a folder with transforms.json and its images.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): take it from its source again.") from error
    if not isinstance(described, dict):
        raise ValueError(
            f"{path} holds no names and values but a {type(described).__name__}: take it from its source again."
        )
    return described


def _numbers(path: Path) -> Matrices:
    """Return all numbers in a text file."""
    try:
        return np.array(path.read_text(encoding="ascii").split(), dtype=np.float64)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Take the scene from its source again.") from error
    except ValueError as error:
        raise ValueError(f"{path} holds other things than numbers ({error}): take it from its source again.") from error


def _images(folder: Path, named: Sequence[Any]) -> tuple[Path, ...]:
    """Return the images of frames."""
    with os.scandir(folder) as entries:
        there = {entry.name for entry in entries}
    found = [_image(folder, name, there) for name in named]
    missing = [name for name, path in zip(named, found, strict=True) if path is None]
    if missing:
        raise ValueError(
            f"{folder / 'transforms.json'}: {len(missing)} of {len(named)} images are missing in {folder}, the first with "
            f"file_path {missing[0]!r:.100}. Put them there, or take their frames out of the file."
        )
    return tuple(path for path in found if path is not None)


def _image(folder: Path, named: Any, there: set[str]) -> Path | None:
    """Return the image that a frame names; None if it is not there."""
    if not isinstance(named, str) or not named:
        return None
    named = named.replace("\\", "/")
    last = named.rsplit("/", 1)[-1]
    if f"{last}.png" in there:
        return folder / f"{last}.png"
    candidates = (folder / last, folder / named, folder / f"{named}.png")
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 - too long a name is no file


def _matrix(found: Any, where: str) -> Matrices:
    """Return the upper three rows of a matrix, 4 x 4 or 3 x 4."""
    try:
        matrix = np.asarray(found, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise ValueError(f"{where}: transform_matrix is no matrix of 4 x 4 or 3 x 4 numbers. Export the scene again.")
    if len(matrix) == 4 and not np.abs(matrix[3] - (0, 0, 0, 1)).max() <= _ORTHONORMAL:
        raise ValueError(
            f"{where}: the last row of the pose is {_listed(matrix[3])}, not 0, 0, 0, 1. Poses are camera to world, the "
            "position in the last column: transpose it, or export the scene again."
        )
    return matrix[:3]


def _poses(matrices: Sequence[Matrices], where: Sequence[str]) -> Tensor:
    """Return poses ``(F, 3, 4)`` float32 whose axes are right-handed and orthonormal, or refuse them."""
    poses = np.stack(matrices)
    fit = np.abs(poses) <= _LARGEST  # nor is NaN
    finite: NDArray[np.bool_] = np.asarray(fit.all((1, 2)))
    axes = np.where(finite[:, None, None], poses[:, :, :3], 0.0)
    deviation = np.abs(axes @ axes.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    determinants = np.linalg.det(axes)
    good = finite & (deviation <= _ORTHONORMAL) & (determinants > 0)
    if not good.all():
        worst = int(np.argmin(good))
        found = (
            f"R R^T is off 1 by {deviation[worst]:.3g}, the determinant is {determinants[worst]:.3g}"
            if finite[worst]
            else f"it holds {_listed(poses[worst][~fit[worst]][:3])}"
        )
        raise ValueError(
            f"{where[worst]}: the pose is no rotation R with a position: {found}. Poses are camera to world with axes right, "
            "up, backwards of length 1: export the scene again, without scaling or mirroring."
        )
    return torch.from_numpy(poses).float()


def _listed(numbers: Matrices) -> str:
    """Return numbers in words."""
    return ", ".join(f"{number:.4g}" for number in numbers)


def _focals(described: Mapping[str, Any], shape: tuple[int, int], where: str) -> tuple[float, float]:
    """Return the focal lengths of a frame in pixels, along columns and rows."""
    height, width = shape
    for side, extent, centre in (("w", width, "cx"), ("h", height, "cy")):
        stated = _positive(described.get(side, extent), side, where)
        if stated != extent and "fl_x" in described:
            raise ValueError(
                f"{where}: {side} is {stated:g}, the images have {height} x {width} pixels (rows x columns): focal lengths "
                "are for these. Give the images that were described, or camera_angle_x instead of fl_x."
            )
        _check_centre(described.get(centre, stated / 2), centre, stated, side, where)
    if "fl_x" in described:
        across = _positive(described["fl_x"], "fl_x", where)
        return across, _positive(described.get("fl_y", across), "fl_y", where)
    angle = described.get("camera_angle_x")
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not 0 < angle < math.pi:
        found = "missing" if angle is None else f"{angle!r:.40}"
        raise ValueError(
            f"{where}: camera_angle_x, the horizontal field of view, is {found}: it is an angle in radians between 0 and "
            "3.1416. Correct it, or give fl_x in pixels."
        )
    return (_positive(focal_length(angle, width), f"the focal length of camera_angle_x {angle:g}", where),) * 2


def _srn_focals(path: Path, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the focal lengths that ``intrinsics.txt`` states, along columns and rows of images of a shape."""
    numbers = _numbers(path).tolist()
    focal = _positive(next(iter(numbers), None), "the focal length, its first number,", str(path))
    if len(numbers) != _SRN_LENS:
        return focal, focal
    height, width = (
        _positive(number, name, str(path)) for number, name in zip(numbers[8:], ("height", "width"), strict=True)
    )
    _check_centre(numbers[1], "cx", width, "width", str(path))
    _check_centre(numbers[2], "cy", height, "height", str(path))
    return focal * shape[1] / width, focal * shape[0] / height


def _check_centre(middle: Any, centre: str, stated: float, side: str, where: str) -> None:
    """Refuse an optical axis that misses the middle of the image."""
    middle = _positive(middle, centre, where)
    if abs(middle / stated - 0.5) > _OFF_CENTRE:
        raise ValueError(
            f"{where}: {centre} is {middle:g} where {side} is {stated:g}: the optical axis has to meet the middle of the "
            "image. Crop the images around it."
        )


def _positive(found: Any, name: str, where: str) -> float:
    """Return a number of pixels."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not _SMALLEST <= found <= _LARGEST:
        raise ValueError(
            f"{where}: {name} is {found!r:.40}; it is a number of pixels above 0, up to {_LARGEST:g}. Correct it, or export "
            "again."
        )
    return float(found)


def _common_shape(images: Sequence[Path]) -> tuple[int, int]:
    """Return the rows and columns of images, which all have the same."""
    shapes = [_shape(path) for path in images]
    other = next((index for index, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise ValueError(
            f"{images[other]} has {shapes[other][0]} x {shapes[other][1]} pixels, {images[0].name} has "
            f"{shapes[0][0]} x {shapes[0][1]}: the images of a scene have one size. Resize them."
        )
    return shapes[0]


def _shape(path: Path) -> tuple[int, int]:
    """Return the rows and columns of an image; of a PNG without decoding it, if its header and its end are there."""
    with suppress(OSError), path.open("rb", buffering=0) as file:  # which reading says below
        header = file.read(_PNG_HEADER)
        if len(header) == _PNG_HEADER and header.startswith(_PNG):
            width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
            if not width or not height:
                raise ValueError(f"{path} has {height} x {width} pixels: take it from its source again.")
            file.seek(-len(_PNG_END), os.SEEK_END)
            if file.read() == _PNG_END:
                return height, width
    height, width = read_image(path).pixels.shape[1:]
    return height, width
