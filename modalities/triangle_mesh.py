"""Triangle meshes of surfaces: coordinates, samples and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import trimesh
from numpy.typing import NDArray
from trimesh.exchange.obj import export_obj

from datamodules.storage.files import written_whole

MeshFormat = Literal["ply", "obj", "glb"]


class SurfacePoints(NamedTuple):
    """Points on a surface.

    Attributes:
        points: ``(S, 3)`` float64.
        normals: ``(S, 3)`` float64, unit normals, zeros where a normal is unknown.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float64]


class TriangleMesh(NamedTuple):
    """A triangle mesh whose vertices are shared by faces.

    Attributes:
        vertices: ``(V, 3)`` float32.
        faces: ``(F, 3)`` int32 vertex indices, counter-clockwise when seen from outside.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]

    @property
    def is_watertight(self) -> bool:
        """Whether every edge belongs to two faces, which traverse it in opposite directions."""
        solid = trimesh.Trimesh(self.vertices, self.faces, process=False)
        return bool(solid.is_watertight and solid.is_winding_consistent)

    @property
    def extents(self) -> NDArray[np.float32]:
        """Edge lengths of the bounding box, ``(3,)``."""
        extents: NDArray[np.float32] = np.ptp(self.vertices, axis=0)
        return extents

    def in_world(self, offset: Sequence[float], scale: float) -> TriangleMesh:
        """Return the mesh in the units of a file, of which ``normalised = (p + offset) * scale``.

        Example:
            >>> mesh = TriangleMesh(np.array([[0.5, 0, 0]], np.float32), np.zeros((0, 3), np.int32))
            >>> mesh.in_world((1.0, 0.0, 0.0), 0.25).vertices.tolist()
            [[1.0, 0.0, 0.0]]
        """
        vertices = self.vertices.astype(np.float64) / scale - np.asarray(offset, np.float64)
        return TriangleMesh(vertices.astype(np.float32), self.faces)


def sample_surface(mesh: TriangleMesh, count: int, seed: int = 0) -> SurfacePoints:
    """Return random points on a mesh, uniform per area, with the normals of their faces.

    Args:
        mesh: A mesh with a positive area.
        count: Number of points.
        seed: Seed of the points, which depend on nothing else.
    """
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    first, sides = corners[:, 0], corners[:, 1:] - corners[:, :1]
    normals = np.cross(sides[:, 0], sides[:, 1])
    doubled = np.linalg.norm(normals, axis=1)  # twice the area
    generator = np.random.default_rng(seed)
    cumulative = np.cumsum(doubled)
    faces = np.searchsorted(cumulative, generator.random(count) * cumulative[-1], side="right").clip(max=len(first) - 1)
    shares = generator.random((count, 2))
    shares = np.where(shares.sum(1, keepdims=True) > 1, 1 - shares, shares)  # of the parallelogram to the triangle
    points = first[faces] + np.einsum("nk,nkc->nc", shares, sides[faces])
    return SurfacePoints(points, normals[faces] / doubled[faces, None])


def save_mesh(mesh: TriangleMesh, path: Path, colours: NDArray[np.uint8] | None = None) -> None:
    """Write a mesh as binary PLY, OBJ or GLB according to the suffix of the path, atomically.

    Args:
        mesh: The mesh.
        path: The file.
        colours: Colours of the vertices, ``(V, 3)``; None for none.

    Raises:
        ValueError: If the suffix is of another format.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in get_args(MeshFormat):
        raise ValueError(f"{path} has no supported mesh format: choose a name that ends with .ply, .obj or .glb.")
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colours, process=False)
    content: Any = solid.export(file_type=kind)
    with written_whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def obj_text(mesh: TriangleMesh) -> str:
    """Return the content of an OBJ file, without normals."""
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    text: str = export_obj(solid, include_normals=False)  # type: ignore[no-untyped-call]
    return text
