"""The cells of a feature map around coordinates (Chen et al., LIIF, CVPR 2021, section 3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

_TIE = 1e-6  # of coordinates in [-1, 1]: a coordinate on a border belongs to the cell after it
_SMALLEST_DISTANCE = 1e-9  # in half cells: where both cells are the same one, at whose centre a position is


class Cells(NamedTuple):
    """The cells that are read at coordinates: the two along each axis around each, or the nearest one.

    Attributes:
        indices: ``(..., A, N)``, indices of the cells, last axis of the map fastest; ``A`` is ``2^D``, or 1 for the nearest.
        offset: ``(..., A, N, D)``, the coordinate relative to the centre of the cell, in half cells: neighbouring centres are 2
            apart.
        weight: ``(..., A, N)``, the share of the cell in the blended value; the sum over ``A`` is 1.
    """

    indices: Tensor
    offset: Tensor
    weight: Tensor


def cells_around(positions: Tensor, sizes: Sequence[int], ensemble: bool = True) -> Cells:
    """Return the cells of a map around positions, with the weights of the local ensemble (LIIF, section 3).

    The weight of a cell is proportional to the area (in three dimensions, the volume) between the position and the centre of
    the diagonally opposite cell, as in linear interpolation. Beyond the centres of the outermost cells, cells coincide, and so
    do their values.

    Reference: the released code adds 1e-9 to the areas; at the centres of the last row, where coordinates are exact (2^n rows),
    all areas are zero and all weights 1/4, whatever the column. Here weights are products of shares along each axis, which
    differ only there and in the last column. Without the ensemble, a position on the border of two cells belongs to the cell
    after it, in the released code to the one with an even index.

    Args:
        positions: ``(..., N, D)`` in [-1, 1], in the order of the axes of the map: rows before columns.
        sizes: Cells along each axis of the map.
        ensemble: Whether to return the cells around each position rather than the nearest one.

    Example:
        >>> cells_around(torch.tensor([[-0.25, 0.0]]), (2, 2)).weight.flatten().tolist()
        [0.375, 0.375, 0.125, 0.125]
    """
    axes = [_along_axis(positions[..., axis], size, ensemble) for axis, size in enumerate(sizes)]
    indices, offsets, weights = [], [], []
    for corner in itertools.product(range(2 if ensemble else 1), repeat=len(sizes)):
        chosen = list(zip(corner, axes, sizes, strict=True))
        start = torch.zeros_like(axes[0].indices[0])
        indices.append(reduce(lambda index, axis: index * axis[2] + axis[1].indices[axis[0]], chosen, start))
        offsets.append(torch.stack([axis.offsets[side] for side, axis, _ in chosen], dim=-1))
        weights.append(reduce(torch.mul, [axis.shares[side] for side, axis, _ in chosen]))
    return Cells(torch.stack(indices, dim=-2), torch.stack(offsets, dim=-3), torch.stack(weights, dim=-2))


class _Neighbours(NamedTuple):
    """The cells along an axis: their indices, the offsets from their centres in half cells, and their shares."""

    indices: list[Tensor]
    offsets: list[Tensor]
    shares: list[Tensor]


def _along_axis(positions: Tensor, size: int, ensemble: bool) -> _Neighbours:
    """Return the cells along an axis around positions: two, or the nearest one."""
    shifts = (-1, 1) if ensemble else (0,)
    indices = [
        ((positions + shift / size + _TIE + 1) * (size / 2)).floor().long().clamp(0, size - 1) for shift in shifts
    ]
    offsets = [(positions + 1) * size - (2 * index + 1) for index in indices]
    if not ensemble:
        return _Neighbours(indices, offsets, [torch.ones_like(positions)])
    before, after = (offset.abs() + _SMALLEST_DISTANCE for offset in offsets)
    return _Neighbours(indices, offsets, [after / (before + after), before / (before + after)])
