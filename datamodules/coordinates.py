"""Coordinates of regular samples: cell centres, noise within a cell, random subsets, precision. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def grid(
    shape: Sequence[int],
    low: float = -1.0,
    high: float = 1.0,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Return the centres of the cells that divide ``[low, high]`` along every axis.

    Args:
        shape: Cells along each axis, in array order (rows before columns for a picture).
        low: Lower edge of the first cell.
        high: Upper edge of the last cell.
        device: Where the coordinates are wanted.

    Returns:
        ``(N, D)`` float32, ``N`` the product and ``D`` the length of ``shape``, last axis fastest.

    Example:
        >>> grid((2, 4))[5].tolist()
        [0.5, -0.25]
    """
    axes = [low + (high - low) * (torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n for n in shape]
    return torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).reshape(-1, len(shape)).float()


def exact(numbers: Tensor) -> Tensor:
    """Return numbers in float32, or in float64 if that is what they are; bfloat16 and float16 are converted.

    Example:
        >>> [exact(torch.zeros(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def cell_size(shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> tuple[float, ...]:
    """Return the edge lengths of one cell of `grid`.

    Example:
        >>> cell_size((2, 4))
        (1.0, 0.5)
    """
    return tuple((high - low) / n for n in shape)


def jitter(coords: Tensor, cell: Sequence[float], generator: torch.Generator) -> Tensor:
    """Move every coordinate uniformly within its cell (paper section 4, coordinate noise).

    Reference: the released code scales both axes by the first one's cell; here each axis has its own.

    Args:
        coords: ``(..., D)`` cell centres.
        cell: Edge lengths of a cell, one per axis.
        generator: Where the draw comes from; on the device of ``coords``.

    Returns:
        Coordinates of the same shape, at most half a cell away.
    """
    noise = torch.rand(coords.shape, generator=generator, device=coords.device, dtype=coords.dtype) - 0.5
    return coords + noise * coords.new_tensor(cell)


def subset(total: int, wanted: float | int, generator: torch.Generator) -> Tensor:
    """Draw a random subset of ``range(total)``.

    Args:
        total: How many there are.
        wanted: A ratio in (0, 1] if a float, a count of at least 1 if an integer; more than all means all.
        generator: Where the draw comes from; the indices lie on its device.

    Returns:
        Distinct indices in ascending order.

    Example:
        >>> subset(4, 1.0, torch.Generator()).tolist()
        [0, 1, 2, 3]
    """
    count = round(total * wanted) if isinstance(wanted, float) else wanted
    count = max(1, min(total, count))
    order = torch.randperm(total, generator=generator, device=generator.device)
    return order[:count].sort().values
