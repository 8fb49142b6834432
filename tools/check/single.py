"""What is wrong with single images, looked at by all processors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from datamodules.storage.images import quiet, read_image
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting


class Fault(NamedTuple):
    """What is wrong with an image.

    Attributes:
        kind: ``unreadable``; ``wrong size``, another than was published; or ``small``, smaller than it is trained on.
        detail: In words that name the file.
    """

    kind: Literal["unreadable", "wrong size", "small"]
    detail: str


def faults(
    paths: Sequence[Path], size: int, shape: tuple[int, int] | None, *, decode: bool = True
) -> Iterator[Fault | None]:
    """Yield what is wrong with every image, in order; None if nothing is.

    Args:
        paths: The images.
        size: Pixels along each side of an image as it is trained on.
        shape: Rows and columns as published, None if they vary.
        decode: Whether images are decoded, or only their headers are read.
    """
    look = partial(_fault, size=size, shape=shape, decode=decode)
    label = "decoding" if decode else "reading headers"
    with counting(label, len(paths)) as show, closing(in_order(look, paths)) as found:
        for done, fault in enumerate(found, 1):
            yield fault
            show(done)


def _fault(path: Path, size: int, shape: tuple[int, int] | None, decode: bool) -> Fault | None:
    """Return what is wrong with an image."""
    try:
        found = _shape(path, decode)
    except ValueError as error:
        return Fault("unreadable", str(error))
    pixels = f"{path} has {found[0]} x {found[1]} pixels"
    if shape is not None:
        told = f"{pixels}, published are {shape[0]} x {shape[1]}."
        return None if found == shape else Fault("wrong size", told)
    return None if min(found) >= size else Fault("small", f"{pixels}: it is enlarged to {size} along the shorter side.")


def _shape(path: Path, decode: bool) -> tuple[int, int]:
    """Return the rows and columns of an image, or raise a ``ValueError`` that names it."""
    if decode:
        read_image(path)
    try:
        with quiet, Image.open(path) as image:
            return image.height, image.width
    except Exception:  # what decoders raise of damaged data is not foreseeable; reading it has words for that
        read_image(path)
        raise
