"""Linear interpolation of maps in two and three dimensions, differentiable as often as needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from composers.networks.cells import cells_around
from datamodules.domain import exact


def interpolate(maps: Tensor, positions: Tensor) -> Tensor:
    """Return the values of maps at positions, interpolated linearly between the centres of cells.

    Beyond the centres of the outermost cells, values are those of the nearest cell. Gradients of gradients, which PyTorch's own
    interpolation lacks and which inner loops need, are computed from the same sum over cells.

    Args:
        maps: ``(B, E, H, W)`` or ``(B, E, X, Y, Z)``.
        positions: ``(B, N, D)`` in [-1, 1], in the order of the axes of the maps.

    Returns:
        ``(B, N, E)``, in float32 at least.

    Example:
        >>> interpolate(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[0.0, 0.0], [0.0, 0.25]]])).flatten().tolist()
        [0.5, 0.75]
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps = exact(maps)
        positions = positions.to(maps)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return _sampled(maps, positions)
        values: Tensor = _Interpolation.apply(maps, positions)  # type: ignore[no-untyped-call]
        return values


def gathered(maps: Tensor, positions: Tensor) -> Tensor:
    """Return the same as `interpolate`, as a sum over the cells around each position; slower, and differentiable twice."""
    cells = cells_around(positions, maps.shape[2:])  # (B, A, N)
    rows = maps.flatten(2).mT  # (B, cells, E)
    index = cells.indices.flatten(1).unsqueeze(-1).expand(-1, -1, rows.shape[-1])
    read: Tensor = rows.gather(1, index).unflatten(1, cells.indices.shape[1:])
    return (read * cells.weight.unsqueeze(-1)).sum(1)


def _sampled(maps: Tensor, positions: Tensor) -> Tensor:
    """Return the interpolation by PyTorch, whose positions start with the last axis."""
    grid = positions.flip(-1)[(slice(None), slice(None), *[None] * (positions.shape[-1] - 1))]
    sampled = functional.grid_sample(maps, grid, align_corners=False, padding_mode="border")
    return sampled.flatten(2).mT


class _Interpolation(torch.autograd.Function):
    """PyTorch's interpolation, whose backward pass is differentiable where a graph is asked for."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, positions: Tensor) -> Tensor:
        """Return the interpolated values."""
        ctx.save_for_backward(maps, positions)
        return _sampled(maps, positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of maps and positions."""
        maps, positions = ctx.saved_tensors
        again, needed = torch.is_grad_enabled(), ctx.needs_input_grad
        with torch.enable_grad():
            if not again:
                maps, positions = maps.detach().requires_grad_(needed[0]), positions.detach().requires_grad_(needed[1])
            values = gathered(maps, positions) if again else _sampled(maps, positions)
            inputs = [tensor for tensor, need in zip((maps, positions), needed, strict=True) if need]
            gradients = iter(torch.autograd.grad(values, inputs, gradient, create_graph=again))
        return next(gradients) if needed[0] else None, next(gradients) if needed[1] else None
