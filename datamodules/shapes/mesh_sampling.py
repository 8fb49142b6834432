"""Signed distances from triangle meshes: normalisation, surface points, and samples in space (DeepSDF sections 4.1 and 5).

libigl computes the distances: it is the only maintained package with exact distances and winding numbers, wheels for Linux and
macOS, and no need of a display. Its distance to the surface is exact; its fast winding number only decides the sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import igl
import numpy as np
from numpy.typing import NDArray

from datamodules.randomness import seed_at
from datamodules.shapes.mesh_repair import Triangulation, areas, filled, merged, oriented
from datamodules.shapes.mesh_shells import outward
from datamodules.shapes.samples import StoredShape
from datamodules.storage.meshes import UpAxis, read_corners

OnOpen = Literal["repair", "refuse", "accept"]

MARGIN = 1.03  # farthest vertex at 1 / MARGIN (DeepSDF, section 5)

_DOUBT = 0.1  # from 0.5, of winding numbers that leave the sign in doubt
_NEAR = 1e-4  # distance below which winding numbers are computed exactly, because fast ones have single precision
_UNCERTAIN = 0.2  # from an integer, of winding numbers of watertight meshes that are computed exactly
_SIDE = 1e-4  # distance in front of a face at which the winding number is computed
_MIN_VISIBLE = 0.01  # fraction of the area of a mesh that must bound its solid


class MeshSolid:
    """A normalised triangle mesh as the boundary of a solid: the points whose winding number exceeds 0.5 in magnitude.

    Args:
        mesh: Oriented triangles, in normalised coordinates.
        offset: Translation to normalised coordinates: ``normalised = (p + offset) * scale``.
        scale: Factor to normalised coordinates.
        name: Name for error messages.
        is_watertight: Whether the mesh was closed before it was repaired.
        notes: Repairs of the mesh, as text for reports.
    """

    def __init__(
        self,
        mesh: Triangulation,
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        scale: float = 1.0,
        *,
        name: str = "mesh",
        is_watertight: bool = True,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.vertices, self.faces = mesh
        self.offset, self.scale = offset, scale
        self.name = name
        self.is_watertight = is_watertight
        self.notes = notes
        self._has_integers = mesh.is_watertight
        self._areas = areas(mesh)

    def winding_number(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the winding numbers ``(N,)`` of points ``(N, 3)``, in single precision.

        Those of a watertight mesh that are not near integers are computed again, exactly.
        """
        places: NDArray[np.float64] = np.ascontiguousarray(points, dtype=np.float64)
        winding: NDArray[np.float64] = igl.fast_winding_number(self.vertices, self.faces, places)
        if self._has_integers:
            uncertain = np.abs(winding - winding.round()) > _UNCERTAIN
            winding[uncertain] = self._exact_winding_number(places[uncertain])
        return winding

    def _exact_winding_number(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return winding numbers in double precision, in a time proportional to points times faces."""
        if not len(points):
            return np.zeros(0)
        winding: NDArray[np.float64] = igl.winding_number(self.vertices, self.faces, np.ascontiguousarray(points))
        return winding

    def signed_distance(self, points: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the distances of points ``(N, 3)`` to the mesh, negative inside, and whether the signs are in doubt.

        A sign is in doubt if the winding number is within 0.1 of 0.5, which occurs only near gaps of the mesh.
        """
        places: NDArray[np.float64] = np.ascontiguousarray(points, dtype=np.float64)
        unsigned = igl.SignedDistanceType.SIGNED_DISTANCE_TYPE_UNSIGNED
        distances: NDArray[np.float64] = igl.signed_distance(places, self.vertices, self.faces, unsigned)[0]
        winding = self.winding_number(places)
        near = distances < _NEAR
        winding[near] = self._exact_winding_number(places[near])
        coverage = np.abs(winding)
        return np.where(coverage > 0.5, -distances, distances), np.abs(coverage - 0.5) < _DOUBT

    def sample_surface(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return points on the surface of the solid, uniform by area, and their outward unit normals, ``(count, 3)`` each.

        Faces within the solid, where parts of the mesh overlap, are no surface: a point is kept if exactly one side of it is
        inside.

        Raises:
            ValueError: If less than a hundredth of the area separates inside from outside.
        """
        points, normals = [np.zeros((0, 3))], [np.zeros((0, 3))]
        drawn = kept = 0
        while kept < count:
            size = math.ceil(1.1 * (count - kept) * min(drawn / max(kept, 1), 1 / _MIN_VISIBLE) if drawn else count)
            batch, directions = self._on_faces(size, rng)
            in_front = self.winding_number(batch + _SIDE * directions)
            solid_front, solid_behind = np.abs(in_front) > 0.5, np.abs(in_front + 1) > 0.5  # a face adds 1 behind it
            visible = solid_front != solid_behind
            directions[solid_front] *= -1
            points.append(batch[visible])
            normals.append(directions[visible])
            drawn, kept = drawn + size, kept + int(visible.sum())
            if kept < _MIN_VISIBLE * drawn:
                raise ValueError(
                    f"The mesh {self.name} bounds no solid: only {kept:,} of {drawn:,} points on it separate an inside from an "
                    "outside. Close its surface, or leave it out."
                )
        return np.concatenate(points)[:count], np.concatenate(normals)[:count]

    def _on_faces(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return points on faces, uniform by area, and the normals of the faces."""
        cumulative = self._areas.cumsum()
        chosen = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
        corners = self.vertices[self.faces[np.minimum(chosen, len(self.faces) - 1)]]
        places = rng.random((count, 2))
        beyond = places.sum(1) > 1
        places[beyond] = 1 - places[beyond]
        sides = corners[:, 1:] - corners[:, :1]
        normals = np.cross(sides[:, 0], sides[:, 1])
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        return corners[:, 0] + np.einsum("nk,nki->ni", places, sides), normals / np.maximum(length, 1e-300)


def solid_of(path: Path, on_open: OnOpen = "repair", up: UpAxis | None = None) -> MeshSolid:
    """Read a mesh, orient its faces, and normalise it: bounding box centred at the origin, farthest vertex at 1 / 1.03.

    All parts of the file are joined, equal vertices merged, degenerate and repeated faces dropped, and faces oriented.

    Args:
        path: OBJ, PLY, STL or GLB file, of any unit.
        on_open: What to do with a mesh that is not watertight then: ``repair`` fills small holes, and the winding number
            closes what remains; ``accept`` leaves all to the winding number; ``refuse`` raises an error.
        up: Axis of the file that points up; ``z`` turns the mesh by 90 degrees so that y does. If None, nothing is turned.

    Raises:
        ValueError: If the file is missing, damaged, or without triangles, extent or area; if the mesh is open and ``on_open``
            is ``refuse``. The message names the file.
    """
    if on_open not in get_args(OnOpen) or up not in (None, *get_args(UpAxis)):
        raise ValueError(f"on_open is {on_open!r}, up {up!r}: on_open must be repair, refuse or accept, and up y or z.")
    corners = read_corners(path)
    if up == "z":
        corners = np.stack((corners[..., 0], corners[..., 2], -corners[..., 1]), axis=-1)
    points = corners.reshape(-1, 3)
    centre = points.min(0) / 2 + points.max(0) / 2
    with np.errstate(over="ignore"):  # reported below
        radius = float(np.linalg.norm(points - centre, axis=1).max())
    if radius == 0 or not math.isfinite(radius):
        raise ValueError(f"The mesh {path} cannot be scaled, its extent is {radius:g}: fix or remove it.")
    scale = 1 / (MARGIN * radius)
    return solid_from((corners - centre) * scale, tuple(-centre), scale, on_open=on_open, name=str(path))


def solid_from(
    corners: NDArray[np.float64],
    offset: tuple[float, ...] = (0.0, 0.0, 0.0),
    scale: float = 1.0,
    *,
    on_open: OnOpen = "repair",
    name: str = "mesh",
) -> MeshSolid:
    """Return the solid within triangles in normalised coordinates.

    Args:
        corners: ``(F, 3, 3)``, corners of triangles x axes.
        offset: Translation that was applied before ``scale``.
        scale: Factor that was applied.
        on_open: What to do with an open mesh; see `solid_of`.
        name: Name for error messages.

    Raises:
        ValueError: If the triangles have no area, or they are open and ``on_open`` is ``refuse``.
    """
    mesh = merged(corners)
    if not len(mesh.faces) or not areas(mesh).any():
        raise ValueError(f"The mesh {name} has only degenerate triangles without area: fix or remove it.")
    notes = []
    mesh, num_turned = oriented(mesh)
    if num_turned:
        notes.append(f"{num_turned:,} faces turned")
    is_watertight = mesh.is_closed
    if not is_watertight and on_open == "refuse":
        raise ValueError(
            f"The mesh {name} is not watertight: an edge belongs to a single face, or to another odd number of them. Close it, "
            "or pass --on_open repair."
        )
    if not is_watertight and on_open == "repair":
        mesh, num_filled = filled(mesh)
        if num_filled:
            notes.append(f"{num_filled:,} small holes filled")
    mesh, turned_parts, dropped_parts = outward(mesh)
    if turned_parts:
        notes.append(f"{turned_parts:,} parts turned outwards")
    if dropped_parts:
        notes.append(f"{dropped_parts:,} inner parts dropped")
    x, y, z = map(float, offset)
    return MeshSolid(mesh, (x, y, z), scale, name=name, is_watertight=is_watertight, notes=tuple(notes))


@dataclass(frozen=True)
class SamplingSettings:
    """How meshes are sampled.

    Args:
        samples: Number of samples with distances, in the volume and near the surface together.
        uniform: Fraction of the samples that are uniform in the cube [-1, 1]; DeepSDF: 30,000 of 500,000.
        std: Standard deviations by which surface points are moved along every axis; each gets an equal share of the samples
            near the surface. DeepSDF: variances 0.005 and 0.0005.
        surface: Number of points on the surface.
        on_open: What to do with meshes that are not watertight: ``repair``, ``refuse`` or ``accept``.
        max_doubt: Maximum fraction of samples whose winding number is within 0.1 of 0.5; meshes with more are refused.
        up: Axis of the files that points up; ``z`` turns meshes so that y does; None leaves them as they are.

    Raises:
        ValueError: If a number is out of range.
    """

    samples: int = 200_000
    uniform: float = 0.06
    std: tuple[float, ...] = (0.0707, 0.0224)
    surface: int = 50_000
    on_open: OnOpen = "repair"
    max_doubt: float = 0.1
    up: UpAxis | None = None

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` if a setting is out of range."""
        if self.samples < 2 or self.surface < 0:
            raise ValueError(f"samples is {self.samples}, surface {self.surface}: they must be at least 2 and 0.")
        if not (0 <= self.uniform <= 1 and 0 <= self.max_doubt <= 1):
            raise ValueError(f"uniform is {self.uniform}, max_doubt {self.max_doubt}: both must be in [0, 1].")
        if not self.std or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std is {list(self.std)}: expected one or more positive numbers.")
        if self.on_open not in get_args(OnOpen) or self.up not in (None, *get_args(UpAxis)):
            raise ValueError(
                f"on_open is {self.on_open!r}, up {self.up!r}: on_open must be repair, refuse or accept, and up y or z."
            )


class Quality(NamedTuple):
    """Properties of a sampled mesh that tell how far its distances can be trusted.

    Attributes:
        is_watertight: Whether the mesh was closed before it was repaired.
        doubt: Fraction of samples whose winding number is within 0.1 of 0.5.
        inside: Fraction of samples inside.
        notes: What was changed.
    """

    is_watertight: bool
    doubt: float
    inside: float
    notes: tuple[str, ...] = ()


def sample_mesh(path: Path, settings: SamplingSettings, seed: int = 0, name: str | None = None) -> StoredShape:
    """Read a mesh, and sample it; the result depends only on the mesh, the settings, the seed and the name.

    Args:
        path: The file.
        settings: How to sample it.
        seed: Seed of the random numbers.
        name: Name of the shape; the stem of the file if None.

    Raises:
        ValueError: If the mesh cannot be read or sampled; the message names it.

    Example:
        ``sample_mesh(Path("chair.glb"), SamplingSettings()).samples.shape``
    """
    solid = solid_of(path, settings.on_open, settings.up)
    return sample_solid(solid, settings, seed, path.stem if name is None else name)[0]


def sample_solid(solid: MeshSolid, settings: SamplingSettings, seed: int, name: str) -> tuple[StoredShape, Quality]:
    """Return samples and surface points of a solid, and their quality.

    Raises:
        ValueError: If no sample is inside, or too many signs are in doubt.
    """
    rng = np.random.default_rng(seed_at("shape", seed, name))
    num_uniform = round(settings.uniform * settings.samples)
    uniform = 2 * rng.random((num_uniform, 3)) - 1
    num_near = settings.samples - num_uniform
    num_moved = -(-num_near // len(settings.std))  # surface points, each moved with every deviation
    near, _ = solid.sample_surface(num_moved, rng)
    moved = [near + deviation * rng.standard_normal(near.shape) for deviation in settings.std]
    surface, normals = solid.sample_surface(settings.surface, rng)
    points = np.concatenate((uniform, *moved))[: settings.samples].astype(np.float32)
    distances, doubt = solid.signed_distance(points)  # of the rounded points
    quality = Quality(solid.is_watertight, float(doubt.mean()), float((distances < 0).mean()), solid.notes)
    if quality.doubt > settings.max_doubt:
        raise ValueError(
            f"The mesh {solid.name} has gaps that leave the sign of {quality.doubt:.1%} of the samples in doubt, more than "
            f"max_doubt {settings.max_doubt:.1%}: close it, leave it out, or raise --max_doubt."
        )
    if not quality.inside:
        raise ValueError(
            f"The mesh {solid.name} has no inside: none of {len(points):,} samples is within it. Close its surface, "
            "leave it out, or raise --samples if it is thin."
        )
    samples = np.concatenate((points, distances[:, None].astype(np.float32)), axis=1)
    on_surface = np.concatenate((surface, normals), axis=1).astype(np.float32)
    return StoredShape(samples, on_surface, name, num_uniform, solid.offset, solid.scale), quality
