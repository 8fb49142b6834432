"""Conventions of poses: conversion, detection, and cameras that look away."""

from typing import get_args

import pytest
import torch
from scene_folders import cameras

from datamodules.cameras import look_at
from datamodules.storage.poses import (
    Convention,
    convergence,
    from_convention,
    likely_convention,
    look_away,
    to_convention,
)

CONVENTIONS = get_args(Convention)


def _noisy(count=12, noise=0.3):
    """Return cameras that look at points near (0.5, 0, 0.2)."""
    generator = torch.Generator().manual_seed(0)
    positions = cameras(count)[:, :, 3]
    targets = torch.tensor([0.5, 0.0, 0.2]) + noise * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return torch.stack([look_at(place, target.tolist()) for place, target in zip(positions, targets, strict=True)])


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_points_project_alike_in_every_convention(convention):
    """A point has the same position in the image, whether from the pose or from the matrix in a convention."""
    [pose] = cameras(1)
    point = torch.tensor([0.3, -0.2, 0.4], dtype=torch.float64)
    right, up, backwards = ((point - pose[:, 3]) @ pose[:, :3]).tolist()
    matrix = torch.cat((to_convention(pose, convention), torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)))
    to_camera = matrix if convention.endswith("w2c") else torch.linalg.inv(matrix)
    inside = (to_camera @ torch.cat((point, torch.ones(1, dtype=torch.float64))))[:3].tolist()
    expected = (right, -up, -backwards) if convention.startswith("opencv") else (right, up, backwards)
    assert inside == pytest.approx(expected)
    torch.testing.assert_close(from_convention(matrix[:3], convention), pose)


@pytest.mark.parametrize("true", CONVENTIONS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_convention_of_poses_is_detected(true, noise):
    matrices = to_convention(_noisy(noise=noise), true)
    for read_as in CONVENTIONS:
        assert likely_convention(from_convention(matrices, read_as), read_as) == true


@pytest.mark.parametrize("true", CONVENTIONS)
def test_cameras_look_away_if_the_convention_is_wrong(true):
    matrices = to_convention(cameras(8), true)
    away = {read_as: look_away(from_convention(matrices, read_as)) for read_as in CONVENTIONS}
    assert not away[true]
    assert all(away[read_as] for read_as in CONVENTIONS if read_as != true)


def test_axes_meet_at_the_nearest_point():
    meeting = convergence(_noisy(40, 0.0))
    torch.testing.assert_close(meeting.point, torch.tensor([0.5, 0.0, 0.2], dtype=torch.float64))
    torch.testing.assert_close(meeting.depths, (_noisy(40, 0.0)[:, :, 3] - meeting.point).norm(dim=-1))
    assert meeting.deviation < 1e-6


def test_parallel_cameras_show_no_convention():
    poses = cameras(1).expand(4, -1, -1).clone()
    poses[:, 0, 3] += torch.arange(4)
    assert convergence(poses) is None
    assert not look_away(poses)
    assert likely_convention(poses, "opengl") is None
    assert convergence(cameras(1)) is None
