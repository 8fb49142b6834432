"""Scenes in the layout of scene representation networks (SRN)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datamodules.storage.lenses import Lens, positive_pixels, read_lens
from datamodules.storage.poses import Convention, Matrices, matrix_of, poses_of
from datamodules.storage.views import Scene, common_header, lens_tensors

SRN_FILE = "intrinsics.txt"
_LENS_COUNT = 10  # numbers in intrinsics.txt if it states more than the focal length


def read_srn(folder: str | Path, convention: Convention = "opencv") -> Scene:
    """Read a scene in the layout of scene representation networks; frames are ordered by name.

    ``intrinsics.txt`` starts with the focal length in pixels, optionally followed by the principal point and the image size
    that they refer to: ``f cx cy 0``, ``0 0 0``, ``1``, ``height width``. Both are scaled to the size of the images.
    ``pose/*.txt`` contain 16 numbers each, camera to world with the axes right, down, forwards, which are converted.
    ``rgb/*.png`` are the images of the same names; their background is white, so transparency is ignored.

    Args:
        folder: Folder of the scene.
        convention: Convention of the poses.

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
        matrices.append(matrix_of(numbers.reshape(4, 4), str(path)))
    poses, (shape, _) = poses_of(matrices, [str(path) for path in files], convention), common_header(images)
    intrinsics, _ = lens_tensors([_lens(folder / SRN_FILE, shape)] * len(files))
    return Scene(folder.name, images, poses, intrinsics, shape, drop_alpha=True, convention=convention)


def _lens(path: Path, shape: tuple[int, int]) -> Lens:
    """Return the lens in ``intrinsics.txt``, scaled to images of a shape."""
    numbers = _numbers(path).tolist()
    focal = positive_pixels(next(iter(numbers), None), "the focal length, its first number,", str(path))
    if len(numbers) != _LENS_COUNT:
        return read_lens({"fl_x": focal}, shape, str(path))
    height, width = (
        positive_pixels(number, name, str(path)) for number, name in zip(numbers[8:], ("height", "width"), strict=True)
    )
    focal_x, focal_y, centre_x, centre_y = (
        number * side / original
        for number, side, original in zip(
            (focal, focal, *numbers[1:3]), (shape[1], shape[0]) * 2, (width, height) * 2, strict=True
        )
    )
    return read_lens({"fl_x": focal_x, "fl_y": focal_y, "cx": centre_x, "cy": centre_y}, shape, str(path))


def _numbers(path: Path) -> Matrices:
    """Return all numbers in a text file."""
    try:
        return np.array(path.read_text(encoding="ascii").split(), dtype=np.float64)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Get the scene from its source again.") from error
    except ValueError as error:
        raise ValueError(f"{path} must contain only numbers ({error}): get it from its source again.") from error
