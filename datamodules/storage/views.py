"""Read scenes of posed images from folders, with all checks that need no decoding of the images."""

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

from datamodules.cameras import centred_intrinsics, focal_length
from datamodules.storage.images import quiet, read_image

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = 33  # bytes up to the end of the first chunk
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_POSE_TOLERANCE = 1e-3  # largest deviation of R R^T from 1, and of the last row from 0, 0, 0, 1
_LENS_KEYS = frozenset(("camera_angle_x", "fl_x", "fl_y", "w", "h", "cx", "cy"))  # of the scene or of a frame
_CENTRE_TOLERANCE = 0.01  # largest offset of the optical axis from the image centre, as a fraction of the side
_LARGEST = 1e9  # of focal lengths and positions, for the precision of float32
_SMALLEST = 1e-6  # of focal lengths
_SRN_LENS_COUNT = 10  # numbers in intrinsics.txt if it states more than the focal length

Matrices = NDArray[np.float64]


class Scene(NamedTuple):
    """Image files of a scene and their cameras.

    Attributes:
        name: Name of the folder.
        images: Image files, one per frame.
        poses: ``(F, 3, 4)`` float32, camera to world: axes right, up, backwards as columns, then the position.
        intrinsics: ``(F, 4)`` float32 focal lengths and principal point in pixels, ``fx, fy, cx, cy``.
        shape: Rows and columns of every image.
    """

    name: str
    images: tuple[Path, ...]
    poses: Tensor
    intrinsics: Tensor
    shape: tuple[int, int]


def read_transforms(folder: str | Path) -> Scene:
    """Read a scene with ``transforms.json``, as written by Blender's exporters for NeRF; frames keep the order of the file.

    The file contains ``camera_angle_x``, the horizontal field of view in radians, or focal lengths ``fl_x`` and ``fl_y`` in
    pixels, for all frames or per frame; and ``frames``, each with ``file_path`` and ``transform_matrix``, 4 x 4 or 3 x 4,
    camera to world. The image of a frame is the last part of ``file_path`` with ``.png``, in the folder of the scene; if there
    is no such file, it is ``file_path`` relative to the folder, as it is or with ``.png``.

    Args:
        folder: Folder of the scene.

    Raises:
        ValueError: If the file is missing, damaged or invalid, or if images are missing, truncated or of different sizes; the
            message names the file.
    """
    folder = Path(folder)
    path = folder / "transforms.json"
    scene = _read_json(path)
    frames = scene.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(
            f"{path} has no frames: it needs a list of at least one, each with file_path and transform_matrix."
        )
    images = _images(folder, [frame.get("file_path") for frame in frames])
    labels = [f"{path}, frame {index}" for index in range(len(frames))]
    matrices = [_matrix(frame.get("transform_matrix"), label) for frame, label in zip(frames, labels, strict=True)]
    poses = _poses(matrices, labels)
    shape = _common_shape(images)
    shared = _focals(scene, shape, labels[0]) if any(_LENS_KEYS.isdisjoint(frame) for frame in frames) else None
    focals = [
        shared if shared and _LENS_KEYS.isdisjoint(frame) else _focals(scene | frame, shape, label)
        for frame, label in zip(frames, labels, strict=True)
    ]
    return Scene(folder.name, images, poses, centred_intrinsics(torch.tensor(focals), shape), shape)


def read_srn(folder: str | Path) -> Scene:
    """Read a scene in the layout of scene representation networks; frames are ordered by name.

    ``intrinsics.txt`` starts with the focal length in pixels, optionally followed by the optical axis and the image size that
    it refers to: ``f cx cy 0``, ``0 0 0``, ``1``, ``height width``. The focal length is scaled to the size of the images.
    ``pose/*.txt`` contain 16 numbers each, camera to world with the axes right, down, forwards, which are converted.
    ``rgb/*.png`` are the images of the same names.

    Args:
        folder: Folder of the scene.

    Raises:
        ValueError: If a file is missing, damaged or invalid, or if images have different sizes; the message names the file.
    """
    folder = Path(folder)
    files = sorted(path for path in (folder / "pose").glob("*.txt") if not path.name.startswith("."))
    images = tuple(sorted(path for path in (folder / "rgb").glob("*.png") if not path.name.startswith(".")))
    if not images or [path.stem for path in files] != [path.stem for path in images]:
        unmatched = sorted({path.stem for path in files} ^ {path.stem for path in images})
        example = f"; {unmatched[0]} is in only one of them" if unmatched else ""
        raise ValueError(
            f"{folder} has {len(files)} pose/*.txt and {len(images)} rgb/*.png{example}: each image needs a pose of the same "
            "name. Get the scene from its source again."
        )
    matrices = []
    for path in files:
        numbers = _numbers(path)
        if len(numbers) != 16:
            raise ValueError(
                f"{path} has {len(numbers)} numbers, but a pose has 16: get the scene from its source again."
            )
        matrices.append(_matrix(numbers.reshape(4, 4), str(path)) * (1.0, -1.0, -1.0, 1.0))
    poses, shape = _poses(matrices, [str(path) for path in files]), _common_shape(images)
    intrinsics = centred_intrinsics(torch.tensor(_srn_focals(folder / "intrinsics.txt", shape)), shape)
    return Scene(folder.name, images, poses, intrinsics.expand(len(files), 4), shape)


def read_view(path: str | Path, drop_alpha: bool = False) -> Tensor:
    """Read an image, composited over white if it has transparency.

    Args:
        path: The file.
        drop_alpha: Whether to drop the alpha channel of an RGBA image instead of compositing.

    Returns:
        ``(3, H, W)`` uint8.

    Raises:
        ValueError: If the image cannot be read; the message names it.
    """
    with suppress(Exception), quiet, Image.open(path) as image:  # read_image reports any error
        if drop_alpha and image.mode == "RGBA":
            return torch.from_numpy(np.array(image)[..., :3]).permute(2, 0, 1).contiguous()
    return read_image(path).pixels


def is_opaque(path: str | Path) -> bool:
    """Return whether an image has no transparency according to its header; False if it cannot be read."""
    with suppress(Exception), quiet, Image.open(path) as image:
        return not image.has_transparency_data
    return False


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"There is no {path}: a scene is a folder with transforms.json and its images.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): get it from its source again.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} contains a {type(content).__name__}, not a JSON object: get it from its source again."
        )
    return content


def _numbers(path: Path) -> Matrices:
    """Return all numbers in a text file."""
    try:
        return np.array(path.read_text(encoding="ascii").split(), dtype=np.float64)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Get the scene from its source again.") from error
    except ValueError as error:
        raise ValueError(f"{path} must contain only numbers ({error}): get it from its source again.") from error


def _images(folder: Path, file_paths: Sequence[Any]) -> tuple[Path, ...]:
    """Return the image files of all frames."""
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries}
    images = [_image(folder, file_path, names) for file_path in file_paths]
    missing = [file_path for file_path, image in zip(file_paths, images, strict=True) if image is None]
    if missing:
        raise ValueError(
            f"{folder / 'transforms.json'}: {len(missing)} of {len(file_paths)} images are missing in {folder}, the first with "
            f"file_path {missing[0]!r:.100}. Add them, or remove their frames from the file."
        )
    return tuple(image for image in images if image is not None)


def _image(folder: Path, file_path: Any, names: set[str]) -> Path | None:
    """Return the image file of a frame, or None if it does not exist; ``names`` are the names of all files in the folder."""
    if not isinstance(file_path, str) or not file_path:
        return None
    file_path = file_path.replace("\\", "/")
    last = file_path.rsplit("/", 1)[-1]
    if f"{last}.png" in names:
        return folder / f"{last}.png"
    candidates = (folder / last, folder / file_path, folder / f"{file_path}.png")
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 - False for overlong names


def _matrix(value: Any, label: str) -> Matrices:
    """Return the upper three rows of a 4 x 4 or 3 x 4 matrix; ``label`` is its place in error messages."""
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise ValueError(
            f"{label}: transform_matrix is not a matrix of 4 x 4 or 3 x 4 numbers. Export the scene again."
        )
    if len(matrix) == 4 and not np.abs(matrix[3] - (0, 0, 0, 1)).max() <= _POSE_TOLERANCE:
        raise ValueError(
            f"{label}: the last row of the pose is {_join(matrix[3])}, not 0, 0, 0, 1. Poses are camera to world, with the "
            "position in the last column: transpose it, or export the scene again."
        )
    return matrix[:3]


def _poses(matrices: Sequence[Matrices], labels: Sequence[str]) -> Tensor:
    """Return poses ``(F, 3, 4)`` float32, after checking that their axes are right-handed and orthonormal."""
    poses = np.stack(matrices)
    in_range = np.abs(poses) <= _LARGEST  # False for NaN
    finite: NDArray[np.bool_] = np.asarray(in_range.all((1, 2)))
    axes = np.where(finite[:, None, None], poses[:, :, :3], 0.0)
    deviation = np.abs(axes @ axes.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    determinants = np.linalg.det(axes)
    valid = finite & (deviation <= _POSE_TOLERANCE) & (determinants > 0)
    if not valid.all():
        first = int(np.argmin(valid))
        problem = (
            f"R R^T differs from 1 by {deviation[first]:.3g}, the determinant is {determinants[first]:.3g}"
            if finite[first]
            else f"it contains {_join(poses[first][~in_range[first]][:3])}"
        )
        raise ValueError(
            f"{labels[first]}: the pose is not a rotation R with a position: {problem}. Poses are camera to world with unit "
            "axes right, up, backwards: export the scene again, without scaling or mirroring."
        )
    return torch.from_numpy(poses).float()


def _join(numbers: Matrices) -> str:
    """Return numbers as text, separated by commas."""
    return ", ".join(f"{number:.4g}" for number in numbers)


def _focals(lens: Mapping[str, Any], shape: tuple[int, int], label: str) -> tuple[float, float]:
    """Return the focal lengths of a frame in pixels, along columns and rows."""
    height, width = shape
    for key, pixels, centre in (("w", width, "cx"), ("h", height, "cy")):
        side = _positive(lens.get(key, pixels), key, label)
        if side != pixels and "fl_x" in lens:
            raise ValueError(
                f"{label}: {key} is {side:g}, but the images have {height} x {width} pixels (rows x columns), and the focal "
                "lengths refer to these. Use the original images, or give camera_angle_x instead of fl_x."
            )
        _check_centre(lens.get(centre, side / 2), centre, side, key, label)
    if "fl_x" in lens:
        focal = _positive(lens["fl_x"], "fl_x", label)
        return focal, _positive(lens.get("fl_y", focal), "fl_y", label)
    angle = lens.get("camera_angle_x")
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not 0 < angle < math.pi:
        received = "missing" if angle is None else f"{angle!r:.40}"
        raise ValueError(
            f"{label}: camera_angle_x, the horizontal field of view, is {received}: it must be an angle in radians between 0 "
            "and 3.1416. Correct it, or give fl_x in pixels."
        )
    return (_positive(focal_length(angle, width), f"the focal length of camera_angle_x {angle:g}", label),) * 2


def _srn_focals(path: Path, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the focal lengths in ``intrinsics.txt``, scaled to images of a shape, along columns and rows."""
    numbers = _numbers(path).tolist()
    focal = _positive(next(iter(numbers), None), "the focal length, its first number,", str(path))
    if len(numbers) != _SRN_LENS_COUNT:
        return focal, focal
    height, width = (
        _positive(number, name, str(path)) for number, name in zip(numbers[8:], ("height", "width"), strict=True)
    )
    _check_centre(numbers[1], "cx", width, "width", str(path))
    _check_centre(numbers[2], "cy", height, "height", str(path))
    return focal * shape[1] / width, focal * shape[0] / height


def _check_centre(value: Any, centre: str, side: float, side_name: str, label: str) -> None:
    """Raise a ``ValueError`` if the optical axis is not at the centre of the image."""
    value = _positive(value, centre, label)
    if abs(value / side - 0.5) > _CENTRE_TOLERANCE:
        raise ValueError(
            f"{label}: {centre} is {value:g} but {side_name} is {side:g}: the optical axis must be at the centre of the image. "
            "Crop the images around it."
        )


def _positive(value: Any, name: str, label: str) -> float:
    """Return a number of pixels, after checking its type and range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _SMALLEST <= value <= _LARGEST:
        raise ValueError(
            f"{label}: {name} is {value!r:.40}; it must be a number of pixels above 0, up to {_LARGEST:g}. Correct it, or "
            "export the scene again."
        )
    return float(value)


def _common_shape(images: Sequence[Path]) -> tuple[int, int]:
    """Return the rows and columns of images, after checking that all are equal."""
    shapes = [_shape(path) for path in images]
    other = next((index for index, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise ValueError(
            f"{images[other]} has {shapes[other][0]} x {shapes[other][1]} pixels, but {images[0].name} has "
            f"{shapes[0][0]} x {shapes[0][1]}: the images of a scene must have the same size. Resize them."
        )
    return shapes[0]


def _shape(path: Path) -> tuple[int, int]:
    """Return the rows and columns of an image; a PNG with an intact header and end is not decoded."""
    with suppress(OSError), path.open("rb", buffering=0) as file:  # read_image reports any error
        header = file.read(_PNG_HEADER)
        if len(header) == _PNG_HEADER and header.startswith(_PNG):
            width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
            if not width or not height:
                raise ValueError(f"{path} has {height} x {width} pixels: get it from its source again.")
            file.seek(-len(_PNG_END), os.SEEK_END)
            if file.read() == _PNG_END:
                return height, width
    height, width = read_image(path).pixels.shape[1:]
    return height, width
