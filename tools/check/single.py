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
        kind: ``unreadable``, ``wrong size`` if the size differs from the published one, ``too small`` for training, or
            ``small`` if the image is smaller than the training size and enlarged.
        detail: Description that names the file.
    """

    kind: Literal["unreadable", "wrong size", "too small", "small"]
    detail: str


def faults(
    paths: Sequence[Path],
    required: Sequence[int],
    size: int,
    shape: tuple[int, int] | None,
    *,
    decode: bool = True,
) -> Iterator[Fault | None]:
    """Yield the problem of every image, in order; None if there is none.

    Args:
        paths: The images.
        required: Pixels that the shorter side of each image must have at least.
        size: Pixels along each side of training images; smaller images are enlarged.
        shape: Published rows and columns; None if they vary.
        decode: Whether to decode images, or read only their headers.
    """
    check = partial(_fault, size=size, shape=shape, decode=decode)
    label = "decoding" if decode else "reading headers"
    with counting(label, len(paths)) as show, closing(in_order(check, zip(paths, required, strict=True))) as results:
        for done, fault in enumerate(results, 1):
            yield fault
            show(done)


def _fault(item: tuple[Path, int], size: int, shape: tuple[int, int] | None, decode: bool) -> Fault | None:
    """Return the problem of an image, given with the pixels that its shorter side must have; None if there is none."""
    path, required = item
    try:
        actual = _shape(path, decode)
    except ValueError as error:
        return Fault("unreadable", str(error))
    pixels = f"{path} has {actual[0]} x {actual[1]} pixels"
    if shape not in (None, actual):
        return Fault("wrong size", f"{pixels}, expected {shape[0]} x {shape[1]}.")
    if min(actual) < required:
        return Fault("too small", f"{pixels}, but training takes squares of {required}.")
    if shape is not None:
        return None
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
