"""Surfaces: from the density of a field to a mesh of coloured triangles, by marching cubes."""

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
from composers.networks import Field, Modulations
from composers.rendering import VolumeRenderer
from datamodules.domain import Volume
from datamodules.storage.files import written_whole
from datamodules.tiles import bands
from modalities.decoding import chunk_of_points


class SurfaceMesh(NamedTuple):
    """Triangles in the world, closed; seen from outside, their corners go around counter-clockwise.

    Attributes:
        vertices: ``(V, 3)`` float32, x, y and z, which points up.
        faces: ``(F, 3)`` int32, three vertices each.
        colours: ``(V, 3)`` uint8.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    colours: NDArray[np.uint8]


def density_renderer(composer: Composer) -> VolumeRenderer:
    """Return the renderer of a model, which knows a density.

    Raises:
        ValueError: If it knows none, with its name.
    """
    if not isinstance(composer.renderer, VolumeRenderer):
        raise ValueError(
            f"{type(composer.renderer).__name__} knows no density, so there is no surface: leave the mesh out, or take "
            "a model with VolumeRenderer."
        )
    return composer.renderer


def half_opaque(renderer: VolumeRenderer) -> float:
    """Return the density at which light passes from one sample of a ray to the next by half: ln 2 over their distance.

    The distance is ``(far - near) / (samples_per_ray - 1)``: finer than that nobody looked in training, so that the level
    is the same at every resolution of the mesh.

    Raises:
        ValueError: If the renderer has no near or far.

    Example:
        >>> round(half_opaque(VolumeRenderer(near=2, far=6, samples_per_ray=128)), 3)
        22.007
    """
    if renderer.near is None or renderer.far is None:
        raise ValueError("The renderer has no near and far, from which a level follows: give level.")
    return math.log(2) * (renderer.samples_per_ray - 1) / (renderer.far - renderer.near)


@torch.no_grad()
def surface(
    composer: Composer,
    modulations: Modulations,
    bound: float = 1.5,
    resolution: int = 128,
    level: float | None = None,
    max_memory: float = 500.0,
) -> SurfaceMesh:
    """Return the surface on which the density of a field has a level, closed where it leaves the cube.

    Args:
        composer: The model; its renderer has a density.
        modulations: Of one instance, on the device of the model.
        bound: The cube reaches from ``-bound`` to ``bound`` along every axis.
        resolution: Cells along each side of the cube, at least 2; the density is evaluated in the middle of each.
        level: Of the density; `half_opaque` if None.
        max_memory: MB that evaluating the field may take above the model and the ``resolution ** 3`` densities.

    Raises:
        ValueError: If the renderer has no density, a number is out of range, or there is no surface, with the densities found.
    """
    renderer = density_renderer(composer)
    if resolution < 2 or bound <= 0 or (level is not None and level <= 0):
        raise ValueError(
            f"resolution is {resolution}, bound {bound}, level {level}: resolution is at least 2, the others positive."
        )
    chunk, wanted = chunk_of_points(composer, max_memory), half_opaque(renderer) if level is None else level
    if chunk < 1:
        raise ValueError(f"max_memory is {max_memory:g} MB, too little for one point of the field: raise it.")
    field = composer.network.bind(modulations)
    volume = _densities(renderer, field, Volume(bound), resolution, chunk, composer.device)
    low, high = float(volume.min()), float(volume.max())
    if not high > wanted:
        raise ValueError(
            f"There is no surface of density {wanted:.4g} within {bound:g} of the middle: densities there are "
            f"{low:.4g} to {high:.4g}. Give a level between them."
        )
    vertices, faces = _triangles(volume, wanted, bound)
    found = [field(some.to(composer.device))[0, :, :3].cpu() for some in torch.from_numpy(vertices).split(chunk)]
    colours = (torch.sigmoid(torch.cat(found).float()) * 255).round().to(torch.uint8).numpy()
    return SurfaceMesh(vertices, faces, colours)


def save_ply(mesh: SurfaceMesh, path: Path) -> None:
    """Write a mesh as binary PLY with vertex colours, whole or not at all."""
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=mesh.colours, process=False)
    with written_whole(path) as part:
        part.write_bytes(export_ply(solid))


def _densities(
    renderer: VolumeRenderer, field: Field, domain: Volume, resolution: int, chunk: int, device: torch.device
) -> Tensor:
    """Return the density ``(n, n, n)`` in the middle of the ``n ** 3`` cells of a cube, along x, y and z."""
    shape = (resolution,) * 3
    parts = [
        renderer.density(field(domain.coords(shape, band).to(device))[0, :, 3].float()).cpu()
        for band in bands(shape, chunk)
    ]
    return torch.cat(parts).view(shape)


def _triangles(volume: Tensor, level: float, bound: float) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return vertices in the world and faces of the surface of a level; around the cube there is nothing."""
    from skimage.measure import marching_cubes  # here, because most commands need no mesh and need not wait for it

    step = 2 * bound / len(volume)
    # "ascent" is for objects of lower values, and for x, y, z in the place of skimage's z, y, x: faces look outwards
    padded = functional.pad(volume, (1,) * 6).numpy()
    vertices, faces, _, _ = marching_cubes(padded, level, gradient_direction="ascent")  # type: ignore[no-untyped-call]
    return ((vertices - 0.5) * step - bound).astype(np.float32), faces.astype(np.int32)
