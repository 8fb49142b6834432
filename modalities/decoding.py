"""Evaluate the field of one instance, or its gradients, in chunks, so that memory is bounded by a setting."""

from __future__ import annotations

import torch
from torch import Tensor

from composers.base import Composer
from composers.rendering import Reconstruction

_MAX_CHUNK = {"cpu": 1 << 13}  # points; on CPUs, activations of larger chunks leave the cache: 2^16 take twice as long
_GRAPH = 16  # memory of a point whose activations are kept for a gradient, relative to one that is only evaluated


def chunk_of_points(composer: Composer, max_memory: float) -> int:
    """Return the number of points to evaluate at a time within ``max_memory`` MB."""
    points = int(max_memory * 1e6 / (4 * composer.network.floats_per_coord))
    return min(points, fastest_chunk(composer.device))


def fastest_chunk(device: torch.device) -> int:
    """Return the number of points of all instances that a device evaluates fastest at a time, with enough memory."""
    return _MAX_CHUNK.get(device.type, 1 << 20)


@torch.no_grad()
def values_at(composer: Composer, reconstruction: Reconstruction, coords: Tensor, max_memory: float = 500.0) -> Tensor:
    """Return the values ``(N, C)`` of one instance at ``coords (N, D)``, on the CPU.

    Args:
        composer: The model.
        reconstruction: Reconstruction of one instance.
        coords: Coordinates on any device.
        max_memory: Memory in MB for the evaluation, besides the model and the result.
    """
    chunks = coords.split(max(1, chunk_of_points(composer, max_memory)))
    return torch.cat([reconstruction.render(chunk.to(composer.device)).values[0].float().cpu() for chunk in chunks])


@torch.no_grad()
def gradients_at(
    composer: Composer, reconstruction: Reconstruction, coords: Tensor, max_memory: float = 500.0
) -> Tensor:
    """Return the gradients ``(N, D)`` of the values of one instance, summed over channels, at ``coords (N, D)``, on the CPU.

    Args:
        composer: The model.
        reconstruction: Reconstruction of one instance, made outside of inference mode.
        coords: Coordinates on any device.
        max_memory: Memory in MB for the evaluation, besides the model and the result.
    """
    chunks = coords.split(max(1, chunk_of_points(composer, max_memory / _GRAPH)))
    return torch.cat([reconstruction.gradients(chunk.to(composer.device))[0].float().cpu() for chunk in chunks])
