"""Base class of the data modules of shapes: points in space and their signed distances."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.domain import Volume
from datamodules.shapes.samples import Context, EvaluationShapes, ShapeDraw, ShapeItem, StoredShape, TrainingShapes
from datamodules.spec import DataSpec, Modality
from datamodules.storage.folders import Split, splits_of
from modalities.shapes import Shapes


class ShapeModule(CoordinateDataModule):
    """Signed distance fields of shapes in the cube [-1, 1]: a model observes points, and is compared at others.

    Distances are negative inside. A model observes the ``context``: an inner loop and refinement its points with their
    distances, an encoder a point set ``(B, P, K)`` with the coordinates of a point, followed by its distance (``dense``,
    K = 4), by its normal (``normals``, K = 6), or by nothing (K = 3).

    Training compares a model at samples that were drawn near the surface and in the volume. Validation and test compare it at
    samples in the volume, followed by points on the surface, whose distance is 0.

    Args:
        context: What is observed of a shape. ``dense``: samples in space with their distances. ``surface``: points on the
            surface. ``partial``: points on the surface that are visible from one random direction, as in a depth image.
        context_points: Number of observed points.
        query_points: Number of query points in training.
        normals: Whether the points that an encoder observes have normals; only for contexts ``surface`` and ``partial``.
        normal_offset: Distance along the normals at which an inner loop and refinement observe two further samples per surface
            point with a known normal, one outside and one inside (DeepSDF section 4.3, shape completion); none if 0.
        inside: Fraction of the samples of dense contexts and of training that are inside, where a shape has both; 0.5 in
            DeepSDF's loader. As stored if None, few for thin shapes.
        query_includes_context: Whether the query of training contains the observed points, as published for MetaSDF; by
            default, a model is only compared at points that it did not observe.
        eval_points: Number of query points in the volume in validation and test.
        eval_surface_points: Number of query points on the surface in validation and test.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If a number is out of range, or arguments exclude each other.
    """

    modality: Modality = Shapes()
    uniform: float | None = (
        None  # fraction of stored samples that are uniform in the cube, if it is the same for all shapes
    )
    train_set: Dataset[Any]  # stored shapes, which the augmentation turns into items
    val_set: Dataset[Any]
    test_set: Dataset[Any]
    augmentation: Callable[[Any, torch.Generator], Any] | None = None

    def __init__(
        self,
        context: Context = "dense",
        context_points: int = 2048,
        query_points: int = 2048,
        normals: bool = False,
        normal_offset: float = 0.0,
        inside: float | None = None,
        query_includes_context: bool = False,
        eval_points: int = 16384,
        eval_surface_points: int = 10000,
        **kwargs: Any,
    ) -> None:
        if context not in get_args(Context):
            raise ValueError(f"context is {context!r}: choose one of {', '.join(get_args(Context))}.")
        if min(context_points, query_points, eval_points) < 1 or eval_surface_points < 0:
            raise ValueError(
                f"context_points is {context_points}, query_points {query_points}, eval_points {eval_points}, "
                f"eval_surface_points {eval_surface_points}: eval_surface_points must be at least 0, the others at least 1."
            )
        if context == "dense" and (normals or normal_offset):
            raise ValueError(
                "normals and normal_offset describe points on the surface: set context to surface or partial, or omit them."
            )
        if inside is not None and not 0 < inside < 1:
            raise ValueError(f"inside is {inside}: it must be a fraction between 0 and 1, or null.")
        if not 0 <= normal_offset < 1:
            raise ValueError(f"normal_offset is {normal_offset}: it must be at least 0 and below 1.")
        super().__init__(coordinate_noise="none", coordinate_subset=None, **kwargs)
        self.context = context
        self.context_points = context_points
        self.query_points = query_points
        self.normals = normals
        self.normal_offset = normal_offset
        self.inside = inside
        self.query_includes_context = query_includes_context
        self.eval_points = eval_points
        self.eval_surface_points = eval_surface_points
        self.augmentation = ShapeDraw(
            context, context_points, query_points, inside=inside, include_context=query_includes_context
        )
        self.evaluation = ShapeDraw(
            context, context_points, eval_points, eval_surface_points, inside=inside, uniform=True
        )

    @property
    def spec(self) -> DataSpec:
        """Signed distances in the cube [-1, 1]; the signal is the point set that an encoder observes."""
        channels = 4 if self.context == "dense" else 6 if self.normals else 3
        return DataSpec(
            Volume(1.0),
            1,
            (self.context_points, channels),
            self.modality,
            self.num_instances,
            normal_offset=self.normal_offset,
            inside=self.inside,
            uniform=self.uniform,
        )

    @abstractmethod
    def shapes(self, split: Split) -> Sequence[StoredShape]:
        """Return the shapes of a split in a fixed order, all of which have distance samples and surface points.

        Raises:
            ValueError: If shapes are missing or damaged; the message says how to get them.
        """

    def setup(self, stage: str) -> None:
        """Create the data sets of the splits that a stage needs.

        Raises:
            ValueError: If a split has no shapes, or shapes are damaged.
        """
        for split in splits_of(stage):
            shapes = self.shapes(split)
            if not len(shapes):
                raise ValueError(
                    f"{type(self).__name__} has no shapes of the split {split}: pass data that contains one."
                )
            items = TrainingShapes(shapes) if split == "train" else EvaluationShapes(shapes, self.evaluation)
            setattr(self, f"{split}_set", items)

    def random_items(self, count: int) -> ShapeItem:
        """Return collated items with random points and distances.

        Args:
            count: Number of items.
        """
        context = torch.rand(count, self.context_points, 4) * 2 - 1
        num_query = self.query_points + (self.context_points if self.query_includes_context else 0)
        query = torch.rand(count, num_query, 4) * 2 - 1
        if self.context != "dense":
            context[..., 3] = 0
        normals = torch.nn.functional.normalize(torch.randn(count, self.context_points, 3), dim=-1)
        names = [f"random-{index}" for index in range(count)]
        numbers, instances = torch.arange(count), torch.zeros(count, dtype=torch.long)
        unknown = torch.zeros(count, num_query, 3)
        return ShapeItem(context, normals, query, unknown, names, numbers, instances)  # type: ignore[arg-type]

    def to_coordinates(self, batch: Any, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of a collated `ShapeItem`.

        Args:
            batch: ``context (B, P, 4)``, ``query (B, N, 4)``, their normals, names and indices.
            training: Whether the batch is one of training.
            step: Unused, because a batch shares no draws.
        """
        query = Samples(batch.query[..., :3], batch.query[..., 3:], normals=batch.query_normals)
        index = torch.as_tensor(batch.instance, device=query.coords.device) if training else None
        observation = Observation(self._signal(batch), self._observed(batch), index)
        shape = None if training else (query.coords.shape[1],)
        return CoordinateBatch(observation, query, shape, list(batch.name))

    def _signal(self, batch: ShapeItem) -> Tensor:
        """Return the point set that an encoder observes, ``(B, P, K)``."""
        if self.context == "dense":
            return batch.context
        points = batch.context[..., :3]
        return torch.cat((points, batch.context_normals), dim=-1) if self.normals else points

    def _observed(self, batch: ShapeItem) -> Samples:
        """Return the samples that an inner loop and refinement observe."""
        points, distances, normals = batch.context[..., :3], batch.context[..., 3:], batch.context_normals
        if not self.normal_offset:
            return Samples(points, distances, normals=normals)
        moved = [points + sign * self.normal_offset * normals for sign in (1, -1)]
        levels = [distances + sign * self.normal_offset for sign in (1, -1)]
        known = normals.any(-1)
        return Samples(
            torch.cat((points, *moved), dim=1),
            torch.cat((distances, *levels), dim=1),
            None if bool(known.all()) else torch.cat((torch.ones_like(known), known, known), dim=1),
            torch.cat((normals, torch.zeros_like(normals), torch.zeros_like(normals)), dim=1),
        )

    def surface_points(self, shape: StoredShape, count: int) -> NDArray[np.float32]:
        """Return at most ``count`` points on the surface of a shape and their normals ``(S, 6)``: stored ones."""
        return shape.surface[:count]
