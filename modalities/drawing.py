"""Labelled images in rows and columns, and what loggers show besides images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_MARGIN = 8
_LABEL = 18
_COMPACT = (160, 256)  # pixels of the width of a cell that has many beside it, and room for its label

LabelledImage = tuple[str, Image.Image]


class Waveform(NamedTuple):
    """Audio to be drawn or heard.

    Attributes:
        label: What stands above it.
        values: ``(C, n)`` in [-1, 1].
        sample_rate: Samples per second.
    """

    label: str
    values: Tensor
    sample_rate: int


class Animation(NamedTuple):
    """A moving image.

    Attributes:
        gif: The content of a GIF.
    """

    gif: bytes


def image_grid(rows: Sequence[Sequence[LabelledImage]]) -> Image.Image:
    """Return labelled images of one size in rows and columns."""
    width, height = rows[0][0][1].size
    step_x, step_y = width + _MARGIN, height + _MARGIN + _LABEL
    page = Image.new("RGB", (len(rows[0]) * step_x + _MARGIN, len(rows) * step_y + _MARGIN), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for row, cells in enumerate(rows):
        for column, (label, image) in enumerate(cells):
            x, y = _MARGIN + column * step_x, _MARGIN + row * step_y
            draw.text((x, y), fitted(label, width, font.getlength), fill="black", font=font)
            page.paste(image, (x, y + _LABEL))
    return page


def fitted(label: str, width: float, length: Callable[[str], float]) -> str:
    """Return a label that has room: the start of one that is too long, and three dots.

    Args:
        label: What is to be written.
        width: Of the room.
        length: Returns the width of a text.

    Example:
        >>> fitted("a-long-name", 8, len), fitted("name", 8, len)
        ('a-lon...', 'name')
    """
    if length(label) <= width:
        return label
    kept = next((end for end in range(len(label), 0, -1) if length(f"{label[:end]}...") <= width), 0)
    return f"{label[:kept]}..."


def enlarged(image: Image.Image, least: int) -> Image.Image:
    """Return an image whose longer side has at least so many pixels: a small one is enlarged by a whole number.

    Example:
        >>> enlarged(Image.new("RGB", (48, 24)), 128).size, enlarged(Image.new("RGB", (128, 128)), 128).size
        ((144, 72), (128, 128))
    """
    scale = math.ceil(least / max(image.size))
    return image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)


def compacted(image: Image.Image) -> Image.Image:
    """Return an image of 160 to 256 columns: a small one enlarged by a whole number, a large one reduced.

    Example:
        >>> [compacted(Image.new("RGB", (width, 64))).size for width in (32, 178, 512)]
        [(160, 320), (178, 64), (256, 32)]
    """
    least, most = _COMPACT
    scale = math.ceil(least / image.width)
    if scale > 1:
        return image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    if image.width <= most:
        return image
    return image.resize((most, max(1, round(image.height * most / image.width))), Image.Resampling.LANCZOS)
