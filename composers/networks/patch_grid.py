"""A signal as a grid of patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def patch_sizes(patch_size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return the samples of a patch along each axis; an integer is repeated for all axes.

    Raises:
        ValueError: If a size is not positive, or their number is not that of the axes.
    """
    sizes = (patch_size,) * axes if isinstance(patch_size, int) else tuple(patch_size)
    if len(sizes) != axes or min(sizes, default=1) < 1:
        raise ValueError(
            f"patch_size is {patch_size} and the signal has {axes} axes: give one number of at least 1, or one per axis."
        )
    return sizes


def grid_shape(shape: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the number of patches along each axis that cover ``shape`` samples; the last may be incomplete.

    Example:
        >>> grid_shape((64, 60), (8, 8)), grid_shape((201,), (200,))
        ((8, 8), (2,))
    """
    return tuple(math.ceil(size / patch) for size, patch in zip(shape, patch_size, strict=True))


def cut(signal: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Return the patches ``(B, *grid, P)``, flattened channel by channel, of a signal ``(B, C, *shape)`` of whole patches."""
    axes = range(len(patch_size))
    split = [part for axis, patch in enumerate(patch_size) for part in (signal.shape[2 + axis] // patch, patch)]
    blocks = signal.reshape(*signal.shape[:2], *split)  # (B, C, n_1, p, n_2, p, ...)
    order = [0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes)]
    return blocks.permute(order).flatten(1 + len(axes))


def join(patches: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Return the signal ``(B, C, *shape)`` that `cut` divides into patches ``(B, *grid, P)``."""
    axes = len(patch_size)
    blocks = torch.unflatten(patches, -1, (-1, *patch_size))  # (B, n_1, n_2, ..., C, p, p, ...)
    order = [0, 1 + axes, *(part for axis in range(axes) for part in (1 + axis, 2 + axes + axis))]
    signal = blocks.permute(order)
    for axis in range(axes):
        signal = signal.flatten(2 + axis, 3 + axis)
    return signal


def extend(signal: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Return a signal ``(B, C, *shape)`` extended by its last values to whole patches along each axis."""
    for axis, patch in enumerate(patch_size, start=2):
        size = signal.shape[axis]
        if size % patch:
            places = torch.arange(math.ceil(size / patch) * patch, device=signal.device).clamp(max=size - 1)
            signal = signal.index_select(axis, places)
    return signal


def crop(signal: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Return a signal ``(B, C, *shape)`` without the incomplete patch at the end of each axis that has complete ones."""
    for axis, patch in enumerate(patch_size, start=2):
        if (size := signal.shape[axis]) >= patch:
            signal = signal.narrow(axis, 0, size - size % patch)
    return signal
