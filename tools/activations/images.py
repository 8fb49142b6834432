"""Images of any size as a model takes them: read, and cut to squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from datamodules.storage.images import cut, image_files, read_image


def read_all(places: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Read images, and all images in folders, which `datamodules.storage.images.image_files` finds.

    Args:
        places: Files and folders.

    Returns:
        Images ``(3, H, W)`` uint8 by name, and one line for each in a folder that cannot be read. The name is that of the
        file, or its path where two have the same.

    Raises:
        ValueError: If a file that was named cannot be read, or if there is no image at all.
    """
    found: dict[Path, Tensor] = {}
    skipped = []
    for place in map(Path, places):
        for path, _ in image_files(place):
            try:
                found[path] = read_image(path).pixels
            except ValueError as error:
                if path == place:
                    raise
                skipped.append(f"Skipped: {error}")
    if not found:
        raise ValueError(f"There is no image in {', '.join(places)}: name images, or folders that hold some.")
    names = [path.name for path in found]
    return {path.name if names.count(path.name) == 1 else str(path): found[path] for path in found}, skipped


def fitted(image: Tensor, size: int) -> Tensor:
    """Return the largest centred square of an image ``(3, h, w)`` uint8, resized to ``size`` pixels along each side."""
    return _square(image, min(image.shape[1:]), 0.5, 0.5, size)


def crops(image: Tensor, size: int, number: int) -> list[Tensor]:
    """Return squares of an image at fixed places, evenly spaced, with half its shorter side for theirs.

    Args:
        image: ``(3, h, w)`` uint8.
        size: Wanted pixels along each side.
        number: Of crops; they lie in ``ceil(sqrt(number))`` columns.

    Returns:
        Crops ``(3, size, size)`` uint8, row by row.
    """
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / max(columns, 1))
    side = max(1, round(min(image.shape[1:]) / 2))
    return [
        _square(image, side, _place(index // columns, rows), _place(index % columns, columns), size)
        for index in range(number)
    ]


def _place(index: int, number: int) -> float:
    """Return a place in [0, 1]: the first at 0, the last at 1, a single one in the middle."""
    return index / (number - 1) if number > 1 else 0.5


def _square(image: Tensor, side: int, down: float, across: float, size: int) -> Tensor:
    """Return a resized square of ``side`` pixels; ``down`` and ``across`` in [0, 1] say where it lies."""
    top, left = (round((extent - side) * place) for extent, place in zip(image.shape[1:], (down, across), strict=True))
    return cut(image, ((top, top + side), (left, left + side)), size)
