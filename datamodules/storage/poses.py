"""Poses of cameras in files: conventions, checks, and which convention poses seem to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Convention = Literal["opengl", "opencv", "opengl_w2c", "opencv_w2c"]
Matrices = NDArray[np.float64]

_TOLERANCE = 1e-3  # largest deviation of R R^T from 1, and of the last row from 0, 0, 0, 1
_LARGEST = 1e9  # of positions, for the precision of float32
_PARALLEL = 1e-3  # smallest eigenvalue by which axes are not parallel, about the squared sine of their angle
_IN_FRONT = 1e-3  # smallest depth of a point in front of a camera, as a fraction of the size of the scene
_MOST = 0.9  # fraction of cameras that see the point where they converge
_CONVERGED = 0.5  # largest mean distance of converging axes from their common point, as a fraction of the depth


class Convergence(NamedTuple):
    """How the optical axes of cameras meet.

    Attributes:
        point: ``(3,)``, the point nearest to all axes.
        depths: ``(F,)``, its distance along every axis, negative behind the camera.
        deviation: Mean distance of the axes from the point, as a fraction of the mean absolute depth.
    """

    point: Tensor
    depths: Tensor
    deviation: float


def matrix_of(value: Any, label: str) -> Matrices:
    """Return the upper three rows of a 4 x 4 or 3 x 4 matrix.

    Args:
        value: Nested lists of numbers.
        label: Place of the matrix, for error messages.

    Raises:
        ValueError: If it is no such matrix.
    """
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise ValueError(
            f"{label}: transform_matrix is not a matrix of 4 x 4 or 3 x 4 numbers. Export the scene again."
        )
    if len(matrix) == 4 and not np.abs(matrix[3] - (0, 0, 0, 1)).max() <= _TOLERANCE:
        raise ValueError(
            f"{label}: the last row of the pose is {_join(matrix[3])}, not 0, 0, 0, 1. Poses have the position in the last "
            "column: transpose it, or export the scene again."
        )
    return matrix[:3]


def poses_of(matrices: Sequence[Matrices], labels: Sequence[str], convention: Convention = "opengl") -> Tensor:
    """Return poses ``(F, 3, 4)`` float32, camera to world with the axes right, up, backwards.

    Args:
        matrices: Matrices ``(3, 4)`` in a convention.
        labels: Place of every matrix, for error messages.
        convention: The convention of the matrices.

    Raises:
        ValueError: If the axes of a matrix are not right-handed and orthonormal.
    """
    poses = np.stack(matrices)
    in_range = np.abs(poses) <= _LARGEST  # False for NaN
    finite: NDArray[np.bool_] = np.asarray(in_range.all((1, 2)))
    axes = np.where(finite[:, None, None], poses[:, :, :3], 0.0)
    deviation = np.abs(axes @ axes.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    determinants = np.linalg.det(axes)
    valid = finite & (deviation <= _TOLERANCE) & (determinants > 0)
    if not valid.all():
        first = int(np.argmin(valid))
        problem = (
            f"R R^T differs from the identity by {deviation[first]:.3g}, the determinant is {determinants[first]:.3g}"
            if finite[first]
            else f"it contains {_join(poses[first][~in_range[first]][:3])}"
        )
        raise ValueError(
            f"{labels[first]}: the pose is not a rotation R with a position: {problem}. Poses have unit axes, which are "
            "right-handed: export the scene again, without scaling or mirroring."
        )
    return from_convention(torch.from_numpy(poses), convention).float()


def from_convention(matrices: Tensor, convention: Convention) -> Tensor:
    """Return poses ``(..., 3, 4)``, camera to world with the axes right, up, backwards, from matrices in a convention.

    Args:
        matrices: ``(..., 3, 4)``.
        convention: ``opengl``: camera to world with the axes right, up, backwards. ``opencv``: camera to world with the axes
            right, down, forwards. With ``_w2c``, world to camera with these axes; ``opencv_w2c`` is that of COLMAP.

    Example:
        >>> from_convention(torch.eye(4)[:3], "opencv").tolist()
        [[1.0, -0.0, -0.0, 0.0], [0.0, -1.0, -0.0, 0.0], [0.0, -0.0, -1.0, 0.0]]
    """
    poses = _inverse(matrices) if convention.endswith("_w2c") else matrices
    return _flipped(poses) if convention.startswith("opencv") else poses


def to_convention(poses: Tensor, convention: Convention) -> Tensor:
    """Return matrices in a convention; the inverse of `from_convention`."""
    matrices = _flipped(poses) if convention.startswith("opencv") else poses
    return _inverse(matrices) if convention.endswith("_w2c") else matrices


def convergence(poses: Tensor) -> Convergence | None:
    """Return how the optical axes of cameras meet; None if they are parallel or if there is one camera.

    Args:
        poses: ``(F, 3, 4)``.
    """
    positions, directions = poses[:, :, 3].double(), -poses[:, :, 2].double()
    across = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None]  # (F, 3, 3)
    mean = across.mean(0)
    if float(torch.linalg.eigvalsh(mean)[0]) < _PARALLEL:
        return None
    point = torch.linalg.solve(mean, (across @ positions[..., None]).mean(0))[:, 0]
    towards = point - positions
    depths = (towards * directions).sum(-1)
    distance = (across @ towards[..., None])[..., 0].norm(dim=-1).mean()
    return Convergence(point, depths, float(distance / depths.abs().mean().clamp_min(1e-12)))


def look_away(poses: Tensor) -> bool:
    """Return whether all cameras look away from the point nearest to their axes, or are at this point.

    Args:
        poses: ``(F, 3, 4)``.
    """
    meeting = convergence(poses)
    return meeting is not None and not bool(_in_front(meeting, poses).any())


def likely_convention(poses: Tensor, convention: Convention) -> Convention | None:
    """Return the convention in which cameras converge towards a common point in front of them; None if it is unclear.

    Args:
        poses: ``(F, 3, 4)``, as read in a convention.
        convention: That convention; it is preferred among others that fit about equally well.
    """
    matrices = to_convention(poses.double(), convention)
    deviations: dict[Convention, float] = {}
    for candidate in get_args(Convention):
        as_candidate = from_convention(matrices, candidate)
        meeting = convergence(as_candidate)
        if meeting is None or meeting.deviation > _CONVERGED:
            continue
        if float(_in_front(meeting, as_candidate).double().mean()) >= _MOST:
            deviations[candidate] = meeting.deviation
    if not deviations:
        return None
    best = min(deviations, key=lambda name: (deviations[name], name != convention))
    similar = [name for name, deviation in deviations.items() if deviation <= 2 * deviations[best] + 1e-6]
    return convention if convention in similar else best if len(similar) == 1 else None


def _in_front(meeting: Convergence, poses: Tensor) -> Tensor:
    """Return whether the point where axes meet is in front of each camera."""
    size = poses[:, :, 3].double().norm(dim=-1).mean()
    in_front: Tensor = meeting.depths > _IN_FRONT * size
    return in_front


def _inverse(matrices: Tensor) -> Tensor:
    """Return the inverses of rigid motions ``(..., 3, 4)``."""
    rotation = matrices[..., :3].mT
    return torch.cat((rotation, -rotation @ matrices[..., 3:]), dim=-1)


def _flipped(matrices: Tensor) -> Tensor:
    """Return poses with the second and third axes reversed."""
    return matrices * matrices.new_tensor((1.0, -1.0, -1.0, 1.0))


def _join(numbers: Matrices) -> str:
    """Return numbers as text, separated by commas."""
    return ", ".join(f"{number:.4g}" for number in numbers)
