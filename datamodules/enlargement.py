"""Tiles of an image to enlarge, with the context that an encoder reads, so that the results have no seams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.domain import Domain
from datamodules.tiles import Box, bands, partition

MAX_PIXELS = 1 << 17  # of a tile without its margin
MARGIN = 40  # pixels around a tile, for models that do not state their context
_MAX_QUERIES = 1 << 21  # pixels of the result of a tile


class Enlargement(NamedTuple):
    """A tile of an image to enlarge.

    Attributes:
        observed: Box of the pixels that the model observes, with a margin around those that it enlarges.
        result: Box of the pixels of the result. These boxes are disjoint and cover the result.
    """

    observed: Box
    result: Box


def enlargements(
    shape: Sequence[int], size: Sequence[int], max_pixels: int = MAX_PIXELS, margin: int = MARGIN
) -> list[Enlargement]:
    """Divide an image into tiles for super-resolution.

    Args:
        shape: Rows and columns of the image.
        size: Rows and columns of the result.
        max_pixels: Pixels of the image per tile, without the margin; fewer at large scales, to bound the memory.
        margin: Pixels of the image that a tile observes on every side in addition, where the image has them.

    Example:
        >>> enlargements((4, 6), (8, 12), max_pixels=12, margin=1)[1]
        Enlargement(observed=((0, 4), (2, 6)), result=((0, 8), (6, 12)))
    """
    factor = math.prod(size) / math.prod(shape)
    tiles = []
    for box in partition(shape, max(1, min(max_pixels, int(_MAX_QUERIES / factor)))):
        observed, result = [], []
        for (start, stop), extent, target in zip(box, shape, size, strict=True):
            observed.append((max(0, start - margin), min(extent, stop + margin)))
            first, last = (math.ceil(Fraction(end * target, extent) - Fraction(1, 2)) for end in (start, stop))
            result.append((first, last))
        for part in bands([last - first for first, last in result], _MAX_QUERIES):
            spans = ((first + start, first + stop) for (first, _), (start, stop) in zip(result, part, strict=True))
            tiles.append(Enlargement(tuple(observed), tuple(spans)))
    return [tile for tile in tiles if all(first < last for first, last in tile.result)]


def enlarged_coords(domain: Domain, tile: Enlargement, shape: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return the coordinates ``(N, D)`` of the result of a tile, relative to what it observes.

    Args:
        domain: Domain of the model.
        tile: The tile.
        shape: Rows and columns of the image.
        size: Rows and columns of the result.
    """
    steps = [extent / target for extent, target in zip(shape, size, strict=True)]
    places = [
        (torch.arange(first, last, dtype=torch.float64) + 0.5) * step - start
        for (first, last), step, (start, _) in zip(tile.result, steps, tile.observed, strict=True)
    ]
    return domain.at(places, [stop - start for start, stop in tile.observed], steps)
