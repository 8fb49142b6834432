"""Pinhole cameras: intrinsics, poses and Pluecker coordinates. Pure functions; the rays of pixels are `domain.Rays`.

A pose is ``(3, 4)``, camera to world: the camera's axes right, up and backwards as columns, then its position. The camera looks
along its negative third axis; the world's third axis points up. A ray is ``(origin, direction)``, six numbers in world units.

Intrinsics are ``fx, fy, cx, cy`` in pixels: focal lengths and principal point along columns and rows. The centre of the first
pixel is at 0.5, so that the centre of an image of ``W`` columns is at ``W / 2``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SMALLEST_DEPTH = 1e-3  # of points that are projected, in world units


def plucker(rays: Tensor) -> Tensor:
    """Return the Pluecker coordinates of rays: unit direction and moment, which are equal for all origins on a line.

    Args:
        rays: ``(..., 6)``, origin and direction.

    Returns:
        ``(..., 6)``: the unit direction ``d`` and ``o x d`` (Sitzmann et al. 2021, light field networks, equation 2).

    Example:
        >>> plucker(torch.tensor([1.0, 0.0, 5.0, 0.0, 0.0, 2.0])).tolist()
        [0.0, 0.0, 1.0, 0.0, -1.0, 0.0]
    """
    origins, directions = rays.split(3, dim=-1)
    unit = torch.nn.functional.normalize(directions, dim=-1)
    return torch.cat((unit, torch.linalg.cross(origins, unit)), dim=-1)


def project(points: Tensor, poses: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Return where cameras see points.

    Args:
        points: ``(..., N, 3)`` in world units; leading axes broadcast with those of the cameras.
        poses: ``(..., 3, 4)``.
        intrinsics: ``(..., 4)``, focal lengths and principal points in pixels, ``fx, fy, cx, cy``.

    Returns:
        Positions ``(..., N, 2)`` in pixels, row before column, from the outer corner of the first pixel; and points
        ``(..., N, 3)`` in the axes of the camera. Positions of points behind a camera have no meaning.

    Example:
        >>> pixels, points = project(
        ...     torch.tensor([[1.0, 1.0, -2.0]]), torch.eye(4)[:3], torch.tensor([4.0, 4.0, 8.0, 8.0])
        ... )
        >>> pixels.tolist(), points.tolist()
        ([[6.0, 10.0]], [[1.0, 1.0, -2.0]])
    """
    points = (points - poses[..., None, :, 3]) @ poses[..., :3]
    depth = (-points[..., 2]).clamp_min(_SMALLEST_DEPTH)
    focal_x, focal_y, centre_x, centre_y = intrinsics[..., None, :].unbind(-1)
    rows, columns = centre_y - focal_y * points[..., 1] / depth, centre_x + focal_x * points[..., 0] / depth
    return torch.stack((rows, columns), dim=-1), points


def focal_length(field_of_view: float, width: int) -> float:
    """Return the focal length in pixels of a horizontal field of view in radians.

    Example:
        >>> round(focal_length(math.pi / 2, 128), 6)
        64.0
    """
    return 0.5 * width / math.tan(0.5 * field_of_view)


def centred_intrinsics(focals: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the intrinsics of cameras whose principal point is the centre of the image.

    Args:
        focals: ``(..., 2)`` focal lengths in pixels, along columns and rows.
        shape: Rows and columns of the image.

    Returns:
        ``(..., 4)``.

    Example:
        >>> centred_intrinsics(torch.tensor([70.0, 80.0]), (48, 64)).tolist()
        [70.0, 80.0, 32.0, 24.0]
    """
    rows, columns = shape
    return torch.cat((focals, focals.new_tensor((columns / 2, rows / 2)).expand_as(focals)), dim=-1)


def scaled_intrinsics(intrinsics: Tensor, shape: Sequence[int], new_shape: Sequence[int]) -> Tensor:
    """Return the intrinsics of cameras after their images were resized.

    Args:
        intrinsics: ``(..., 4)``.
        shape: Rows and columns that the intrinsics refer to.
        new_shape: Rows and columns of the resized images.

    Example:
        >>> scaled_intrinsics(torch.tensor([70.0, 80.0, 32.0, 20.0]), (48, 64), (24, 128)).tolist()
        [140.0, 40.0, 64.0, 10.0]
    """
    (rows, columns), (new_rows, new_columns) = shape, new_shape
    # The product before the quotient keeps the centre of the image exact.
    return intrinsics * intrinsics.new_tensor((new_columns, new_rows) * 2) / intrinsics.new_tensor((columns, rows) * 2)


def look_at(positions: Tensor, target: Sequence[float] = (0.0, 0.0, 0.0)) -> Tensor:
    """Return the poses of upright cameras that look at a point.

    For cameras directly above or below the target, the world's second axis points up in the image.

    Args:
        positions: ``(..., 3)``, positions of the cameras, different from the target.
        target: Point to look at.

    Returns:
        ``(..., 3, 4)``.

    Example:
        >>> look_at(torch.tensor([0.0, -4.0, 0.0])).tolist()
        [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, -4.0], [-0.0, 1.0, 0.0, 0.0]]
    """
    backwards = torch.nn.functional.normalize(positions - positions.new_tensor(target), dim=-1)
    polar = backwards[..., 2:].abs() > 1 - 1e-6
    up = torch.where(polar, positions.new_tensor((0.0, 1.0, 0.0)), positions.new_tensor((0.0, 0.0, 1.0)))
    right = torch.nn.functional.normalize(torch.linalg.cross(up, backwards), dim=-1)
    return torch.stack((right, torch.linalg.cross(backwards, right), backwards, positions), dim=-1)


def orbit(
    count: int, radius: float = 4.0, elevation: float = 30.0, target: Sequence[float] = (0.0, 0.0, 0.0)
) -> Tensor:
    """Return the poses of a camera that orbits a point once at constant elevation.

    Args:
        count: Number of equally spaced poses.
        radius: Distance to the target in world units.
        elevation: Degrees above the horizontal plane through the target.
        target: Point to look at.

    Returns:
        ``(count, 3, 4)``.

    Example:
        >>> [[round(number, 3) for number in position] for position in orbit(2, 2.0, 30.0)[:, :, 3].tolist()]
        [[1.732, 0.0, 1.0], [-1.732, -0.0, 1.0]]
    """
    angles = torch.arange(count) * (2 * math.pi / count)
    height = math.radians(elevation)
    around = torch.stack((angles.cos(), angles.sin()), dim=-1) * math.cos(height)
    upwards = torch.full((count, 1), math.sin(height))
    return look_at(radius * torch.cat((around, upwards), dim=-1) + torch.tensor(target), target)
