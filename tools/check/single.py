"""Check single images in parallel."""

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
    """A problem of a single image.

    Attributes:
        kind: ``unreadable``, ``wrong size`` if the size differs from the published one, or ``small`` if the image is smaller
            than the training size.
        detail: Description that names the file.
    """

    kind: Literal["unreadable", "wrong size", "small"]
    detail: str


def faults(
    paths: Sequence[Path], size: int, shape: tuple[int, int] | None, *, decode: bool = True
) -> Iterator[Fault | None]:
    """Yield the problem of every image, in order; None if there is none.

    Args:
        paths: The images.
        size: Pixels along each side of training images.
        shape: Published rows and columns; None if they vary.
        decode: Whether to decode images, or read only their headers.
    """
    check = partial(_fault, size=size, shape=shape, decode=decode)
    label = "decoding" if decode else "reading headers"
    with counting(label, len(paths)) as show, closing(in_order(check, paths)) as results:
        for done, fault in enumerate(results, 1):
            yield fault
            show(done)


def _fault(path: Path, size: int, shape: tuple[int, int] | None, decode: bool) -> Fault | None:
    """Return the problem of an image; None if there is none."""
    try:
        actual = _shape(path, decode)
    except ValueError as error:
        return Fault("unreadable", str(error))
    pixels = f"{path} has {actual[0]} x {actual[1]} pixels"
    if shape is not None:
        return None if actual == shape else Fault("wrong size", f"{pixels}, expected {shape[0]} x {shape[1]}.")
    return None if min(actual) >= size else Fault("small", f"{pixels}: its shorter side is enlarged to {size}.")


def _shape(path: Path, decode: bool) -> tuple[int, int]:
    """Return the rows and columns of an image, or raise a ``ValueError`` that names the file."""
    if decode:
        read_image(path)
    try:
        with quiet, Image.open(path) as image:
            return image.height, image.width
    except Exception:  # decoders raise arbitrary exceptions for corrupt data; read_image turns them into a message
        read_image(path)
        raise
