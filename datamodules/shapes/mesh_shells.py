"""Shells of a mesh: which connected parts lie inside others, and which of them bound the solid."""

from __future__ import annotations

import igl
import numpy as np
from numpy.typing import NDArray

from datamodules.shapes.mesh_repair import Triangulation, compacted, is_oriented

_MIN_VOLUME = 1e-12  # of a closed part, relative to the cube around the mesh; flatter parts have no outside


def outward(mesh: Triangulation) -> tuple[Triangulation, int, int]:
    """Orient closed parts outwards, and drop parts that lie within the solid.

    A closed part within another keeps its direction relative to it: if it is opposite, it bounds a cavity. If it is the same,
    both sides of the part are solid, and it is no part of the surface. Open parts keep their direction.

    Args:
        mesh: A mesh, as consistently oriented as possible.

    Returns:
        The mesh, the number of parts that were turned, and the number of parts that were dropped.
    """
    part_of_face = _parts(mesh.faces)
    num_parts = int(part_of_face.max()) + 1
    order = np.argsort(part_of_face, kind="stable")
    faces = np.split(mesh.faces[order], np.bincount(part_of_face).cumsum()[:-1])
    flat = _MIN_VOLUME * np.ptp(mesh.vertices, axis=0).max() ** 3
    volumes = np.array([_closed_volume(mesh.vertices, part, flat) for part in faces])
    inside = _enclosers(mesh.vertices, faces, volumes != 0)
    signs = np.sign(volumes).astype(np.int64)
    turned = np.zeros(num_parts, dtype=bool)
    outermost = [index for index in range(num_parts) if not inside[index]]
    turned[outermost] = signs[outermost] < 0
    for index in range(num_parts):
        roots = [other for other in inside[index] if not inside[other]]
        if roots:
            turned[index] = turned[max(roots, key=lambda root: abs(volumes[root]))]
    signs = np.where(turned, -signs, signs)
    around = np.array([int(signs[sorted(others)].sum()) for others in inside])  # winding number outside the part
    dropped = (around != 0) & (around + signs != 0)
    result = mesh.faces.copy()
    result[turned[part_of_face]] = result[turned[part_of_face]][:, ::-1]
    kept = Triangulation(mesh.vertices, result[~dropped[part_of_face]])
    return compacted(kept), int((turned & ~dropped).sum()), int(dropped.sum())


def _parts(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of the part of every face: connected by edges, which have two faces if the mesh is inconsistent."""
    if is_oriented(faces):
        parts: NDArray[np.int64] = igl.facet_components(faces)[1]
    else:
        parts = igl.orientable_patches(faces)
    return np.unique(parts, return_inverse=True)[1].reshape(-1)


def _closed_volume(vertices: NDArray[np.float64], faces: NDArray[np.int64], flat: float) -> float:
    """Return the signed volume within closed faces; 0 if they are open, or the volume is at most ``flat``."""
    if not Triangulation(vertices, faces).is_watertight:
        return 0.0
    corners = vertices[faces]
    corners = corners - corners.reshape(-1, 3).mean(0)
    volume = float(np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6)
    return volume if abs(volume) > flat else 0.0


def _enclosers(
    vertices: NDArray[np.float64], faces: list[NDArray[np.int64]], closed: NDArray[np.bool_]
) -> list[set[int]]:
    """Return, for every part, the closed parts that all its vertices, edges and faces lie in, as far as points show."""
    lower = np.stack([vertices[part].reshape(-1, 3).min(0) for part in faces])
    upper = np.stack([vertices[part].reshape(-1, 3).max(0) for part in faces])
    inside: list[set[int]] = [set() for _ in faces]
    for outer in np.flatnonzero(closed):
        contained = (lower >= lower[outer]).all(1) & (upper <= upper[outer]).all(1)
        contained[outer] = False
        inner = np.flatnonzero(contained)
        if not len(inner):
            continue
        probes = [_probes(vertices[faces[index]]) for index in inner]
        winding = np.abs(igl.fast_winding_number(vertices, faces[outer], np.concatenate(probes)))
        lowest = np.minimum.reduceat(winding, np.cumsum([0, *map(len, probes[:-1])]))
        for index in inner[lowest > 0.5]:
            inside[index].add(int(outer))
    return inside


def _probes(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners, the middles of edges and the centroids of triangles ``(F, 3, 3)``."""
    middles = (corners + np.roll(corners, 1, axis=1)) / 2
    return np.concatenate((corners.reshape(-1, 3), middles.reshape(-1, 3), corners.mean(1)))
