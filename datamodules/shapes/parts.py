"""Solids as unions of parts: signed distance, points on the surface, and coloured triangles from one list.

Every part has an exact signed distance. The distance of a union is the smallest of its parts: exact outside, with the exact
sign everywhere, and inside at most the true distance in magnitude, where parts overlap.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]
Colour = tuple[float, float, float]

RADIUS = 1 / 1.03  # distance of the farthest vertex from the origin after normalisation (DeepSDF)

_SIDES = 24  # segments of a full turn in triangle meshes
_STEP = 1e-5  # of central differences
_SIDE = 1e-4  # distance from a surface at which its outside must be outside of all parts


class Part(ABC):
    """A primitive around the origin, without rotation; lengths in its own units."""

    @abstractmethod
    def distance(self, points: Array) -> Array:
        """Return the exact signed distances ``(N,)`` of points ``(N, 3)``, negative inside."""

    @abstractmethod
    def mesh(self) -> trimesh.Trimesh:
        """Return a closed triangle mesh of the surface, whose vertices lie on it."""


@dataclass(frozen=True)
class Cuboid(Part):
    """A cuboid with edges ``size``, whose edges and corners are rounded by ``rounding``."""

    size: tuple[float, float, float]
    rounding: float = 0.0

    def distance(self, points: Array) -> Array:
        """Return the exact signed distances."""
        beyond = np.abs(points) - (np.asarray(self.size) / 2 - self.rounding)
        outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
        return np.asarray(outside + np.minimum(beyond.max(axis=1), 0) - self.rounding)

    def mesh(self) -> trimesh.Trimesh:
        """Return the cuboid; rounded edges as the convex hull of spheres at its corners."""
        if self.rounding <= 0:
            return _checked(trimesh.creation.box(self.size))
        signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
        corners = signs * (np.asarray(self.size) / 2 - self.rounding)
        ball = trimesh.creation.icosphere(subdivisions=1, radius=self.rounding).vertices
        return _checked(trimesh.convex.convex_hull((corners[:, None] + ball).reshape(-1, 3)))


@dataclass(frozen=True)
class Sphere(Part):
    """A sphere."""

    radius: float

    def distance(self, points: Array) -> Array:
        """Return the exact signed distances."""
        return np.asarray(np.linalg.norm(points, axis=1) - self.radius)

    def mesh(self) -> trimesh.Trimesh:
        """Return an icosphere."""
        return _checked(trimesh.creation.icosphere(subdivisions=3, radius=self.radius))


@dataclass(frozen=True)
class Capsule(Part):
    """A straight tube with hemispherical ends, along y from ``-length / 2`` to ``length / 2`` without the ends."""

    length: float
    radius: float

    def distance(self, points: Array) -> Array:
        """Return the exact signed distances."""
        along = np.clip(points[:, 1], -self.length / 2, self.length / 2)
        return np.asarray(np.hypot(np.hypot(points[:, 0], points[:, 2]), points[:, 1] - along) - self.radius)

    def mesh(self) -> trimesh.Trimesh:
        """Return the tube with its ends."""
        centres = np.array([[0, -self.length / 2, 0], [0, self.length / 2, 0]])
        frames = np.broadcast_to(np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]), (2, 3, 3))
        return _tube(centres, frames, self.radius)


@dataclass(frozen=True)
class Arc(Part):
    """A bent tube with hemispherical ends: a part of a circle in the plane of x and y, centred on the y axis.

    Args:
        radius: Of the circle.
        tube: Radius of the tube.
        angle: Half of the opening angle in radians, up to pi; the arc is symmetric about the positive y axis.
    """

    radius: float
    tube: float
    angle: float

    def distance(self, points: Array) -> Array:
        """Return the exact signed distances."""
        across, up = np.abs(points[:, 0]), points[:, 1]
        sine, cosine = math.sin(self.angle), math.cos(self.angle)
        beside = cosine * across > sine * up  # nearest to an end
        ends = np.hypot(across - self.radius * sine, up - self.radius * cosine)
        flat = np.where(beside, ends, np.abs(np.hypot(across, up) - self.radius))
        return np.asarray(np.hypot(flat, points[:, 2]) - self.tube)

    def mesh(self) -> trimesh.Trimesh:
        """Return the bent tube with its ends."""
        turns = np.linspace(-self.angle, self.angle, max(3, math.ceil(2 * self.angle / math.pi * _SIDES)))
        outward = np.stack((np.sin(turns), np.cos(turns), np.zeros_like(turns)), axis=1)
        along = np.stack((np.cos(turns), -np.sin(turns), np.zeros_like(turns)), axis=1)
        sideways = np.cross(along, outward)
        return _tube(self.radius * outward, np.stack((outward, sideways, along), axis=1), self.tube)


@dataclass(frozen=True)
class Torus(Part):
    """A torus around the y axis."""

    radius: float
    tube: float

    def distance(self, points: Array) -> Array:
        """Return the exact signed distances."""
        return np.asarray(np.hypot(np.hypot(points[:, 0], points[:, 2]) - self.radius, points[:, 1]) - self.tube)

    def mesh(self) -> trimesh.Trimesh:
        """Return the torus."""
        torus = trimesh.creation.torus(self.radius, self.tube, major_sections=2 * _SIDES, minor_sections=_SIDES)
        return trimesh.Trimesh(torus.vertices @ rotation((1, 0, 0), math.pi / 2).T, torus.faces, process=False)


@dataclass(frozen=True)
class Cone(Part):
    """A truncated cone along y with radii ``bottom`` and ``top``; a cylinder if both are equal."""

    bottom: float
    top: float
    height: float

    def distance(self, points: Array) -> Array:
        """Return the exact signed distances."""
        across, up, half = np.hypot(points[:, 0], points[:, 2]), points[:, 1], self.height / 2
        cap = np.stack((across - np.minimum(across, np.where(up < 0, self.bottom, self.top)), np.abs(up) - half))
        slope = np.array((self.top - self.bottom, 2 * half))
        to_top = np.stack((self.top - across, half - up))
        share = np.clip((slope @ to_top) / (slope @ slope), 0, 1)
        side = np.stack((across, up)) - np.array((self.top, half))[:, None] + slope[:, None] * share
        is_inside = (side[0] < 0) & (cap[1] < 0)
        nearest = np.minimum((cap**2).sum(0), (side**2).sum(0))
        return np.asarray(np.where(is_inside, -1.0, 1.0) * np.sqrt(nearest))

    def mesh(self) -> trimesh.Trimesh:
        """Return the truncated cone."""
        turns = np.linspace(0, 2 * math.pi, 2 * _SIDES, endpoint=False)
        ring = np.stack((np.sin(turns), np.zeros_like(turns), np.cos(turns)), axis=1)
        half = np.array((0.0, self.height / 2, 0.0))
        return _checked(trimesh.convex.convex_hull(np.concatenate((ring * self.bottom - half, ring * self.top + half))))


@dataclass(frozen=True)
class Prism(Part):
    """A convex polygon in the plane of y and z, extruded along x from ``-width / 2`` to ``width / 2``.

    Args:
        profile: Corners (y, z) of the polygon, in either direction around it.
        width: Length of the extrusion.
    """

    profile: tuple[tuple[float, float], ...]
    width: float

    def distance(self, points: Array) -> Array:
        """Return the exact signed distances."""
        flat = self._flat_distance(points[:, 1:])
        beyond = np.stack((flat, np.abs(points[:, 0]) - self.width / 2))
        return np.asarray(np.linalg.norm(np.maximum(beyond, 0), axis=0) + np.minimum(beyond.max(axis=0), 0))

    def mesh(self) -> trimesh.Trimesh:
        """Return the prism."""
        profile = np.asarray(self.profile)
        ends = [np.column_stack((np.full(len(profile), side * self.width / 2), profile)) for side in (-1, 1)]
        return _checked(trimesh.convex.convex_hull(np.concatenate(ends)))

    def _flat_distance(self, points: Array) -> Array:
        """Return the signed distances ``(N,)`` of points ``(N, 2)`` from the polygon."""
        corners = np.asarray(self.profile)
        edges = np.roll(corners, -1, axis=0) - corners
        offsets = points[:, None] - corners  # (N, edges, 2)
        shares = np.clip((offsets * edges).sum(-1) / (edges**2).sum(-1), 0, 1)
        nearest = np.linalg.norm(offsets - shares[..., None] * edges, axis=-1).min(axis=1)
        turns = edges[:, 0] * offsets[..., 1] - edges[:, 1] * offsets[..., 0]
        is_inside = (turns > 0).all(axis=1) | (turns < 0).all(axis=1)
        return np.asarray(np.where(is_inside, -nearest, nearest))


class Placed(NamedTuple):
    """A part in a solid.

    Attributes:
        part: The primitive.
        rotation: ``(3, 3)`` from the axes of the part to those of the solid.
        position: ``(3,)`` of the origin of the part.
        scale: Length in the solid of a unit of the part.
        colour: Red, green and blue in [0, 1].
    """

    part: Part
    rotation: Array
    position: Array
    scale: float = 1.0
    colour: Colour = (0.7, 0.7, 0.7)

    def distance(self, points: Array) -> Array:
        """Return the exact signed distances ``(N,)`` of points ``(N, 3)`` of the solid."""
        return self.scale * self.part.distance((points - self.position) @ self.rotation / self.scale)

    def mesh(self) -> trimesh.Trimesh:
        """Return the coloured triangle mesh in the solid."""
        mesh = _mesh_of(self.part)
        vertices = mesh.vertices * self.scale @ self.rotation.T + self.position
        level = np.round(255 * np.asarray((*self.colour, 1.0))).astype(np.uint8)
        return trimesh.Trimesh(vertices, mesh.faces, face_colors=np.tile(level, (len(mesh.faces), 1)), process=False)

    def normals(self, points: Array) -> Array:
        """Return the unit gradients ``(N, 3)`` of the distance."""
        moves = np.eye(3) * _STEP * self.scale
        slopes = np.stack([self.distance(points + move) - self.distance(points - move) for move in moves], axis=1)
        return np.asarray(slopes / np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1e-12))


@dataclass(frozen=True)
class Solid:
    """A union of parts.

    Args:
        parts: At least one.
    """

    parts: tuple[Placed, ...]

    def distance(self, points: Array) -> Array:
        """Return the signed distances ``(N,)`` of points ``(N, 3)``: exact outside, exact in sign everywhere."""
        distances = self.parts[0].distance(points)
        for part in self.parts[1:]:
            distances = np.minimum(distances, part.distance(points))
        return distances

    def mesh(self) -> trimesh.Trimesh:
        """Return the coloured triangles of all parts, which may overlap."""
        return _checked(trimesh.util.concatenate([part.mesh() for part in self.parts]))

    def normalized(self) -> Solid:
        """Return the solid with its bounding box centred at the origin and its farthest vertex at distance 1/1.03 (DeepSDF)."""
        vertices = np.concatenate([part.mesh().vertices for part in self.parts])
        centre = (vertices.min(0) + vertices.max(0)) / 2
        scale = RADIUS / float(np.linalg.norm(vertices - centre, axis=1).max())
        return replace(
            self,
            parts=tuple(
                part._replace(position=(part.position - centre) * scale, scale=part.scale * scale)
                for part in self.parts
            ),
        )

    def surface(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Return points on the surface, uniformly distributed up to the triangulation, and their unit normals.

        Points of a part inside another part are not on the surface of the union, and are left out.

        Args:
            count: Number of points.
            generator: Source of random numbers.

        Returns:
            ``(count, 3)`` and ``(count, 3)``.

        Raises:
            ValueError: If no point of any part is on the surface.
        """
        meshes = [part.mesh() for part in self.parts]
        corners = np.concatenate([mesh.triangles for mesh in meshes])
        owners = np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh in meshes])
        sides = np.diff(corners, axis=1)
        areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
        kept: list[tuple[Array, Array]] = []
        missing, draws = count, max(64, count)
        for _ in range(64):
            triangles = generator.choice(len(areas), draws, p=areas / areas.sum())
            shares = generator.dirichlet((1, 1, 1), draws)
            points = (corners[triangles] * shares[..., None]).sum(1)
            kept.append(self._on_surface(points, owners[triangles]))
            missing -= len(kept[-1][0])
            if missing <= 0:
                break
            draws = max(64, 2 * missing)
        else:
            raise ValueError(f"The solid of {len(self.parts)} parts has no surface: every part lies inside another.")
        positions, normals = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
        order = generator.permutation(len(positions))[:count]
        return positions[order], normals[order]

    def _on_surface(self, points: Array, owners: NDArray[np.int64]) -> tuple[Array, Array]:
        """Return the points of parts, moved exactly onto these, that are on the surface of the union, and their normals."""
        points, normals = points.copy(), np.zeros_like(points)
        for number, part in enumerate(self.parts):
            chosen = owners == number
            if chosen.any():
                at = points[chosen]
                at = at - part.distance(at)[:, None] * part.normals(at)
                points[chosen], normals[chosen] = at, part.normals(at)
        visible = (self.distance(points) > -1e-7) & (self.distance(points + _SIDE * normals) > 0)
        return points[visible], normals[visible]


@functools.lru_cache(maxsize=256)
def _mesh_of(part: Part) -> trimesh.Trimesh:
    """Return the mesh of a part, which must not be changed: a solid needs it to be normalised, rendered and sampled."""
    return part.mesh()


def rotation(axis: Sequence[float] | Array, angle: float) -> Array:
    """Return the matrix ``(3, 3)`` of a rotation about an axis through the origin by an angle in radians."""
    return np.asarray(Rotation.from_rotvec(angle * np.asarray(axis, dtype=float) / np.linalg.norm(axis)).as_matrix())


def towards(direction: Array) -> Array:
    """Return a rotation ``(3, 3)`` that turns the y axis into a direction ``(3,)``, which need not be a unit vector."""
    along = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    axis = np.cross((0.0, 1.0, 0.0), along)
    sine = float(np.linalg.norm(axis))
    if sine < 1e-12:  # parallel: no turn, or a half one
        return np.eye(3) if along[1] > 0 else np.diag((1.0, -1.0, -1.0))
    return rotation(axis, math.atan2(sine, float(along[1])))


def _tube(centres: Array, frames: Array, radius: float) -> trimesh.Trimesh:
    """Return a closed tube around centres ``(K, 3)`` with hemispherical ends.

    Args:
        centres: Points of the central line.
        frames: ``(K, 3, 3)``: two unit vectors across the line and the unit vector along it, a right-handed frame.
        radius: Radius of the tube.
    """
    turns = np.linspace(0, 2 * math.pi, _SIDES, endpoint=False)
    tilts = np.linspace(0, math.pi / 2, _SIDES // 4 + 1)[1:-1]
    rings = [(frames[0], centres[0], math.cos(tilt), -math.sin(tilt)) for tilt in tilts[::-1]]
    rings += [(frame, centre, 1.0, 0.0) for frame, centre in zip(frames, centres, strict=True)]
    rings += [(frames[-1], centres[-1], math.cos(tilt), math.sin(tilt)) for tilt in tilts]
    around = [
        centre
        + radius * (width * (np.outer(np.cos(turns), frame[0]) + np.outer(np.sin(turns), frame[1])) + shift * frame[2])
        for frame, centre, width, shift in rings
    ]
    first, last = centres[0] - radius * frames[0, 2], centres[-1] + radius * frames[-1, 2]
    vertices = np.concatenate((*around, [first, last]))
    total, here = len(rings) * _SIDES, np.arange(_SIDES)
    following = (here + 1) % _SIDES
    faces = [np.stack((np.full_like(here, total), following, here), axis=1)]
    for ring in range(len(rings) - 1):
        low, high = ring * _SIDES, (ring + 1) * _SIDES
        faces.append(np.stack((low + here, low + following, high + here), axis=1))
        faces.append(np.stack((low + following, high + following, high + here), axis=1))
    top = (len(rings) - 1) * _SIDES
    faces.append(np.stack((top + here, top + following, np.full_like(here, total + 1)), axis=1))
    return trimesh.Trimesh(vertices, np.concatenate(faces), process=False)


def _checked(mesh: Any) -> trimesh.Trimesh:
    """Return a result of trimesh, whose functions are not typed, as a triangle mesh."""
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh
