"""Solids in closed form, and ray casting in double precision, for tests of signed distances from meshes."""

import numpy as np
import trimesh

DIRECTIONS = ((0.3713906764, 0.5570860145, 0.7427813527), (-0.8206518066, 0.1723369, 0.5448451))


def box_distance(points, half, centre=(0, 0, 0)):
    """Return the signed distances of points to a box with these half side lengths."""
    beyond = np.abs(points - np.asarray(centre)) - np.asarray(half)
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(1), 0)


def convex_distance(points, corners):
    """Return the signed distances of points to a convex solid with triangular faces ``(F, 3, 3)``, one at a time."""
    corners = np.asarray(corners, dtype=np.float64)
    centre = corners.reshape(-1, 3).mean(0)
    distances = np.full(len(points), np.inf)
    inside = np.ones(len(points), dtype=bool)
    for a, b, c in corners:
        normal = np.cross(b - a, c - a)
        normal = normal / np.linalg.norm(normal) * np.sign(normal @ (a - centre))
        height = (points - a) @ normal
        inside &= height <= 0
        distances = np.minimum(distances, triangle_distance(points, a, b, c))
    return np.where(inside, -distances, distances)


def triangle_distance(points, a, b, c):
    """Return the distances of points to a triangle: to its plane above it, else to the nearest edge."""
    normal = np.cross(b - a, c - a)
    normal = normal / np.linalg.norm(normal)
    above = np.ones(len(points), dtype=bool)
    edges = np.full(len(points), np.inf)
    for start, end in ((a, b), (b, c), (c, a)):
        side = end - start
        above &= (points - start) @ np.cross(normal, side) >= 0
        along = np.clip((points - start) @ side / (side @ side), 0, 1)
        edges = np.minimum(edges, np.linalg.norm(points - start - along[:, None] * side, axis=1))
    return np.where(above, np.abs((points - a) @ normal), edges)


def is_inside(vertices, faces, points, direction):
    """Return whether rays from points cross the surface of any part of a mesh an odd number of times, in float64.

    Parts are faces that share vertices. Every triangle is projected along the direction, and compared with all points.
    """
    direction = np.asarray(direction) / np.linalg.norm(direction)
    right = np.cross(direction, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    axes = np.stack((right, np.cross(direction, right), direction))
    places, corners = points.astype(np.float64) @ axes.T, (vertices @ axes.T)[faces]
    order = places[:, 0].argsort()
    places = places[order]
    parts = trimesh.graph.connected_component_labels(trimesh.Trimesh(vertices, faces, process=False).edges)[faces[:, 0]]
    odd = np.zeros((len(points), parts.max() + 1), dtype=bool)
    starts = np.searchsorted(places[:, 0], corners[..., 0].min(1))
    stops = np.searchsorted(places[:, 0], corners[..., 0].max(1))
    for (a, b, c), part, start, stop in zip(corners, parts, starts, stops, strict=True):
        near = places[start:stop]
        area = _cross(b - a, c - a)
        if area == 0 or not len(near):
            continue
        weights = np.stack([_cross(v - u, near - u) / area for u, v in ((b, c), (c, a), (a, b))], axis=1)
        depth = weights @ np.array((a[2], b[2], c[2]))
        odd[start:stop, part] ^= (weights > 0).all(1) & (depth > near[:, 2])
    inside = np.empty(len(points), dtype=bool)
    inside[order] = odd.any(1)
    return inside


def _cross(first, second):
    """Return the third component of the cross product of vectors, of which only two are read."""
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
