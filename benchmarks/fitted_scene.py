"""A scene with content for benchmarks of rendering: a generated chair, and networks that are fitted to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from composers.networks import CoordinateMLP, Field
from datamodules.shapes.families import generate
from datamodules.shapes.parts import Solid

_PEAK = 50.0  # density inside, before the activation; minus this far outside
_WIDTH = 0.05  # distance from the surface at which the density reaches its extremes
_EXTENT = 3.2  # half of the cube that holds all samples of the views


def chair() -> Solid:
    """Return the chair, within distance 1 of the origin."""
    return generate("chairs", 0, "train", 3)


def solid_field(solid: Solid) -> Field:
    """Return the field of a solid, upright along the third axis, from points ``(N, 3)`` or ``(1, N, 3)`` to ``(1, N, 4)``."""

    def field(points: Tensor) -> Tensor:
        x, y, z = points.reshape(-1, 3).double().numpy().T
        distances = np.stack([part.distance(np.stack((x, z, -y), axis=1)) for part in solid.parts])
        colours = np.array([part.colour for part in solid.parts])[distances.argmin(0)]
        density = _PEAK * (-torch.from_numpy(distances.min(0)) / _WIDTH).clamp(-1, 1)
        values = torch.cat((torch.from_numpy(colours).clamp(0.01, 0.99).logit(), density.unsqueeze(-1)), dim=-1)
        return values.to(points.dtype).unsqueeze(0)

    return field


def fit(network: CoordinateMLP, solid: Solid, steps: int, batch_size: int = 2048) -> dict[str, Tensor]:
    """Fit a network to a solid, and return its modulations, of one instance.

    A third of the points of a step lies inside the solid, a third within 0.05 of its surface, a third anywhere.

    Args:
        network: Modified. Its layers except for the modulated ones are shared.
        solid: What is fitted.
        steps: Number of steps of Adam.
        batch_size: Points per step.
    """
    generator = torch.Generator().manual_seed(0)
    extents = torch.cat((torch.full((60000, 1), _EXTENT), torch.ones(240000, 1)))
    points = (2 * torch.rand(len(extents), 3, generator=generator) - 1) * extents
    targets = solid_field(solid)(points)[0]
    density = targets[:, 3]
    groups = [
        group.nonzero().squeeze(-1)
        for group in (density > 0, (density <= 0) & (density > -_PEAK), torch.ones_like(density, dtype=torch.bool))
    ]
    modulations = {
        name: slot.initial().unsqueeze(0).requires_grad_(True)  # as parameters
        for name, slot in network.slots.items()
    }
    optimizer = torch.optim.Adam([*network.parameters(), *modulations.values()], lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.cat(
            [group[torch.randint(len(group), (batch_size // 3,), generator=generator)] for group in groups]
        )
        values, target = network(points[chosen], modulations)[0], targets[chosen]
        colour_errors = (values[:, :3] - target[:, :3]).square().mean(-1) * (target[:, 3] > -_PEAK)
        loss = ((values[:, 3] - target[:, 3]) / _PEAK).square().mean() + 0.02 * colour_errors.mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return {name: modulation.detach() for name, modulation in modulations.items()}
