"""Meshes as the observation of a model of shapes, with the points at which a result is compared with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.randomness import seed_at
from datamodules.shapes.clouds import UNIFORM, check_normalized, drawn_samples
from datamodules.shapes.mesh_sampling import MeshSolid, SamplingSettings, sample_solid, solid_from, solid_of
from datamodules.shapes.samples import ShapeItem
from datamodules.storage.meshes import read_corners

_DRAWN = 4  # samples, for each that is observed


def read_solid(path: Path, normalized: bool = False) -> MeshSolid:
    """Return the solid within a mesh, normalised as DeepSDF's data.

    Args:
        path: The file.
        normalized: Whether its coordinates are normalised already, and are used as they are.

    Raises:
        ValueError: If the file is damaged, or has no extent, or is not normalised; the message names it.
    """
    if not normalized:
        return solid_of(path)
    corners = read_corners(path)
    check_normalized(corners.reshape(-1, 3), path)
    return solid_from(corners, name=str(path))


def observed_solid(
    solid: MeshSolid,
    counts: tuple[int, int, int],
    dense: bool,
    name: str,
    uniform: float = UNIFORM,
    inside: float | None = None,
) -> ShapeItem:
    """Return what a model observes of a solid, and where the result is compared with it; both depend only on the name.

    Args:
        solid: A normalised mesh.
        counts: Numbers of observed points, of query points in the volume, and of query points on the surface.
        dense: Whether samples in space are observed, drawn as those of training by default, rather than points on the surface.
        name: Name of the shape.
        uniform: Fraction of the observed samples in space that are drawn in the volume.
        inside: Fraction of the observed samples in space that are inside; as drawn if None.

    Raises:
        ValueError: If the mesh bounds no solid; the message names it.
    """
    num_observed, num_volume, num_surface = counts
    rng = np.random.default_rng(seed_at("observed mesh", name))
    surface = _surface(solid, num_surface, rng)
    volume = 2 * rng.random((num_volume, 3)) - 1
    distances, _ = solid.signed_distance(volume)
    query = np.concatenate((np.column_stack((volume, distances)), _at_zero(surface)))
    query_normals = np.concatenate((np.zeros_like(volume), surface[:, 3:]))
    if dense:
        settings = SamplingSettings(_DRAWN * num_observed, uniform, surface=0, max_doubt=1.0)
        samples = sample_solid(solid, settings, 0, name)[0].samples.astype(np.float64)
        context = samples[drawn_samples(samples[:, 3], num_observed, inside, rng)]
        normals = np.zeros((num_observed, 3))
    else:
        observed = _surface(solid, num_observed, rng)
        context, normals = _at_zero(observed), observed[:, 3:]
    inputs, input_normals, target, target_normals = (
        torch.from_numpy(part.astype(np.float32)) for part in (context, normals, query, query_normals)
    )
    return ShapeItem(inputs, input_normals, target, target_normals, name)


def _surface(solid: MeshSolid, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return points on the surface and their normals, ``(count, 6)``."""
    return np.column_stack(solid.sample_surface(count, rng))


def _at_zero(surface: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return surface points ``(S, 6)`` with their distance, ``(S, 4)``."""
    return np.column_stack((surface[:, :3], np.zeros(len(surface))))
