"""Extract coloured triangle meshes from the density of a field by marching cubes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from trimesh.exchange.ply import export_ply

from composers.base import Composer
from composers.networks import Field
from composers.rendering import Reconstruction, VolumeRenderer
from datamodules.domain import Volume
from datamodules.storage.files import written_whole
from datamodules.tiles import bands
from modalities.decoding import chunk_of_points


class SurfaceMesh(NamedTuple):
    """Closed triangle mesh in world coordinates; faces are counter-clockwise when seen from outside.

    Attributes:
        vertices: ``(V, 3)`` float32, z up.
        faces: ``(F, 3)`` int32 vertex indices.
        colours: ``(V, 3)`` uint8 vertex colours.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
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

    The distance is ``(far - near) / (samples_per_ray - 1)``, the resolution of training, so the level does not depend on the
    resolution of the mesh.

    Raises:
        ValueError: If the renderer has no near or far.

    Example:
        >>> round(half_opaque(VolumeRenderer(near=2, far=6, samples_per_ray=128)), 3)
        22.007
    """
    if renderer.near is None or renderer.far is None:
        raise ValueError("The renderer has no near and far, so there is no default level: pass level.")
    return math.log(2) * (renderer.samples_per_ray - 1) / (renderer.far - renderer.near)


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
    volume = _densities(renderer, reconstruction.field, Volume(bound), resolution, chunk, composer.device)
    low, high = float(volume.min()), float(volume.max())
    if not high > level:
        raise ValueError(
            f"There is no surface of density {level:.4g} within {bound:g} of the origin, where densities are "
            f"{low:.4g} to {high:.4g}: choose a level between them."
        )
    vertices, faces = _triangles(volume, level, bound)
    chunks = torch.from_numpy(vertices).split(chunk)
    raw = [reconstruction.field(points.to(composer.device))[0, :, :3].cpu() for points in chunks]
    colours = (torch.sigmoid(torch.cat(raw).float()) * 255).round().to(torch.uint8).numpy()
    return SurfaceMesh(vertices, faces, colours)


def save_ply(mesh: SurfaceMesh, path: Path) -> None:
    """Write a mesh as binary PLY with vertex colours, atomically."""
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=mesh.colours, process=False)
    with written_whole(path) as part:
        part.write_bytes(export_ply(solid))


def _densities(
    renderer: VolumeRenderer, field: Field, domain: Volume, resolution: int, chunk: int, device: torch.device
) -> Tensor:
    """Return the density ``(n, n, n)`` at the centres of the ``n ** 3`` cells of a cube, along x, y and z."""
    shape = (resolution,) * 3
    densities = [
        renderer.density(field(domain.coords(shape, band).to(device))[0, :, 3].float()).cpu()
        for band in bands(shape, chunk)
    ]
    return torch.cat(densities).view(shape)


def _triangles(volume: Tensor, level: float, bound: float) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the vertices and faces of the level set of a volume, with density 0 outside of the cube."""
    from skimage.measure import marching_cubes  # imported here because it is slow, and most commands need no mesh

    step = 2 * bound / len(volume)
    # "ascent" is for objects of lower values; passing x, y, z instead of skimage's z, y, x mirrors, so faces point outwards.
    padded = functional.pad(volume, (1,) * 6).numpy()
    vertices, faces, _, _ = marching_cubes(padded, level, gradient_direction="ascent")  # type: ignore[no-untyped-call]
    return ((vertices - 0.5) * step - bound).astype(np.float32), faces.astype(np.int32)
