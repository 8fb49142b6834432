"""Neighbourhoods on a grid of tokens."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional


def neighbourhoods(tokens: Tensor, size: int) -> Tensor:
    """Return every token with its neighbours, zero beyond the grid: ``(B, *grid, size ** D * E)``, last axis fastest.

    Args:
        tokens: ``(B, *grid, E)``.
        size: Tokens along each axis of a neighbourhood, odd.

    Example:
        >>> neighbourhoods(torch.tensor([[[1.0], [2.0], [3.0]]]), 3)[0].tolist()
        [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 0.0]]
    """
    grid, reach = tokens.shape[1:-1], size // 2
    padded = functional.pad(tokens, (0, 0) + (reach, reach) * len(grid))
    windows = []
    for offsets in itertools.product(range(size), repeat=len(grid)):
        window = padded
        for axis, (offset, count) in enumerate(zip(offsets, grid, strict=True), start=1):
            window = window.narrow(axis, offset, count)
        windows.append(window)
    return torch.cat(windows, dim=-1)
