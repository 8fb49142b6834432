"""Shaded images of meshes and point sets on the CPU, and of slices through a signed distance field."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.cameras import centred_intrinsics, focal_length, orbit
from datamodules.storage.meshes import Mesh, UpAxis
from modalities.triangle_mesh import SurfacePoints, TriangleMesh

RGB = tuple[float, float, float]

GREY: RGB = (0.80, 0.80, 0.78)  # of true surfaces
BLUE: RGB = (0.55, 0.70, 0.90)  # of predicted surfaces

_DISTANCE, _RADIUS = 4.0, 1.05  # of the camera, and of the ball that fills a frame
_VIEWS = (10, 1, 4, 7)  # of an orbit of 12 images: in front, to the right, and on round the object
_SMALLEST = 0.012  # radius of a point without a normal
_OCTAHEDRON = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
_WARM, _COLD, _INK = np.array([214.0, 96.0, 77.0]), np.array([67.0, 147.0, 195.0]), np.array([20.0, 20.0, 20.0])
_FULL = 0.5  # distance of the strongest colour of a slice
_INTERVAL = 0.1  # between the contours of a slice
_CHUNK = 1 << 16


def triangles_of_mesh(mesh: TriangleMesh, colour: RGB = BLUE, up: UpAxis = "y") -> Mesh:
    """Return the triangles of a mesh for ray casting, z up."""
    return _coloured(_upright(mesh.vertices, up)[mesh.faces], colour)


def triangles_of_points(points: SurfacePoints, colour: RGB = GREY, up: UpAxis = "y") -> Mesh:
    """Return the triangles of a point set for ray casting, z up.

    Points with a normal become squares that lie in the surface, those without one small octahedra. Their size follows from the
    density of the points, so that a uniform sample of a surface looks closed.

    Args:
        points: At least one point.
        colour: RGB of all points.
        up: Axis that points up.
    """
    positions = _upright(points.points.astype(np.float32), up)
    normals = _upright(points.normals.astype(np.float32), up)
    radius = _spacing(positions)
    known = normals.any(1)
    helper = np.eye(3, dtype=np.float32)[np.abs(normals[known]).argmin(1)]
    right = np.cross(normals[known], helper)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    sides = np.stack((right, np.cross(normals[known], right)), 1)  # (n, 2, 3)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32) @ sides * radius + positions[known, None]
    squares = corners[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 3)
    tips = np.concatenate([np.eye(3)[[axis]] * sign for axis in range(3) for sign in (1, -1)]).astype(np.float32)
    solids = (positions[~known, None] + max(0.6 * radius, _SMALLEST) * tips)[:, _OCTAHEDRON].reshape(-1, 3, 3)
    return _coloured(np.concatenate((squares, solids)), colour)


def orbit_images(mesh: Mesh | None, count: int, size: int = 256, elevation: float = 25.0) -> list[Image.Image]:
    """Return images of an object from cameras around it, on white.

    Args:
        mesh: Triangles in normalised coordinates, z up; None for blank images.
        count: Number of images of one revolution.
        size: Height and width in pixels.
        elevation: Elevation of the cameras in degrees.
    """
    return _images(mesh, orbit(count, _DISTANCE, elevation), size)


def still_images(mesh: Mesh | None, count: int = 4, size: int = 256, elevation: float = 25.0) -> list[Image.Image]:
    """Return up to four images of an object from different sides, the first from the front; see `orbit_images`."""
    return _images(mesh, orbit(12, _DISTANCE, elevation)[list(_VIEWS[:count])], size)


def slice_images(
    evaluate: Callable[[Tensor], Tensor], size: int = 256, bound: float = 1.0, up: UpAxis = "y"
) -> list[tuple[str, Image.Image]]:
    """Return images of a signed distance field in the three planes through the origin, labelled.

    Blue is outside, red inside, up to a distance of 0.5. The black line is the zero level; thin lines are 0.1 apart.

    Args:
        evaluate: From coordinates ``(N, 3)`` to values ``(N,)``.
        size: Height and width in pixels.
        bound: Half the edge of the planes.
        up: Axis that points up in the first two planes.
    """
    line = (torch.arange(size) + 0.5) * (2 * bound / size) - bound
    across, down = torch.meshgrid(line, -line, indexing="xy")
    zero = torch.zeros_like(across)
    front, side, top = (across, zero, down), (zero, across, down), (across, down, zero)  # z up
    images = []
    for label, (x, y, z) in (("front slice", front), ("side slice", side), ("top slice", top)):
        coords = torch.stack((x, y, z) if up == "z" else (x, z, -y), dim=-1).view(-1, 3)
        values = torch.cat([evaluate(chunk).float().cpu() for chunk in coords.split(_CHUNK)])
        images.append((label, slice_image(values.view(size, size).numpy(), 2 * bound / size)))
    return images


def slice_image(distances: NDArray[np.float32], pixel: float) -> Image.Image:
    """Return distances ``(H, W)`` as an image; ``pixel`` is the size of a pixel. Values that are not finite are grey."""
    finite = np.isfinite(distances)
    distances = np.where(finite, distances, 0).astype(np.float64)
    strength = np.clip(np.abs(distances) / _FULL, 0, 1)[..., None] ** 0.7
    image = 255 + strength * (np.where(distances[..., None] < 0, _WARM, _COLD) - 255)
    slope = np.maximum(np.hypot(*np.gradient(distances)), 1e-3 * pixel)  # per pixel
    offset = np.abs(distances / _INTERVAL - np.round(distances / _INTERVAL)) * _INTERVAL
    for distance, width, opacity in ((offset, 0.6, 0.25), (np.abs(distances), 1.4, 1.0)):
        cover = opacity * np.clip(width - distance / slope + 0.5, 0, 1)[..., None] * (slope < _INTERVAL)[..., None]
        image = image + cover * (_INK - image)
    image[~finite] = 128
    return Image.fromarray(image.round().astype(np.uint8))


def _images(mesh: Mesh | None, poses: Tensor, size: int) -> list[Image.Image]:
    """Return images of an object on white from the given cameras."""
    if mesh is None:
        return [Image.new("RGB", (size, size), "white") for _ in poses]
    from datamodules.scenes.raycast import Caster  # here, because most commands render nothing

    focal = focal_length(2 * math.asin(_RADIUS / _DISTANCE), size)
    intrinsics = centred_intrinsics(torch.full((1, 2), focal), (size, size))
    caster, images = Caster(mesh), []
    for pose in poses:
        colours, alpha = caster.render(pose[None], intrinsics, (size, size))[0].float().split((3, 1))
        blended = 255 + (colours - 255) * alpha / 255
        images.append(Image.fromarray(blended.round().to(torch.uint8).movedim(0, -1).numpy()))
    return images


def _coloured(corners: NDArray[np.float32], colour: RGB) -> Mesh:
    """Return triangles of one colour."""
    return Mesh(
        np.ascontiguousarray(corners, np.float32), np.broadcast_to(np.asarray(colour, np.float32), corners.shape)
    )


def _upright(points: NDArray[np.float32], up: UpAxis) -> NDArray[np.float32]:
    """Return points or normals ``(N, 3)`` rotated so that z points up, as `datamodules.storage.meshes.read_mesh` does."""
    return points if up == "z" else np.stack((points[:, 0], -points[:, 2], points[:, 1]), axis=-1)


def _spacing(points: NDArray[np.float32], neighbour: int = 4, tried: int = 1000) -> float:
    """Return the median distance of points to their fourth neighbour, at least 0.004 and at most 0.05."""
    from scipy.spatial import cKDTree

    count = min(neighbour + 1, len(points))
    distances = cKDTree(points).query(points[:: max(1, len(points) // tried)], count)[0].reshape(-1, count)
    return float(np.clip(np.median(distances[:, -1]), 0.004, 0.05))
