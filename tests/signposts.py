"""Signposts with closed-form signed distances, and a model and data of them, for tests.

A signpost is a ball with a pole towards +y and a shorter, thinner arm towards +x, so that every axis can be recognised.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from composers import Composer, Refinement
from composers.inference import LearnedStart, TorchOptimizer
from composers.latents import Direct
from composers.networks import CoordinateNetwork, TensorSpec
from datamodules.shapes.base import ShapeModule
from datamodules.shapes.samples import StoredShape
from modalities.level_set import level_set
from modalities.shapes import Shapes
from modalities.triangle_mesh import sample_surface

POLE, ARM = 0.9, 0.7  # lengths


def distances(points, radius):
    """Return the signed distances ``(B, N)`` of points ``(B, N, 3)`` to signposts with balls of these radii ``(B, 1)``."""
    parts = [points.norm(dim=-1) - radius]
    for axis, length, thickness in ((1, POLE, 0.08), (0, ARM, 0.05)):
        nearest = torch.zeros_like(points)
        nearest[..., axis] = points[..., axis].clamp(0, length - thickness)
        parts.append((points - nearest).norm(dim=-1) - thickness)
    return torch.stack(parts).amin(0)


class Signposts(CoordinateNetwork):
    """The field of signposts whose radii are the modulations; there is no surface where a radius is negative."""

    coord_dim, value_dim, floats_per_coord = 3, 1, 64

    def __init__(self):
        super().__init__()
        self.slots = {"radius": TensorSpec((1,), lambda: torch.full((1,), 0.35))}

    def forward(self, coords, modulations):
        """Return the distances, all 1 for negative radii, and NaN for a radius of NaN."""
        radius = modulations["radius"]
        points = coords.expand(len(radius), -1, -1) if coords.dim() == 2 else coords
        return torch.where(radius < 0, 1.0 - radius, distances(points, radius)).unsqueeze(-1)


class SignpostModel(Composer):
    """A composer that always predicts a radius of 0.35, and adapts it in refinement."""

    def __init__(self, steps=0, metrics=None):
        rule = TorchOptimizer(lambda latents: torch.optim.Adam(latents, lr=0.05))
        refinement = Refinement(steps, rule, report=[], starts=["prediction"], stages=["val", "test", "predict"])
        super().__init__(Signposts(), Direct(), LearnedStart(), refinement=refinement, metrics=metrics)


def signpost(radius, name, count=4000, offset=(0.0, 0.0, 0.0), scale=1.0):
    """Return the stored samples of a signpost."""
    mesh = level_set(lambda coords: distances(coords[None], torch.tensor([[radius]]))[0], resolution=64)
    surface = np.concatenate(sample_surface(mesh, count), axis=1)
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    values = distances(points[None], torch.tensor([[radius]]))[0]
    samples = torch.cat((points, values[:, None]), dim=1).numpy()
    return StoredShape(samples, surface.astype(np.float32), name, count, offset, scale)


class SignpostData(ShapeModule):
    """Three signposts."""

    modality = Shapes()

    def __init__(
        self,
        radii: Sequence[float] = (0.3, 0.4, 0.5),
        context_points: int = 500,
        query_points: int = 200,
        eval_points: int = 1000,
        eval_surface_points: int = 1500,
        **kwargs: Any,
    ):
        super().__init__(
            context_points=context_points,
            query_points=query_points,
            eval_points=eval_points,
            eval_surface_points=eval_surface_points,
            **kwargs,
        )
        self.radii = radii

    def shapes(self, split):
        """Return the shapes, the same for all splits."""
        return [signpost(radius, f"signpost-{index}") for index, radius in enumerate(self.radii)]

    def batch(self):
        """Return all shapes as an evaluation batch."""
        self.setup("test")
        return self.to_coordinates(self.collate([self.test_set[index] for index in range(len(self.test_set))]))


def latents_of(*radii):
    """Return the latents of signposts of these radii; negative ones have no surface, NaN is not finite."""
    assert all(math.isnan(radius) or radius for radius in radii)
    return {"radius": torch.tensor(radii).unsqueeze(-1)}
