"""Turn triangles of any origin into the oriented boundary of a solid, as far as they are one."""

from __future__ import annotations

from typing import NamedTuple

import igl
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_MERGE_DISTANCE = 1e-6  # between vertices that are the same, relative to the radius of the mesh
_SMALL_PERIMETER = 0.3  # of holes that are filled, relative to the radius; lost triangles are filled at any size


class Triangulation(NamedTuple):
    """Triangles that share vertices.

    Attributes:
        vertices: ``(V, 3)`` float64.
        faces: ``(F, 3)`` int64, indices of vertices.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]

    @property
    def is_closed(self) -> bool:
        """Return whether an even number of faces meets in every edge."""
        return not (_edge_counts(self.faces)[1] % 2).any()

    @property
    def is_watertight(self) -> bool:
        """Return whether the mesh is closed and consistently oriented, so that all winding numbers are integers."""
        return self.is_closed and is_oriented(self.faces)


def merged(corners: NDArray[np.float64]) -> Triangulation:
    """Return the triangulation of corners ``(F, 3, 3)``: equal vertices merged, and no degenerate or repeated faces.

    Faces with three distinct vertices are kept even if they have no area, because they may close gaps between others. Of faces
    with the same vertices, one remains; none if they face each other as the inner walls of touching parts do, and the mesh is
    closed without them.
    """
    points, places = np.unique(corners.reshape(-1, 3) + 0.0, axis=0, return_inverse=True)
    radius = np.linalg.norm(points - (points.min(0) + points.max(0)) / 2, axis=1).max()
    pairs = cKDTree(points).query_pairs(_MERGE_DISTANCE * radius, output_type="ndarray")
    places = places.reshape(-1)
    if len(pairs):
        links = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(points), len(points)))
        labels = connected_components(links, directed=False)[1]
        _, first = np.unique(labels, return_index=True)
        points, places = points[first], labels[places]
    faces = places.reshape(-1, 3).astype(np.int64)
    distinct = (faces != np.roll(faces, 1, axis=1)).all(1)
    return compacted(Triangulation(points, _without_repeated(faces[distinct])))


def compacted(mesh: Triangulation) -> Triangulation:
    """Return the same faces without unused vertices."""
    used, faces = np.unique(mesh.faces, return_inverse=True)
    return Triangulation(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int64))


def _without_repeated(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return faces of which no two have the same vertices."""
    order = faces.argsort(axis=1)
    turns = np.where((order[:, 1] - order[:, 0]) % 3 == 1, 1, -1)  # whether the sorted vertices turn the same way
    _, first, group = np.unique(np.sort(faces, axis=1), axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    if len(first) == len(faces):
        return faces
    net = np.bincount(group, turns, minlength=len(first)).round().astype(np.int64)
    opposed = net == 0  # as many faces in one direction as in the other
    remaining = faces[first]
    flipped = net * turns[first] < 0  # the others outnumber the first one
    remaining[flipped] = remaining[flipped][:, ::-1]
    parts = igl.facet_components(remaining)[1]
    dropped = np.zeros(len(remaining), dtype=bool)
    for part in np.unique(parts[opposed]):
        members = parts == part
        rest = remaining[members & ~opposed]
        if len(rest) and not (_edge_counts(rest)[1] % 2).any():
            dropped |= members & opposed
    kept: NDArray[np.int64] = remaining[~dropped]
    return kept


def _edges(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the directed edges ``(3 F, 2)`` of faces, those of one face in every third row."""
    return np.stack((faces, np.roll(faces, -1, axis=1)), axis=-1).reshape(-1, 2)


def _edge_counts(faces: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return, per undirected edge, a directed edge, the number of faces, and the surplus of faces in one direction."""
    edges = _edges(faces)
    keys = edges.min(1) * (int(faces.max(initial=0)) + 1) + edges.max(1)
    _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    surplus = np.bincount(inverse.reshape(-1), np.where(edges[:, 0] < edges[:, 1], 1, -1), minlength=len(first))
    return edges[first], counts, surplus.round().astype(np.int64)


def is_oriented(faces: NDArray[np.int64]) -> bool:
    """Return whether the faces of every edge that belongs to an even number of them cancel in direction."""
    _, counts, surplus = _edge_counts(faces)
    return not surplus[counts % 2 == 0].any()


def areas(mesh: Triangulation) -> NDArray[np.float64]:
    """Return the area of every face."""
    corners = mesh.vertices[mesh.faces]
    sides = np.diff(corners, axis=1)
    result: NDArray[np.float64] = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2
    return result


def oriented(mesh: Triangulation) -> tuple[Triangulation, int]:
    """Return the mesh with faces that turn the same way as their neighbours, and the number of turned faces.

    Faces are turned only if the mesh is inconsistent. Within each patch of faces that are connected by edges of two faces, the
    direction of the larger area prevails.
    """
    if is_oriented(mesh.faces):
        return mesh, 0
    faces, patches = igl.bfs_orient(mesh.faces)
    faces, turned = faces.astype(np.int64), _turned(mesh.faces, faces)
    balance = np.bincount(patches, np.where(turned, -1.0, 1.0) * areas(mesh))
    wrong = (balance < 0)[patches]
    faces[wrong] = faces[wrong][:, ::-1]
    return Triangulation(mesh.vertices, faces), int((turned ^ wrong).sum())


def _turned(before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which faces have another direction than before."""
    shifts = [(np.roll(after, shift, axis=1) == before).all(1) for shift in range(3)]
    turned: NDArray[np.bool_] = ~np.logical_or.reduce(shifts)
    return turned


def filled(mesh: Triangulation) -> tuple[Triangulation, int]:
    """Fill small holes of a consistently oriented mesh, and return the number of them.

    A hole is a closed loop of edges that belong to one face each. Loops of three edges are filled by a triangle, and others
    with a small perimeter by triangles around their centroid.
    """
    edges = _edges(mesh.faces)
    width = len(mesh.vertices)
    keys = edges.min(1) * width + edges.max(1)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    border = edges[counts[inverse.reshape(-1)] == 1][:, ::-1]  # the direction of the missing faces
    starts, num_starts = np.unique(border[:, 0], return_counts=True)
    after = dict(border[np.isin(border[:, 0], starts[num_starts == 1])].tolist())
    radius = np.linalg.norm(mesh.vertices - (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2, axis=1).max()
    vertices, faces, holes = [mesh.vertices], [mesh.faces], 0
    while after:
        start = next(iter(after))
        loop = [start]
        while (following := after.pop(loop[-1], None)) is not None and following != start:
            loop.append(following)
        if following is None or len(loop) < 3:
            continue
        ring = mesh.vertices[loop]
        perimeter = np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1).sum()
        if len(loop) > 3 and perimeter > _SMALL_PERIMETER * radius:
            continue
        holes += 1
        if len(loop) == 3:
            faces.append(np.array([loop], dtype=np.int64))
            continue
        centre = sum(map(len, vertices))
        vertices.append(ring.mean(0, keepdims=True))
        faces.append(np.array([(a, b, centre) for a, b in zip(loop, loop[1:] + loop[:1], strict=True)], dtype=np.int64))
    return Triangulation(np.concatenate(vertices), np.concatenate(faces)), holes
