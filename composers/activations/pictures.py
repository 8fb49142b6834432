"""Pictures of any size as a model takes them: found, read, cut to its proportions and resized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from datamodules.images import read_picture, resize_picture


def read_all(places: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Read pictures, and all pictures in folders.

    A folder is searched with the folders in it, in alphabetical order, for names that end like those of pictures; hidden
    files and folders are passed over, and so is what cannot be read.

    Args:
        places: Files and folders.

    Returns:
        Pictures ``(3, H, W)`` uint8 by name, and one line for each that was passed over because it cannot be read. The name
        is that of the file, or its path where two have the same.

    Raises:
        ValueError: If a file that was named cannot be read, or if there is no picture at all.
    """
    found: dict[Path, Tensor] = {}
    skipped = []
    for place in map(Path, places):
        if not place.is_dir():
            found[place] = read_picture(place).pixels
            continue
        for path in _pictures_in(place):
            try:
                found[path] = read_picture(path).pixels
            except ValueError as error:
                skipped.append(f"Skipped: {error}")
    if not found:
        raise ValueError(f"There is no picture in {', '.join(places)}: name pictures, or folders that hold some.")
    return _named(found), skipped


def _pictures_in(folder: Path) -> list[Path]:
    """Return the files of a folder, and of the folders in it, that are called like pictures and are not hidden."""
    endings = Image.registered_extensions()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _named(found: dict[Path, Tensor]) -> dict[str, Tensor]:
    """Return pictures by the name of their file, those whose names are not unique by their path."""
    names = [path.name for path in found]
    return {path.name if names.count(path.name) == 1 else str(path): pixels for path, pixels in found.items()}


def fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """Return the largest centred window of a picture that has given proportions, resized.

    Args:
        picture: ``(3, h, w)`` uint8.
        height: Wanted rows.
        width: Wanted columns.

    Returns:
        ``(3, height, width)`` uint8.
    """
    return _window(picture, height, width, 1.0, 0.5, 0.5)


def crops(picture: Tensor, height: int, width: int, number: int) -> list[Tensor]:
    """Return crops of a picture at fixed places, evenly spaced, half as high and wide as its largest fitting window.

    Args:
        picture: ``(3, h, w)`` uint8.
        height: Wanted rows of a crop.
        width: Wanted columns of a crop.
        number: Of crops; they lie in ``ceil(sqrt(number))`` columns.

    Returns:
        Crops ``(3, height, width)`` uint8, row by row.
    """
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / max(columns, 1))
    return [
        _window(picture, height, width, 0.5, _place(index // columns, rows), _place(index % columns, columns))
        for index in range(number)
    ]


def _place(index: int, number: int) -> float:
    """Return a place in [0, 1]: the first at 0, the last at 1, a single one in the middle."""
    return index / (number - 1) if number > 1 else 0.5


def _window(picture: Tensor, height: int, width: int, scale: float, down: float, across: float) -> Tensor:
    """Return a resized window of the largest one's size times ``scale``; ``down`` and ``across`` in [0, 1] say where."""
    rows, columns = picture.shape[1:]
    factor = min(rows / height, columns / width) * scale
    tall, wide = max(1, round(height * factor)), max(1, round(width * factor))
    top, left = round((rows - tall) * down), round((columns - wide) * across)
    return resize_picture(picture[:, top : top + tall, left : left + wide], height, width)
