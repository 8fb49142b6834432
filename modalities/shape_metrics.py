"""Metrics of shapes: distances between surfaces, and errors of the signed distance field.

The samples of the target whose value is exactly 0 are points on the true surface, with their ``normals``; the others are
samples in the volume. Points on the predicted surface are drawn uniformly per area, with a fixed seed, from the level set 0 of
the reconstruction. The level set, its points and their nearest neighbours are computed once per reconstruction for all metrics.

Two conventions keep failures visible in means:

- A reconstruction without a surface (no change of sign, or values that are not finite) counts as if all its points were sqrt(3)
  longest edges away from the true surface, as in Occupancy Networks; its F-score and normal consistency are 0.
- NaN and positive infinity count as outside for the IoU, negative infinity as inside; every value that is not finite is an
  infinite error for the mean absolute distance.

A metric is NaN only where it is undefined: without points on the true surface (or without normals), or without samples in the
volume.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from composers.metrics import InstanceMetric
from composers.networks import Field
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from datamodules.domain import exact
from modalities.decoding import fastest_chunk
from modalities.level_set import Lattice, NoSurfaceError, level_sets
from modalities.triangle_mesh import SurfacePoints, TriangleMesh, sample_surface

_MAX_CHUNK = 1 << 17  # points of all instances together that are evaluated at a time
_FARTHEST = math.sqrt(3)  # distance of a missing surface, in longest edges


class Proximity(NamedTuple):
    """Distances between the points on a true and a predicted surface, in units of the coordinates.

    Attributes:
        edge: Longest edge of the bounding box of the true points.
        to_true: ``(P,)``, distance of every predicted point to its nearest true point; None without a predicted surface.
        to_predicted: ``(S,)``, distance of every true point to its nearest predicted point; None likewise.
        alignment: Mean absolute cosine between the normals of nearest points, averaged over both directions; NaN without a
            normal of a true point, 0 without a predicted surface.
    """

    edge: float
    to_true: NDArray[np.float64] | None
    to_predicted: NDArray[np.float64] | None
    alignment: float


_Meshes = list[TriangleMesh | NoSurfaceError]
_meshes: WeakKeyDictionary[Field, dict[Lattice, _Meshes]] = WeakKeyDictionary()
_proximities: WeakKeyDictionary[Field, dict[Any, tuple[Tensor, list[Proximity | None]]]] = WeakKeyDictionary()


def meshes_of(reconstruction: Reconstruction, lattice: Lattice) -> list[TriangleMesh | NoSurfaceError]:
    """Return the level set of every instance, or the error that says why it has none; computed once per field and lattice."""
    by_lattice = _meshes.setdefault(reconstruction.field, {})
    if lattice not in by_lattice:
        device, number = reconstruction.values.device, len(reconstruction.values)

        @torch.no_grad()
        def evaluate(coords: Tensor) -> Tensor:
            size = min(_MAX_CHUNK, fastest_chunk(device)) // number
            chunks = coords.split(max(1, size), dim=1)
            return torch.cat(
                [reconstruction.render(chunk.to(device)).values[..., 0].float().cpu() for chunk in chunks], 1
            )

        by_lattice[lattice] = level_sets(evaluate, number, lattice)
    return by_lattice[lattice]


def true_surface(target: Samples, index: int) -> SurfacePoints:
    """Return the points on the true surface of an instance, those whose value is exactly 0."""
    kept = _on_surface(target)[index]
    coords = target.coords if target.coords.dim() == 2 else target.coords[index]
    normals = torch.zeros_like(coords) if target.normals is None else target.normals[index]
    return SurfacePoints(*(part[kept].double().cpu().numpy() for part in (coords, normals)))


def proximity(predicted: SurfacePoints | None, true: SurfacePoints) -> Proximity | None:
    """Return the distances between two surfaces.

    Args:
        predicted: Points on the predicted surface; None if there is no surface.
        true: Points on the true surface.

    Returns:
        The distances; None if the true surface has no extent.
    """
    edge = float(np.ptp(true.points, axis=0).max()) if len(true.points) else 0.0
    if edge == 0:
        return None
    if predicted is None:
        return Proximity(edge, None, None, 0.0 if true.normals.any() else math.nan)
    to_true, nearest_true = cKDTree(true.points).query(predicted.points)
    to_predicted, nearest_predicted = cKDTree(predicted.points).query(true.points)
    directions = (
        _cosine(predicted.normals, true.normals[nearest_true]),
        _cosine(true.normals, predicted.normals[nearest_predicted]),
    )
    return Proximity(edge, to_true, to_predicted, sum(directions) / 2)


def _cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the mean absolute cosine of pairs of unit normals, without those that are zero; NaN if all are."""
    known = first.any(1) & second.any(1)
    return float(np.abs((first * second).sum(1))[known].mean()) if known.any() else math.nan


class SurfaceMetric(InstanceMetric):
    """Base class of metrics that compare points on the predicted and the true surface.

    Args:
        resolution: Number of cells along each side of the cube in which the level set is extracted.
        points: Number of points on the predicted surface.
        seed: Seed of these points.
        bound: The cube extends from ``-bound`` to ``bound`` along every axis.

    Raises:
        ValueError: If a number is out of range.
    """

    in_training = False

    def __init__(self, resolution: int = 128, points: int = 30000, seed: int = 0, bound: float = 1.0) -> None:
        if points < 1:
            raise ValueError(f"points is {points}; it must be at least 1.")
        self.lattice = Lattice(bound, resolution)
        self.points = points
        self.seed = seed
        self.note = f"Surfaces: {points:,} points, seed {seed}, on the level set 0 at a resolution of {resolution}."

    @abstractmethod
    def compare(self, nearest: Proximity) -> float:
        """Return the metric of an instance, also without a predicted surface; NaN if it is undefined."""

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the metric of every instance.

        Raises:
            ValueError: If the reconstruction has no field.
        """
        proximities = self._proximities(reconstruction, target)
        numbers = [math.nan if nearest is None else self.compare(nearest) for nearest in proximities]
        return torch.tensor(numbers, dtype=torch.float32, device=reconstruction.values.device)

    def _proximities(self, reconstruction: Reconstruction, target: Samples) -> list[Proximity | None]:
        """Return the distances of every instance, None without a true surface; computed once per field and target."""
        by_settings = _proximities.setdefault(reconstruction.field, {})
        settings = (self.lattice, self.points, self.seed)
        if settings not in by_settings or by_settings[settings][0] is not target.measured:
            if not _on_surface(target).any():  # before the work
                return [None] * len(target.measured)
            proximities = []
            for index, mesh in enumerate(meshes_of(reconstruction, self.lattice)):
                predicted = None if isinstance(mesh, NoSurfaceError) else sample_surface(mesh, self.points, self.seed)
                proximities.append(proximity(predicted, true_surface(target, index)))
            by_settings[settings] = (target.measured, proximities)
        return by_settings[settings][1]


class Chamfer(SurfaceMetric):
    """Chamfer-L1 distance of Occupancy Networks in % of the longest edge of the true surface.

    ``100 (mean a(M -> G) + mean a(G -> M)) / 2``, where ``a`` is the distance of a point on one surface to the nearest point on
    the other, not squared, and coordinates are divided by the longest edge of the bounding box of the true surface points. The
    papers print it times 10 rather than 100. Two samples of one surface do not have a distance of 0: see `sampling_floor`.

    Args:
        resolution: As in `SurfaceMetric`, as are all arguments.
        points: Number of points on the predicted surface; all points of the target are used.
        seed: Seed of the predicted points.
        bound: Half the edge of the cube.
    """

    heading = "Chamfer-L1"
    unit = "%"

    def compare(self, nearest: Proximity) -> float:
        """Return the mean of both mean distances."""
        if nearest.to_true is None or nearest.to_predicted is None:
            return 100 * _FARTHEST
        return float(100 * (nearest.to_true.mean() + nearest.to_predicted.mean()) / 2 / nearest.edge)


class ChamferSquared(SurfaceMetric):
    """Chamfer distance of DeepSDF and MetaSDF, times 1000: the sum of both mean squared distances.

    ``1000 (mean a(G -> M)^2 + mean a(M -> G)^2)`` in normalised coordinates, in which the farthest vertex of a mesh is 1 / 1.03
    from the origin. The published numbers are in the units of ShapeNet's meshes.

    Args:
        resolution: As in `SurfaceMetric`, as are all arguments.
        points: Number of points on the predicted surface; all points of the target are used.
        seed: Seed of the predicted points.
        bound: Half the edge of the cube.
    """

    heading = "squared Chamfer x 1000"

    def compare(self, nearest: Proximity) -> float:
        """Return the sum of both mean squares."""
        if nearest.to_true is None or nearest.to_predicted is None:
            return 2000 * (_FARTHEST * nearest.edge) ** 2
        return float(1000 * (np.square(nearest.to_true).mean() + np.square(nearest.to_predicted).mean()))


class FScore(SurfaceMetric):
    """F-score of Convolutional Occupancy Networks: harmonic mean of the fractions of points within a distance.

    The fractions are those of predicted points at most ``threshold`` from the true ones (precision), and vice versa (recall).

    Args:
        threshold: Distance in longest edges of the true surface.
        resolution: As in `SurfaceMetric`, as are the other arguments.
        points: Number of points on the predicted surface; all points of the target are used.
        seed: Seed of the predicted points.
        bound: Half the edge of the cube.

    Raises:
        ValueError: If ``threshold`` is not positive.
    """

    def __init__(
        self,
        threshold: float = 0.01,
        resolution: int = 128,
        points: int = 30000,
        seed: int = 0,
        bound: float = 1.0,
    ) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold is {threshold}; it must be positive.")
        super().__init__(resolution, points, seed, bound)
        self.threshold = threshold
        self.heading = f"F-score at {100 * threshold:g}%"

    def compare(self, nearest: Proximity) -> float:
        """Return the harmonic mean, 0 if both fractions are."""
        if nearest.to_true is None or nearest.to_predicted is None:
            return 0.0
        precision, recall = (
            np.mean(distances <= self.threshold * nearest.edge) for distances in (nearest.to_true, nearest.to_predicted)
        )
        return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


class NormalConsistency(SurfaceMetric):
    """Normal consistency of Occupancy Networks: mean absolute cosine of the normals of nearest points, of both directions.

    Predicted normals are those of faces. Flipped normals count as correct. NaN if no normal of the true surface is known.

    Args:
        resolution: As in `SurfaceMetric`, as are all arguments.
        points: Number of points on the predicted surface; all points of the target are used.
        seed: Seed of the predicted points.
        bound: Half the edge of the cube.
    """

    heading = "normal consistency"

    def compare(self, nearest: Proximity) -> float:
        """Return the mean of both mean cosines."""
        return nearest.alignment


class VolumeIoU(InstanceMetric):
    """Intersection over union of the insides, where values are negative, at the samples in the volume (VecSet).

    It is that of the field, not of a mesh. NaN if neither the target nor the prediction has a sample inside.
    """

    heading = "IoU of the field"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the IoU of every instance."""
        counted = _in_volume(target)
        predicted, true = ((values[..., 0] < 0) & counted for values in (reconstruction.values, target.measured))
        return (predicted & true).sum(1) / (predicted | true).sum(1)


class MeanAbsoluteDistance(InstanceMetric):
    """Mean absolute error of the signed distances at the samples in the volume, times 100, in normalised coordinates.

    Args:
        limit: Distance at which prediction and target are truncated, for models that were trained on truncated distances; none
            if None.

    Raises:
        ValueError: If ``limit`` is not positive.
    """

    heading = "mean absolute distance x 100"

    def __init__(self, limit: float | None = None) -> None:
        if limit is not None and not limit > 0:
            raise ValueError(f"limit is {limit}; it must be a positive distance, or null.")
        self.limit = math.inf if limit is None else limit
        if limit is not None:
            self.heading = f"mean absolute distance x 100, truncated at {limit:g}"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the mean error of every instance."""
        counted = _in_volume(target)
        predicted, true = (
            exact(part)[..., 0].clamp(-self.limit, self.limit) for part in (reconstruction.values, target.measured)
        )
        errors = (predicted - true).abs().nan_to_num(math.inf, math.inf, math.inf)
        errors = errors.masked_fill(~exact(reconstruction.values)[..., 0].isfinite(), math.inf)
        return 100 * torch.where(counted, errors, 0).sum(1) / counted.sum(1)


def sampling_floor(
    mesh: TriangleMesh, points: int = 30000, true_points: int = 10000, seed: int = 0
) -> dict[str, float]:
    """Return the surface metrics between two independent samples of one surface, about the best of a reconstruction.

    Args:
        mesh: The surface.
        points: Number of points in place of the predicted surface.
        true_points: Number of points in place of the true surface.
        seed: Seed of the first sample; the second has the next.

    Returns:
        ``chamfer``, ``chamfer_squared``, ``fscore`` and ``normal_consistency``, with their default settings.
    """
    nearest = proximity(sample_surface(mesh, points, seed), sample_surface(mesh, true_points, seed + 1))
    assert nearest is not None, "a mesh with an area has an extent"
    metrics = {
        "chamfer": Chamfer(),
        "chamfer_squared": ChamferSquared(),
        "fscore": FScore(),
        "normal_consistency": NormalConsistency(),
    }
    return {name: metric.compare(nearest) for name, metric in metrics.items()}


def _on_surface(target: Samples) -> Tensor:
    """Return which samples ``(B, N)`` are points on the true surface."""
    zero = target.measured[..., 0] == 0
    return zero if target.mask is None else zero & target.mask


def _in_volume(target: Samples) -> Tensor:
    """Return which samples ``(B, N)`` are in the volume."""
    apart = target.measured[..., 0] != 0
    return apart if target.mask is None else apart & target.mask
