"""The cells of a feature map around coordinates (Chen et al., LIIF, CVPR 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_TIE = 1e-6  # of coordinates in [-1, 1]: a coordinate on a border belongs to the cell after it
_SMALLEST_AREA = 1e-9


class Cells(NamedTuple):
    """The cells that are read at coordinates: the four around each, or the nearest one.

    Attributes:
        indices: ``(..., A, N)``, indices of the cells, last axis of the map fastest; ``A`` is 4, or 1 for the nearest.
        offset: ``(..., A, N, 2)``, the coordinate relative to the centre of the cell, in half cells: neighbouring centres are 2
            apart.
        weight: ``(..., A, N)``, the share of the cell in the blended value; the sum over ``A`` is 1.
    """

    indices: Tensor
    offset: Tensor
    weight: Tensor


def cells_around(positions: Tensor, sizes: Sequence[int], ensemble: bool = True) -> Cells:
    """Return the cells of a map around positions, with the weights of the local ensemble (LIIF, section 3.2).

    The weight of a cell is proportional to the area of the rectangle between the position and the centre of the diagonally
    opposite cell. Beyond the centres of the outermost cells, cells coincide, and so do their values.

    Args:
        positions: ``(..., N, 2)`` in [-1, 1], rows before columns.
        sizes: Rows and columns of the map.
        ensemble: Whether to return the four cells around each position rather than the nearest one.

    Example:
        >>> cells_around(torch.tensor([[-0.25, -0.5]]), (2, 2)).weight.flatten().tolist()
        [0.75, 0.0, 0.25, 0.0]
    """
    axes = [_along_axis(positions[..., axis], size, ensemble) for axis, size in enumerate(sizes)]
    (rows, row_offsets), (columns, column_offsets) = axes
    sides = range(len(rows))
    pairs = [(row, column) for row in sides for column in sides]
    index = torch.stack([rows[row] * sizes[1] + columns[column] for row, column in pairs], dim=-2)
    offset = torch.stack(
        [torch.stack((row_offsets[row], column_offsets[column]), dim=-1) for row, column in pairs], dim=-3
    )
    if not ensemble:
        return Cells(index, offset, torch.ones_like(offset[..., 0]))
    opposite = offset.flip(-3)  # the order of the pairs is symmetric
    areas = opposite.prod(-1).abs() + _SMALLEST_AREA
    return Cells(index, offset, areas / areas.sum(-2, keepdim=True))


def _along_axis(positions: Tensor, size: int, ensemble: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Return the indices of the cells along an axis, and the offsets from their centres in half cells."""
    shifts = (-1, 1) if ensemble else (0,)
    indices = [
        ((positions + shift / size + (_TIE if ensemble else 0) + 1) * (size / 2)).floor().long().clamp(0, size - 1)
        for shift in shifts
    ]
    return indices, [(positions + 1) * size - (2 * index + 1) for index in indices]
