"""Point clouds as the observation of a model of shapes: normalised, subsampled, or with estimated distances."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.randomness import seed_at
from datamodules.shapes.samples import ShapeItem
from datamodules.storage.points import FEWEST, Coordinates, PointCloud

UNIFORM = 0.06  # fraction of samples in the volume, 30,000 of 500,000 in DeepSDF's data
MARGIN = 1.03  # farthest point at 1 / MARGIN (DeepSDF section 5)

_BOUND = 1.001  # of coordinates that count as normalised, which leaves room for rounding
_STD = (0.0707, 0.0224)  # of those near the surface
_NEIGHBOURS = 11  # points that must agree on a sign (DeepSDF's preprocessing)
_NEAR_SPACINGS = 3.0  # median distances between neighbouring points, up to which a point's tangent plane is its surface
_DRAWN = 4  # samples whose distance is estimated, for each that is observed


class Normalization(NamedTuple):
    """The map to normalised coordinates: ``normalised = (p + offset) * scale``.

    Attributes:
        offset: Translation.
        scale: Factor.
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0

    def __call__(self, points: Coordinates) -> Coordinates:
        """Return normalised points."""
        return np.asarray((points + np.asarray(self.offset)) * self.scale)

    def facts(self) -> dict[str, Any]:
        """Return the map as facts of a source, from which writers return to the units of a file."""
        return {"offset": list(self.offset), "scale": self.scale}


def normalization(points: Coordinates, path: Path) -> Normalization:
    """Return the map that moves the centre of the bounding box to the origin, and the farthest point to 1 / 1.03.

    Args:
        points: ``(P, 3)``.
        path: File of the points, for error messages.

    Raises:
        ValueError: If all points are equal, or too far from each other for floating-point numbers.
    """
    centre = points.min(0) / 2 + points.max(0) / 2
    with np.errstate(over="ignore"):  # reported below
        radius = float(np.linalg.norm(points - centre, axis=1).max())
    if not (0 < radius < math.inf and math.isfinite(1 / radius)):
        raise ValueError(f"{path} cannot be scaled, its extent is {radius:g}: fix or remove it.")
    x, y, z = (-centre).tolist()
    return Normalization((x, y, z), 1 / (MARGIN * radius))


def check_normalized(points: Coordinates, path: Path) -> Normalization:
    """Return the identity for points that are normalised already.

    Raises:
        ValueError: If points are outside the cube [-1, 1].
    """
    if (largest := float(np.abs(points).max())) > _BOUND:
        raise ValueError(
            f"{path} has coordinates up to {largest:.4g}, but normalised shapes are within [-1, 1]: omit --normalized."
        )
    return Normalization()


def observed_surface(
    cloud: PointCloud, count: int, normals: bool, name: str, path: Path
) -> tuple[ShapeItem, list[str]]:
    """Return the points that a model observes of a normalised point cloud, and remarks.

    Of a cloud with more points than the model takes, a random subset is observed, which depends only on the name.

    Args:
        cloud: Normalised points.
        count: Maximum number of points.
        normals: Whether the model takes normals.
        name: Name of the shape.
        path: File of the points, for error messages.

    Raises:
        ValueError: If the model takes normals, and there are none.
    """
    points, directions = _with_known_normals(cloud, path, "takes normals") if normals else (cloud.points, cloud.normals)
    chosen, notes = np.arange(len(points)), [f"{len(points):,} points"]
    if len(points) > count:
        chosen, notes = _generator(name).permutation(len(points))[:count], [f"{count:,} of {len(points):,} points"]
    directions = np.zeros_like(points) if directions is None else directions
    context = np.column_stack((points[chosen], np.zeros(len(points[chosen]))))
    return _item(context, directions[chosen], name), notes


def observed_distances(
    cloud: PointCloud, count: int, name: str, path: Path, uniform: float = UNIFORM, inside: float | None = None
) -> tuple[ShapeItem, list[str]]:
    """Return samples in space with distances that are estimated from a normalised point cloud, and remarks.

    Samples are drawn as DeepSDF does, near the points and in the volume. The distance of a sample is that to the nearest point,
    or to the tangent plane of that point if the point is near. The sign says on which side of the plane the sample is; samples
    on whose side the 11 nearest points disagree are left out.

    Args:
        cloud: Normalised points with normals.
        count: Number of samples.
        name: Name of the shape.
        path: File of the points, for error messages.
        uniform: Fraction of the samples that are drawn in the volume.
        inside: Fraction of the samples that are inside; as drawn if None.

    Raises:
        ValueError: If there are no normals, or they disagree too often.
    """
    from scipy.spatial import KDTree  # here, because it takes half a second to import

    points, normals = _with_known_normals(cloud, path, "takes distances, which are estimated from normals")
    rng = _generator(name)
    drawn = _DRAWN * count
    num_uniform = round(uniform * drawn)
    centres = points[rng.integers(len(points), size=drawn - num_uniform)]
    deviations = np.resize(np.asarray(_STD), len(centres))[:, None]
    samples = np.concatenate(
        (2 * rng.random((num_uniform, 3)) - 1, centres + deviations * rng.standard_normal(centres.shape))
    )
    tree = KDTree(points)
    distances, nearest = tree.query(samples, min(_NEIGHBOURS, len(points)))  # (M, n) each
    heights = ((samples[:, None] - points[nearest]) * normals[nearest]).sum(-1)  # above the tangent planes
    outside = heights > 0
    spacing = float(np.median(tree.query(points, 2)[0][:, 1]))
    agreed = np.flatnonzero(outside.all(1) | ~outside.any(1))
    if len(agreed) < count:
        raise ValueError(
            f"{path} has normals that disagree on inside and outside for {1 - len(agreed) / drawn:.0%} of the samples: orient "
            "them outwards, or pass a mesh."
        )
    chosen = agreed[drawn_samples(heights[agreed, 0], count, inside, rng)]
    distance, height = distances[chosen, 0], heights[chosen, 0]
    signed = np.where(distance < _NEAR_SPACINGS * spacing, height, np.where(height > 0, distance, -distance))
    context = np.column_stack((samples[chosen], signed))
    return _item(context, np.zeros((count, 3)), name), [f"distances estimated from {len(points):,} points"]


def drawn_samples(
    distances: Coordinates, count: int, inside: float | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the indices of randomly drawn samples, of which a fraction is inside as far as there are enough.

    Args:
        distances: Signed distances, at least ``count``.
        count: Number of samples to draw.
        inside: Fraction of them that are inside; any if None.
        rng: Random numbers.
    """
    order = rng.permutation(len(distances))
    if inside is None:
        return order[:count]
    is_inside = distances[order] < 0
    num_inside = max(min(round(inside * count), int(is_inside.sum())), count - int((~is_inside).sum()))
    return np.concatenate((order[is_inside][:num_inside], order[~is_inside][: count - num_inside]))


def _with_known_normals(cloud: PointCloud, path: Path, reason: str) -> tuple[Coordinates, Coordinates]:
    """Return the points that have a normal, and the normals."""
    known = np.zeros(len(cloud.points), bool) if cloud.normals is None else cloud.normals.any(1)
    if cloud.normals is None or known.sum() < FEWEST:
        count = f"{known.sum()} normals" if known.any() else "no normals"
        raise ValueError(
            f"{path} has {count}, but the model {reason}: pass points with 6 columns, a PLY with nx, ny, nz, or a mesh."
        )
    return cloud.points[known], cloud.normals[known]


def _item(context: Coordinates, normals: Coordinates, name: str) -> ShapeItem:
    """Return an item without known distances: the query is the observed points, and its distances are NaN."""
    observed, directions = (torch.from_numpy(part.astype(np.float32)) for part in (context, normals))
    query = torch.cat((observed[:, :3], observed.new_full((len(observed), 1), math.nan)), dim=1)
    return ShapeItem(observed, directions, query, torch.zeros_like(directions), name)


def has_distances(query: Tensor) -> bool:
    """Return whether the distances of query points ``(..., N, 4)`` are known."""
    return not bool(query[..., 3].isnan().any())


def _generator(name: str) -> np.random.Generator:
    """Return the random numbers of a shape."""
    return np.random.default_rng(seed_at("observed shape", name))
