"""Networks that read features local in space."""

import pytest
import torch
from scene_cameras import cameras

from composers.networks import PixelAlignedMLP, VoxelMLP
from composers.networks.interpolation import gathered
from composers.networks.pixel_aligned_mlp import camera_numbers
from datamodules.cameras import project
from datamodules.domain import Rays


@pytest.fixture
def voxel_mlp():
    """Return a small network and its modulations."""
    torch.manual_seed(0)
    return VoxelMLP(3, 4, feature_dim=5, hidden_dim=6, half_extent=2.0), {"voxels": torch.randn(2, 5, 3, 4, 6)}


def test_voxels_are_read_in_the_order_of_the_axes(voxel_mlp):
    network, modulations = voxel_mlp
    points = torch.rand(2, 7, 3) * 4 - 2
    expected = network.mlp(gathered(modulations["voxels"], points / 2.0))
    torch.testing.assert_close(network(points, modulations), expected)
    shifted = {"voxels": torch.zeros(1, 5, 2, 2, 2)}
    shifted["voxels"][0, 0, 1] = 1.0  # the half with positive x
    ends = torch.tensor([[1.5, 0.0, 0.0], [-1.5, 0.0, 0.0], [0.0, 1.5, 0.0], [0.0, 0.0, 1.5]])
    features = gathered(shifted["voxels"], ends[None] / 2.0)[0, :, 0]
    assert features.tolist() == [1.0, 0.0, 0.5, 0.5]


def test_shared_points_equal_points_of_every_instance(voxel_mlp):
    network, modulations = voxel_mlp
    points = torch.rand(7, 3)
    torch.testing.assert_close(network(points, modulations), network(points.expand(2, -1, -1), modulations))


def test_a_box_may_have_three_extents(voxel_mlp):
    network, modulations = voxel_mlp
    edges = (1.0, 2.0, 0.5)
    other = VoxelMLP(3, 4, feature_dim=5, hidden_dim=6, half_extent=edges)
    other.load_state_dict(network.state_dict())
    points = torch.rand(7, 3) - 0.5
    torch.testing.assert_close(other(points * torch.tensor(edges), modulations), network(2.0 * points, modulations))
    with pytest.raises(ValueError, match=r"half_extent is \(1.0, 2.0\)"):
        VoxelMLP(3, 4, half_extent=(1.0, 2.0))


@pytest.mark.parametrize("shape", [(7, 2), (3, 7, 3), (7,)], ids=str)
def test_coordinates_of_another_shape_are_refused(voxel_mlp, shape):
    network, modulations = voxel_mlp
    with pytest.raises(ValueError, match=r"takes points \(N, 3\), or \(2, N, 3\)"):
        network(torch.rand(shape), modulations)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (VoxelMLP, {"coord_dim": 2, "value_dim": 3}, "coord_dim is 2"),
        (VoxelMLP, {"coord_dim": 3, "value_dim": 4, "half_extent": 0.0}, "half_extent is 0.0"),
        (VoxelMLP, {"coord_dim": 3, "value_dim": 4, "num_hidden": 0}, "num_hidden 0"),
        (PixelAlignedMLP, {"coord_dim": 3, "value_dim": 4}, "num_views None"),
        (PixelAlignedMLP, {"coord_dim": 3, "value_dim": 4, "num_views": 1, "hidden_dim": 0}, "hidden_dim 0"),
    ],
)
def test_bad_arguments_are_refused(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


def test_projection_inverts_rays():
    poses, intrinsics = cameras(3, 16, centre=(7.0, 9.5))
    rays = Rays().coords((3, 16, 16), cameras=(poses, intrinsics)).view(3, 256, 6)
    depths = 2 + 3 * torch.rand(3, 256, 1)
    pixels, points = project(rays[..., :3] + depths * rays[..., 3:], poses, intrinsics)
    rows, columns = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(16) + 0.5, indexing="ij")
    torch.testing.assert_close(
        pixels, torch.stack((rows, columns), -1).view(256, 2).expand(3, -1, -1), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(-points[..., 2:], depths, atol=1e-4, rtol=0)


def _aligned():
    """Return a small pixel-aligned network and modulations of two instances with three views."""
    torch.manual_seed(0)
    poses, intrinsics = cameras(3, 16)
    numbers = camera_numbers(poses, intrinsics, (16, 16)).expand(2, -1, -1)
    return PixelAlignedMLP(3, 4, 3, 5, 6), {"maps": torch.randn(2, 5, 3, 8, 8), "cameras": numbers.clone()}


def test_pixel_aligned_features_are_those_where_the_views_see_a_point():
    network, modulations = _aligned()
    poses, intrinsics = cameras(3, 16)
    rays = Rays().coords((3, 16, 16), cameras=(poses, intrinsics)).view(3, 16, 16, 6)
    other = {**modulations, "maps": modulations["maps"].clone()}
    other["maps"][:, :, 1, 4, 2] += 100.0  # the cell of rows 8, 9 and columns 4, 5 of view 1
    inside, outside = (rays[1, row, column] for row, column in ((8, 4), (3, 12)))
    points = torch.stack([ray[:3] + 4.0 * ray[3:] for ray in (inside, outside)])
    with torch.no_grad():
        change = (network(points, other) - network(points, modulations)).abs().amax((0, 2))
    assert change[0] > 1e-3
    assert change[1] < 1e-5


def test_the_order_of_the_views_does_not_matter():
    network, modulations = _aligned()
    order = [2, 0, 1]
    permuted = {"maps": modulations["maps"][:, :, order], "cameras": modulations["cameras"][:, order]}
    points = torch.rand(9, 3)
    torch.testing.assert_close(network(points, permuted), network(points, modulations))


def test_cameras_do_not_depend_on_the_resolution():
    poses, intrinsics = cameras(2, 16)
    torch.testing.assert_close(
        camera_numbers(poses, intrinsics, (16, 16)), camera_numbers(poses, 2 * intrinsics, (32, 32))
    )


def test_gradient_steps_leave_cameras_unchanged():
    network, modulations = _aligned()
    latents = {name: tensor.clone().requires_grad_() for name, tensor in modulations.items()}
    gradients = torch.autograd.grad(network(torch.rand(9, 3), latents).square().sum(), list(latents.values()))
    assert gradients[0].abs().max() > 0
    assert torch.equal(gradients[1], torch.zeros_like(gradients[1]))
