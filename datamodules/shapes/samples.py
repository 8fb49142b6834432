"""Samples of signed distance fields, and the draw of context and query from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.randomness import generator_at

Context = Literal["dense", "surface", "partial"]

_DEPTH_CELLS = 128  # of the depth image of a partial context, along each side
_STEEPEST = 0.1  # cosine below which a surface counts as no steeper, when depths within a cell are compared
_UNKNOWN_SLOPE = 0.5  # cosine of points without normal


class StoredShape(NamedTuple):
    """Samples of the signed distance field of a shape, as they are stored.

    Attributes:
        samples: ``(M, 4)`` float32: x, y, z and the signed distance, negative inside; first those drawn uniformly in the
            domain, then those near the surface.
        surface: ``(S, 6)`` float32: points on the surface and their unit normals, zeros where a normal is unknown.
        name: Name of the shape in tables and files.
        uniform: Number of leading samples that were drawn uniformly; 0 if unknown, as in DeepSDF's layout.
        offset: Translation to normalised coordinates: ``normalised = (p + offset) * scale``.
        scale: Factor to normalised coordinates.
    """

    samples: NDArray[np.float32]
    surface: NDArray[np.float32]
    name: str
    uniform: int = 0
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0


class ShapeItem(NamedTuple):
    """A raw item of a data set of shapes, or a collated batch of them.

    Attributes:
        context: ``(P, 4)``, observed points and their distances, 0 on the surface.
        context_normals: ``(P, 3)``, unit normals of observed points on the surface, zeros elsewhere.
        query: ``(N, 4)``, points to reconstruct and their distances.
        query_normals: ``(N, 3)``, unit normals of query points on the surface, zeros elsewhere.
        name: Name of the shape in tables and files.
        seed: Seed of the random numbers of this item in this epoch; set by the loader.
        instance: Index of the shape in the training set; set by the loader, -1 outside training.
    """

    context: Tensor
    context_normals: Tensor
    query: Tensor
    query_normals: Tensor
    name: str
    seed: int = 0
    instance: int = -1


class ShapeDraw:
    """Draw what a model observes of a shape, and the points that it is compared at; both are disjoint.

    Args:
        context: ``dense``: samples in space with their distances. ``surface``: points on the surface. ``partial``: points on
            the surface that are visible from one random direction, as in one orthographic depth image.
        context_points: Number of observed points.
        query_points: Number of query points from the samples in space.
        surface_points: Number of query points on the surface, which follow the others; none in training.
        inside: Fraction of the observed samples and of those of training that are inside; as stored if None.
        include_context: Append the observed points to the query, as published for MetaSDF.
        uniform: Take query points only from uniform samples, where a shape states them.
    """

    def __init__(
        self,
        context: Context,
        context_points: int,
        query_points: int,
        surface_points: int = 0,
        *,
        inside: float | None = None,
        include_context: bool = False,
        uniform: bool = False,
    ) -> None:
        self.context = context
        self.context_points = context_points
        self.query_points = query_points
        self.surface_points = surface_points
        self.inside = inside
        self.include_context = include_context
        self.uniform = uniform

    def __call__(self, shape: StoredShape, generator: torch.Generator) -> ShapeItem:
        """Return the drawn item.

        Raises:
            ValueError: If the shape lacks the points that the draw needs; the message names it.
        """
        samples, surface = torch.from_numpy(shape.samples), torch.from_numpy(shape.surface)
        on_surface = torch.cat((surface[:, :3], surface.new_zeros(len(surface), 1)), dim=1)
        self._check(shape)
        if self.context == "dense":
            context_indices, query_indices = self._divided(samples, shape.uniform, generator)
            context, query = samples[context_indices], samples[query_indices]
            normals = context.new_zeros(len(context), 3)
        else:
            visible = torch.arange(len(surface)) if self.context == "surface" else _visible(surface, generator)
            chosen = _taken(visible[torch.randperm(len(visible), generator=generator)], self.context_points, generator)
            context, normals = on_surface[chosen], surface[chosen, 3:]
            _, query_indices = self._divided(samples, shape.uniform, generator)
            query = samples[query_indices]
        query_normals = query.new_zeros(len(query), 3)
        if self.include_context:
            query, query_normals = torch.cat((context, query)), torch.cat((normals, query_normals))
        if self.surface_points:
            order = torch.randperm(len(surface), generator=generator)
            if self.context != "dense" and len(shape.surface) > len(chosen.unique()):
                order = order[~torch.isin(order, chosen)]  # not the observed ones, unless all are
            true = _taken(order, self.surface_points, generator)
            query, query_normals = torch.cat((query, on_surface[true])), torch.cat((query_normals, surface[true, 3:]))
        return ShapeItem(context, normals, query, query_normals, shape.name)

    def _check(self, shape: StoredShape) -> None:
        """Raise an error if a shape has too few samples, or no surface where one is needed."""
        if len(shape.samples) < 2:
            raise ValueError(
                f"{shape.name} has {len(shape.samples)} distance samples; at least 2 are needed: sample it again."
            )
        if (self.context != "dense" or self.surface_points) and not len(shape.surface):
            raise ValueError(
                f"{shape.name} has no points on its surface, which context {self.context} and evaluation need: sample it again "
                "with surface points, or provide SurfaceSamples."
            )

    def _divided(self, samples: Tensor, uniform: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the indices of observed and of query samples, which are disjoint."""
        dense = self.context_points if self.context == "dense" else 0
        from_uniform = self.uniform and uniform > 1
        ratio = 0.0 if not dense else 0.5 if from_uniform else dense / (dense + self.query_points)
        context_indices, query_indices = [], []
        groups = self._groups(samples)
        shares = [_shares(count, [share for _, share in groups]) for count in (dense, self.query_points)]
        for (group, _), num_observed, num_query in zip(groups, *shares, strict=True):
            order = group[torch.randperm(len(group), generator=generator)]
            cut = min(max(round(len(order) * ratio), 1 if dense else 0), len(order) - 1)
            context_indices.append(_taken(order[:cut], num_observed, generator))
            query_indices.append(order[cut:] if from_uniform else _taken(order[cut:], num_query, generator))
        if not from_uniform:
            return torch.cat(context_indices), torch.cat(query_indices)
        left = torch.cat(query_indices)
        left = left[left < uniform] if bool((left < uniform).any()) else left
        order = left[torch.randperm(len(left), generator=generator)]
        return torch.cat(context_indices), _taken(order, self.query_points, generator)

    def _groups(self, samples: Tensor) -> list[tuple[Tensor, float]]:
        """Return the indices of samples that are drawn from, with the fraction that is drawn from each group."""
        everything = torch.arange(len(samples))
        if self.inside is None:
            return [(everything, 1.0)]
        is_inside = samples[:, 3] < 0
        groups = [(everything[is_inside], self.inside), (everything[~is_inside], 1 - self.inside)]
        usable = [(group, share) for group, share in groups if len(group) > 1 and share > 0]
        return usable if len(usable) == 2 else [(everything, 1.0)]


class EvaluationShapes(Dataset[ShapeItem]):
    """Shapes for evaluation, with the same draw in every run.

    Args:
        shapes: The shapes.
        draw: Draws context and query.
    """

    def __init__(self, shapes: Sequence[StoredShape], draw: ShapeDraw) -> None:
        self.shapes = shapes
        self.draw = draw

    def __len__(self) -> int:
        """Return the number of shapes."""
        return len(self.shapes)

    def __getitem__(self, index: int) -> ShapeItem:
        """Return shape ``index`` with its draw, which depends on the name only."""
        shape = self.shapes[index]
        return self.draw(shape, generator_at("evaluation of shapes", shape.name))


class TrainingShapes(Dataset[StoredShape]):
    """Shapes for training, of which the augmentation (`ShapeDraw`) draws context and query anew in every epoch.

    Args:
        shapes: The shapes.
    """

    def __init__(self, shapes: Sequence[StoredShape]) -> None:
        self.shapes = shapes

    def __len__(self) -> int:
        """Return the number of shapes."""
        return len(self.shapes)

    def __getitem__(self, index: int) -> StoredShape:
        """Return shape ``index``."""
        return self.shapes[index]


def _shares(count: int, shares: Sequence[float]) -> list[int]:
    """Return ``count`` divided by shares, so that all parts add up."""
    ends = [round(count * sum(shares[: number + 1]) / sum(shares)) for number in range(len(shares))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _taken(order: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` of shuffled indices; repeated at random if there are fewer."""
    if len(order) >= count:
        return order[:count]
    repeated = torch.randint(len(order), (count - len(order),), generator=generator)
    return torch.cat((order, order[repeated]))


def _visible(surface: Tensor, generator: torch.Generator) -> Tensor:
    """Return the indices of surface points ``(S, 6)`` that are visible from a random direction.

    A point is visible if its normal, if known, faces the camera, and it is not farther behind the nearest point in its cell of
    an orthographic depth image than its surface rises within a cell.
    """
    direction = torch.randn(3, generator=generator)
    direction = direction / direction.norm().clamp(min=1e-6)  # towards the camera
    helper = torch.eye(3)[direction.abs().argmin()]
    right = torch.linalg.cross(direction, helper)
    right = right / right.norm()
    up = torch.linalg.cross(direction, right)
    points = surface[:, :3]
    cells = min(_DEPTH_CELLS, max(8, math.isqrt(len(points) // 4)))  # about four points per cell of the silhouette
    columns, rows = (((points @ axis + 1) / 2 * cells).long().clamp(0, cells - 1) for axis in (right, up))
    cell, depth = rows * cells + columns, points @ direction  # a larger depth is nearer to the camera
    nearest = depth.new_full((cells * cells,), -math.inf).scatter_reduce(0, cell, depth, "amax")
    cosine = surface[:, 3:] @ direction
    slope = torch.where(surface[:, 3:].any(1), cosine, _UNKNOWN_SLOPE).clamp(min=_STEEPEST)
    visible = (depth >= nearest[cell] - 2 * (2 / cells) / slope) & (cosine >= 0)
    indices: Tensor = visible.nonzero().flatten()
    return indices if len(indices) else depth.argmax().reshape(1)
