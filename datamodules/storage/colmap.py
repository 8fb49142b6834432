"""Scenes reconstructed by COLMAP, exported as text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.storage.lenses import Lens, read_lens
from datamodules.storage.poses import Convention, Matrices, poses_of
from datamodules.storage.views import Scene, common_header, lens_tensors, unnamed_images

COLMAP_FOLDERS = ("", "sparse/0", "sparse")  # of the model, relative to the folder of the scene
_PARAMETERS = {  # keys of transforms.json that the parameters of a camera model stand for
    "SIMPLE_PINHOLE": ("fl_x", "cx", "cy"),
    "PINHOLE": ("fl_x", "fl_y", "cx", "cy"),
    "SIMPLE_RADIAL": ("fl_x", "cx", "cy", "k1"),
    "RADIAL": ("fl_x", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2"),
}
_NORM_TOLERANCE = 1e-3  # of quaternions


class _Image(NamedTuple):
    """A line of ``images.txt``.

    Attributes:
        name: Path of the image below the folder of images.
        camera: Identifier of the camera.
        pose: ``(3, 4)``, world to camera with the axes right, down, forwards.
        label: Place of the line, for error messages.
    """

    name: str
    camera: str
    pose: Matrices
    label: str


def model_folder(folder: Path) -> Path | None:
    """Return the folder of the COLMAP model of a scene; None if there is none."""
    candidates = [folder / below for below in COLMAP_FOLDERS]
    names = ("cameras.txt", "cameras.bin")
    return next((path for path in candidates if any((path / name).is_file() for name in names)), None)


def read_colmap(folder: str | Path, convention: Convention = "opencv_w2c") -> Scene:
    """Read a scene with a COLMAP model as text, ``cameras.txt`` and ``images.txt``; frames are ordered by image name.

    The model is in the folder of the scene, in ``sparse/0`` or in ``sparse``. Images are below ``images``, or else below the
    folder of the scene. Camera models are SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL and OPENCV. World coordinates are
    those of COLMAP, whose origin, axes and unit are arbitrary.

    Args:
        folder: Folder of the scene.
        convention: Convention of the poses.

    Raises:
        ValueError: If the model is binary, damaged or has another camera model, or if images are missing, truncated or of
            different sizes; the message names the file.
    """
    folder = Path(folder)
    model = model_folder(folder) or folder
    cameras, listed = model / "cameras.txt", model / "images.txt"
    for path in (cameras, listed):
        if not path.is_file() and path.with_suffix(".bin").is_file():
            raise ValueError(
                f"{path.with_suffix('.bin')} is a binary model, but models are read as text: run colmap model_converter "
                f"--input_path {model} --output_path {model} --output_type TXT."
            )
    facts = _cameras(cameras)
    entries = sorted(_entries(listed), key=lambda entry: entry.name)
    if not entries:
        raise ValueError(f"{listed} has no images: export the model again.")
    unknown = next((entry for entry in entries if entry.camera not in facts), None)
    if unknown is not None:
        raise ValueError(f"{unknown.label}: there is no camera {unknown.camera} in {cameras}: export the model again.")
    images = tuple(_image(folder, entry) for entry in entries)
    shape, num_opaque = common_header(images)
    used = dict.fromkeys(entry.camera for entry in entries)
    lenses: dict[str, Lens] = {name: read_lens(facts[name], shape, f"{cameras}, camera {name}") for name in used}
    poses = poses_of([entry.pose for entry in entries], [entry.label for entry in entries], convention)
    intrinsics, distortion = lens_tensors([lenses[entry.camera] for entry in entries])
    unnamed = unnamed_images(images)
    notes = [
        ("unused images", f"{len(unnamed)} image(s) without a pose are ignored, such as {path}") for path in unnamed[:1]
    ]
    return Scene(
        folder.absolute().name,
        images,
        poses,
        intrinsics,
        shape,
        distortion,
        num_opaque=num_opaque,
        convention=convention,
        notes=tuple(notes),
    )


def _cameras(path: Path) -> dict[str, dict[str, float | str]]:
    """Return the keys of the lens of every camera, by its identifier."""
    cameras: dict[str, dict[str, float | str]] = {}
    for number, line in _lines(path):
        if not line:
            continue
        label = f"{path}, line {number}"
        identifier, model, *rest = [*line.split(), ""]
        if model not in _PARAMETERS:
            raise ValueError(
                f"{label}: the camera model {model!r:.40} is not supported; supported are {', '.join(_PARAMETERS)}. Undistort "
                "the images with colmap image_undistorter, and pass its output as text."
            )
        names = ("w", "h", *_PARAMETERS[model])
        values = _floats(rest[:-1], label)
        if len(values) != len(names):
            raise ValueError(
                f"{label}: {model} has {len(names) - 2} parameters after width and height, not {len(values) - 2}."
            )
        cameras[identifier] = {"camera_model": model, **dict(zip(names, values, strict=True))}
    return cameras


def _entries(path: Path) -> Iterator[_Image]:
    """Yield the images of a model; every image has a line of its pose and a line of its points, which may be empty."""
    lines = _lines(path)
    for number, line in lines:
        if not line:
            continue
        label = f"{path}, line {number}"
        *numbers, camera, name = [*line.split(maxsplit=9), *[""] * 10][:10]
        if not name:
            raise ValueError(f"{label}: a pose has ten columns, IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME.")
        _, *values = _floats(numbers, label)
        yield _Image(name, camera, _world_to_camera(values, label), label)
        _, points = next(lines, (0, ""))
        if len(points.split()) % 3:
            raise ValueError(
                f"{path}, line {number + 1}: the points of an image are triples X, Y, POINT3D_ID; their line may be empty, but "
                "not missing. Export the model again."
            )


def _world_to_camera(values: Sequence[float], label: str) -> Matrices:
    """Return the matrix ``(3, 4)`` of a unit quaternion and a translation."""
    quaternion = np.array(values[:4])
    norm = float(np.linalg.norm(quaternion))
    if not abs(norm - 1) <= _NORM_TOLERANCE:
        raise ValueError(
            f"{label}: the quaternion QW, QX, QY, QZ has the length {norm:.4g}, not 1: export the model again."
        )
    w, x, y, z = (quaternion / norm).tolist()
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.column_stack((np.array(rotation), np.array(values[4:])))


def _image(folder: Path, entry: _Image) -> Path:
    """Return the file of an image."""
    below = Path(os.path.normpath(entry.name))
    if below.is_absolute() or below.parts[:1] in ((), ("..",)):
        raise ValueError(
            f"{entry.label}: the image {entry.name!r:.100} is outside of the folder of the scene: copy the images into "
            f"{folder / 'images'}, and name them relative to it."
        )
    path = next((path for path in (folder / "images" / below, folder / below) if path.is_file()), None)
    if path is None:
        raise ValueError(
            f"{entry.label}: there is no image {entry.name!r:.100} below {folder / 'images'} or {folder}: add it there."
        )
    return path


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are no comments, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text in UTF-8"
        raise ValueError(f"{path} cannot be read: {reason}. Export the model as text again.") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("#"):
            yield number, line.strip()


def _floats(words: Sequence[str], label: str) -> list[float]:
    """Return words as numbers."""
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"{label}: {error}. Export the model as text again.") from error
