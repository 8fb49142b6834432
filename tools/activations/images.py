"""Images of any size, read and cropped to squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from datamodules.storage.images import cut, image_files, read_image


def read_all(paths: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Read image files, and all images in folders as listed by `datamodules.storage.images.image_files`.

    Args:
        paths: Files and folders.

    Returns:
        Images ``(3, H, W)`` uint8 by name, and one line for each file in a folder that cannot be read. The name is the file
        name, or the path if file names are not unique.

    Raises:
        ValueError: If a path that was passed cannot be read, or there is no image.
    """
    images: dict[Path, Tensor] = {}
    skipped = []
    for root in map(Path, paths):
        for path, _ in image_files(root):
            try:
                images[path] = read_image(path).pixels
            except ValueError as error:
                if path == root:
                    raise
                skipped.append(f"Skipped: {error}")
    if not images:
        raise ValueError(f"There is no image in {', '.join(paths)}: pass image files, or folders that contain images.")
    names = [path.name for path in images]
    return {path.name if names.count(path.name) == 1 else str(path): images[path] for path in images}, skipped


def fitted(image: Tensor, size: int) -> Tensor:
    """Return the largest centred square of an image ``(3, h, w)`` uint8, resized to ``size`` pixels along each side."""
    return _square(image, min(image.shape[1:]), 0.5, 0.5, size)


def crops(image: Tensor, size: int, count: int) -> list[Tensor]:
    """Return evenly spaced square crops of an image whose side is half the shorter side of the image.

    Args:
        image: ``(3, h, w)`` uint8.
        size: Pixels along each side of the result.
        count: Number of crops, in ``ceil(sqrt(count))`` columns.

    Returns:
        Crops ``(3, size, size)`` uint8, row by row.
    """
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / max(columns, 1))
    side = max(1, round(min(image.shape[1:]) / 2))
    return [
        _square(image, side, _position(index // columns, rows), _position(index % columns, columns), size)
        for index in range(count)
    ]


def _position(index: int, count: int) -> float:
    """Return a position in [0, 1]: the first is 0, the last 1, a single one 0.5."""
    return index / (count - 1) if count > 1 else 0.5


def _square(image: Tensor, side: int, down: float, across: float, size: int) -> Tensor:
    """Return a square of ``side`` pixels at a position ``(down, across)`` in [0, 1], resized to ``size`` pixels."""
    top, left = (round((extent - side) * at) for extent, at in zip(image.shape[1:], (down, across), strict=True))
    return cut(image, ((top, top + side), (left, left + side)), size)
