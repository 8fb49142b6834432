"""Values of one instance wherever they are wanted, a part at a time, so that memory is bounded by a setting."""

from __future__ import annotations

import torch
from torch import Tensor

from composers.base import Composer
from composers.networks import Modulations

_LARGEST_CHUNK = {"cpu": 1 << 16}  # points at a time; more would not be faster


def chunk_of_points(composer: Composer, max_memory: float) -> int:
    """Return how many points of a field can be evaluated at a time within a memory in MB."""
    points = int(max_memory * 1e6 / (4 * composer.network.floats_per_coord))
    return min(points, _LARGEST_CHUNK.get(composer.device.type, 1 << 20))


@torch.no_grad()
def values_at(composer: Composer, modulations: Modulations, coords: Tensor, max_memory: float = 500.0) -> Tensor:
    """Return values ``(N, C)`` on the CPU of one instance at points ``(N, D)``.

    Args:
        composer: The model.
        modulations: Of one instance, on the device of the model.
        coords: On any device.
        max_memory: MB that this may take above the model and the result.
    """
    parts = coords.split(max(1, chunk_of_points(composer, max_memory)))
    return torch.cat([composer.render(modulations, part.to(composer.device))[0].float().cpu() for part in parts])
