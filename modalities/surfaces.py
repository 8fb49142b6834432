"""Extract coloured triangle meshes from the density of a field by marching cubes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from composers.base import Composer
from composers.rendering import Reconstruction, VolumeRenderer
from modalities.decoding import chunk_of_points
from modalities.level_set import NoSurfaceError, level_set
from modalities.triangle_mesh import TriangleMesh

_BRICK = 16  # grid points along each side of the blocks that are evaluated at a time


class SurfaceMesh(NamedTuple):
    """Closed triangle mesh in world coordinates with coloured vertices.

    Attributes:
        mesh: The mesh, z up.
        colours: ``(V, 3)`` uint8 vertex colours.
    """

    mesh: TriangleMesh
    colours: NDArray[np.uint8]


def density_renderer(composer: Composer) -> VolumeRenderer:
    """Return the renderer of a model if it has a density.

    Raises:
        ValueError: If the renderer has no density.
    """
    if not isinstance(composer.renderer, VolumeRenderer):
        raise ValueError(
            f"{type(composer.renderer).__name__} has no density and thus no surface: do not request a mesh, or use a model "
            "with VolumeRenderer."
        )
    return composer.renderer


def half_opaque(renderer: VolumeRenderer) -> float:
    """Return the density at which half of the light passes between two samples of a ray: ln 2 over their distance.

    The distance is ``(far - near) / (samples_per_ray - 1)``, or that along a diameter if the renderer has a smaller ``radius``.
    It is the resolution of training, so that the level does not depend on the resolution of the mesh.

    Raises:
        ValueError: If the renderer has no near or far.

    Example:
        >>> round(half_opaque(VolumeRenderer(near=2, far=6, samples_per_ray=128)), 3)
        22.007
    """
    if renderer.near is None or renderer.far is None:
        raise ValueError("The renderer has no near and far, so there is no default level: pass level.")
    length = min(renderer.far - renderer.near, math.inf if renderer.radius is None else 2 * renderer.radius)
    return math.log(2) * (renderer.samples_per_ray - 1) / length


@torch.no_grad()
def surface(
    composer: Composer,
    reconstruction: Reconstruction,
    bound: float = 1.5,
    resolution: int = 128,
    level: float | None = None,
    max_memory: float = 500.0,
) -> SurfaceMesh:
    """Return the level set of the density of a field within a cube, closed at the sides of the cube.

    Args:
        composer: The model; its renderer must have a density.
        reconstruction: Reconstruction of one instance.
        bound: The cube extends from ``-bound`` to ``bound`` along every axis.
        resolution: Number of cells along each side of the cube, at least 2; the density is evaluated at their centres.
        level: Density of the surface; `half_opaque` if None.
        max_memory: Memory in MB for evaluating the field, in addition to the model and the ``resolution ** 3`` densities.

    Raises:
        ValueError: If the renderer has no density, if a number is out of range, or if the density does not reach the level.
    """
    renderer = density_renderer(composer)
    if resolution < 2 or bound <= 0 or (level is not None and level <= 0):
        raise ValueError(
            f"resolution is {resolution}, bound {bound}, level {level}: resolution must be at least 2, the others positive."
        )
    chunk = chunk_of_points(composer, max_memory)
    level = half_opaque(renderer) if level is None else level
    if chunk < 1:
        raise ValueError(f"max_memory is {max_memory:g} MB, too little for one point of the field: increase it.")
    ends = [math.inf, -math.inf]

    def negative_density(coords: Tensor) -> Tensor:
        """Return values ``(N,)`` that are lower inside."""
        raw = [reconstruction.field(points.to(composer.device))[0, :, 3].float() for points in coords.split(chunk)]
        density = renderer.density(torch.cat(raw)).cpu()
        if renderer.radius is not None:  # beyond it, the field is not rendered, and anything
            density = density.where(coords.norm(dim=-1) <= renderer.radius, 0.0)
        ends[:] = min(ends[0], float(density.min())), max(ends[1], float(density.max()))
        return -density

    try:  # a density is no distance, so all bricks are evaluated
        mesh = level_set(
            negative_density, bound, resolution, -level, brick=min(_BRICK, resolution), margin=math.inf, chunk=chunk
        )
    except NoSurfaceError as error:
        if not all(map(math.isfinite, ends)):
            raise
        raise NoSurfaceError(
            f"There is no surface of density {level:.4g} within {bound:g} of the origin, where densities are "
            f"{ends[0]:.4g} to {ends[1]:.4g}: choose a level between them."
        ) from error
    vertices = torch.from_numpy(mesh.vertices).split(chunk)
    colours = torch.cat([reconstruction.field(points.to(composer.device))[0, :, :3].cpu() for points in vertices])
    return SurfaceMesh(mesh, (torch.sigmoid(colours.float()) * 255).round().to(torch.uint8).numpy())
