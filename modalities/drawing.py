"""Grids of labelled images, and media types for loggers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_MARGIN = 8  # pixels
_LABEL = 18  # height of a label in pixels
_COMPACT = (160, 256)  # minimum and maximum width of a compact image in pixels, which leaves room for its label

LabelledImage = tuple[str, Image.Image]


class Waveform(NamedTuple):
    """Audio for figures and loggers.

    Attributes:
        label: Title of the figure.
        values: ``(C, n)`` in [-1, 1].
        sample_rate: Sampling rate in Hz.
    """

    label: str
    values: Tensor
    sample_rate: int


class Animation(NamedTuple):
    """An animation for loggers.

    Attributes:
        gif: Content of a GIF file.
    """

    gif: bytes


class Model3D(NamedTuple):
    """A triangle mesh for loggers.

    Attributes:
        obj: Content of an OBJ file.
    """

    obj: str


def image_grid(rows: Sequence[Sequence[LabelledImage]]) -> Image.Image:
    """Return a figure with labelled images in rows and columns; smaller images have white space at their right and below."""
    width = max(image.width for row in rows for _, image in row)
    heights = [max(image.height for _, image in row) for row in rows]
    size = (len(rows[0]) * (width + _MARGIN) + _MARGIN, sum(heights) + len(rows) * (_MARGIN + _LABEL) + _MARGIN)
    grid = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(13)
    y = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, (label, image) in enumerate(row):
            x = _MARGIN + column * (width + _MARGIN)
            draw.text((x, y), fitted(label, width, font.getlength), fill="black", font=font)
            grid.paste(image, (x, y + _LABEL))
        y += height + _MARGIN + _LABEL
    return grid


def fitted(label: str, width: float, length: Callable[[str], float]) -> str:
    """Return a label, truncated with an ellipsis if it is wider than ``width``.

    Args:
        label: Text of the label.
        width: Available width.
        length: Function that returns the width of a text.

    Example:
        >>> fitted("a-long-name", 8, len), fitted("name", 8, len)
        ('a-lon...', 'name')
    """
    if length(label) <= width:
        return label
    stop = next((end for end in range(len(label), 0, -1) if length(f"{label[:end]}...") <= width), 0)
    return f"{label[:stop]}..."


def enlarged(image: Image.Image, least: int) -> Image.Image:
    """Return an image enlarged by the smallest integer factor such that its longer side has at least ``least`` pixels.

    Example:
        >>> enlarged(Image.new("RGB", (48, 24)), 128).size, enlarged(Image.new("RGB", (128, 128)), 128).size
        ((144, 72), (128, 128))
    """
    scale = math.ceil(least / max(image.size))
    return image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)


def compacted(image: Image.Image) -> Image.Image:
    """Return an image resized to a width of 160 to 256 pixels: enlarged by an integer factor, or reduced.

    Example:
        >>> [compacted(Image.new("RGB", (width, 64))).size for width in (32, 178, 512)]
        [(160, 320), (178, 64), (256, 32)]
    """
    min_width, max_width = _COMPACT
    scale = math.ceil(min_width / image.width)
    if scale > 1:
        return image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    if image.width <= max_width:
        return image
    return image.resize((max_width, max(1, round(image.height * max_width / image.width))), Image.Resampling.LANCZOS)
