"""Overlapping tiles that cover a signal, and weights that blend them without seams."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

MAX_PIXELS = 1 << 22  # of an image that is encoded whole, which takes about 4 GB
TILE_SIZE = 512  # pixels along each side of a tile for a model of any size
_SHARE = 16  # neighbours of `split` overlap by one part in so many

Box = tuple[tuple[int, int], ...]


def whole(shape: Sequence[int]) -> Box:
    """Return the box of a complete signal.

    Example:
        >>> whole((480, 640))
        ((0, 480), (0, 640))
    """
    return tuple((0, extent) for extent in shape)


def boxes(shape: Sequence[int], size: int, overlap: int) -> list[Box]:
    """Return evenly spaced boxes of one size that cover a signal; neighbours overlap by at least ``overlap``.

    Args:
        shape: Shape of the signal.
        size: Size of a box along every axis; shorter axes have one box of their own size.
        overlap: Minimum number of samples that neighbours share, in ``[0, size)``.

    Returns:
        Start and stop of every box along every axis, last axis fastest.

    Raises:
        ValueError: If ``size`` or ``overlap`` is out of range.

    Example:
        >>> boxes((10, 4), size=6, overlap=2)
        [((0, 6), (0, 4)), ((4, 10), (0, 4))]
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"size is {size}, overlap {overlap}: size must be at least 1, overlap in [0, size).")
    return list(itertools.product(*(_spans(extent, size, overlap) for extent in shape)))


def cover(shape: Sequence[int], size: int) -> list[Box]:
    """Return the tiles of an image: `boxes` that overlap by a quarter of their size.

    Example:
        >>> len(cover((400, 600), 64))
        104
    """
    return boxes(shape, size, size // 4)


def split(shape: Sequence[int], largest: int, multiple: Sequence[int]) -> list[Box]:
    """Return boxes of one size that cover a signal, each of at most ``largest`` samples; one if the signal has no more.

    Neighbours overlap by a sixteenth of their size. Sizes are multiples of ``multiple`` where an axis is divided.

    Args:
        shape: Shape of the signal.
        largest: Maximum number of samples of a box.
        multiple: Divisor of the size of a box along every axis, such as the size of a patch.

    Returns:
        As `boxes`.

    Raises:
        ValueError: If a box of the smallest size has more than ``largest`` samples.

    Example:
        >>> split((100, 100), 10000, (8, 8)), split((100, 300), 16000, (8, 8))
        ([((0, 100), (0, 100))], [((0, 100), (0, 160)), ((0, 100), (140, 300))])
    """
    counts, smallest = [1] * len(shape), [min(pair) for pair in zip(shape, multiple, strict=True)]
    if math.prod(smallest) > largest:
        raise ValueError(
            f"A tile of {smallest} samples, the smallest, exceeds the limit of {largest:,}: raise the limit."
        )
    while math.prod(sizes := [_divided(*axis) for axis in zip(shape, counts, multiple, strict=True)]) > largest:
        divisible = [axis for axis, size in enumerate(sizes) if size > smallest[axis]]
        counts[max(divisible, key=lambda axis: sizes[axis])] += 1
    spans = [_spans(extent, size, size // _SHARE) for extent, size in zip(shape, sizes, strict=True)]
    return list(itertools.product(*spans))


def partition(shape: Sequence[int], largest: int) -> list[Box]:
    """Return disjoint boxes that cover a signal, about as large along every axis, each of at most ``largest`` samples.

    Args:
        shape: Shape of the signal.
        largest: Maximum number of samples of a box, at least 1.

    Example:
        >>> partition((4, 6), 6)
        [((0, 2), (0, 3)), ((0, 2), (3, 6)), ((2, 4), (0, 3)), ((2, 4), (3, 6))]
    """
    counts = [1] * len(shape)
    while (
        math.prod(sizes := [math.ceil(extent / count) for extent, count in zip(shape, counts, strict=True)]) > largest
    ):
        counts[max(range(len(shape)), key=lambda axis: sizes[axis])] += 1
    spans = [
        [(extent * part // count, extent * (part + 1) // count) for part in range(count)]
        for extent, count in zip(shape, counts, strict=True)
    ]
    return list(itertools.product(*spans))


def cut_out(signal: Tensor, box: Box) -> Tensor:
    """Return the part of a signal ``(C, *shape)`` in a box, without resizing."""
    return signal[(slice(None), *(slice(*span) for span in box))]


def bands(shape: Sequence[int], largest: int) -> Iterator[Box]:
    """Yield disjoint boxes that cover a signal in the order of its samples (last axis fastest).

    Args:
        shape: Shape of the signal.
        largest: Maximum number of samples of a box, at least 1.

    Example:
        >>> list(bands((3, 4), 8)), list(bands((2, 3), 2))[:2]
        ([((0, 2), (0, 4)), ((2, 3), (0, 4))], [((0, 1), (0, 2)), ((0, 1), (2, 3))])
    """
    first, *rest = shape
    row = math.prod(rest)
    if row > largest:
        for index in range(first):
            for box in bands(rest, largest):
                yield ((index, index + 1), *box)
        return
    step = largest // max(1, row)
    for start in range(0, first, step):
        yield ((start, min(start + step, first)), *whole(rest))


def _divided(extent: int, count: int, multiple: int) -> int:
    """Return the size of ``count`` boxes that cover an axis and overlap by a sixteenth, rounded up to a multiple."""
    if count == 1:
        return extent
    size = math.ceil(_SHARE * extent / ((_SHARE - 1) * count + 1))
    return min(extent, math.ceil(size / multiple) * multiple)


def _spans(extent: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Return the spans of `boxes` along one axis."""
    if extent <= size:
        return [(0, extent)]
    steps = -(-(extent - size) // (size - overlap))  # rounded up
    starts = [round(step * (extent - size) / steps) for step in range(steps + 1)]
    return [(start, start + size) for start in starts]


def blend_weight(places: Tensor, span: tuple[int, int], extent: int, overlap: float) -> Tensor:
    """Return the weight of a box along one axis: 1 inside, with a smooth transition to 0 at ends within the signal.

    Args:
        places: ``(n,)`` positions within the span, in samples of the signal.
        span: Start and stop of the box.
        extent: Size of the signal.
        overlap: Width of the transition in samples.

    Returns:
        ``(n,)`` positive weights, so that a weighted mean is defined where only one box lies.

    Example:
        >>> blend_weight(torch.tensor([0.0, 4.0, 5.0, 6.0]), (0, 6), 10, overlap=2).round(decimals=2).tolist()
        [1.0, 1.0, 0.5, 0.0]
    """
    start, stop = span
    from_start = (places - start) / overlap if start > 0 and overlap > 0 else torch.ones_like(places)
    from_stop = (stop - places) / overlap if stop < extent and overlap > 0 else torch.ones_like(places)
    ramp = torch.minimum(from_start, from_stop).clamp(0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).clamp(min=1e-6)
