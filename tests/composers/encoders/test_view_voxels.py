"""Feature maps and voxels of posed views."""

import pytest
import torch
from scene_cameras import cameras

from composers.encoders import ViewFeatures, ViewMaps, ViewVoxels
from composers.encoders.view_features import pixels
from composers.networks import TensorSpec
from datamodules.batch import Views
from datamodules.cameras import project


def _views(count=3, size=16, instances=2, centre=None):
    """Return posed random images."""
    poses, intrinsics = cameras(count, size, centre)
    images = torch.rand(instances, count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Views(images, poses.expand(instances, -1, -1, -1), intrinsics.expand(instances, -1, -1))


@pytest.fixture
def voxels():
    """Return a small encoder."""
    torch.manual_seed(0)
    return ViewVoxels((1, 3, 16, 16), grid_size=8, width=4, view_width=4).eval()


def test_maps_have_half_of_the_resolution():
    encoder = ViewFeatures((1, 3, 16, 16), width=4)
    views = _views(2)._replace(images=torch.rand(2, 2, 3, 18, 15))
    assert encoder.maps(views).shape == (2, 2, 4, 9, 8)
    assert encoder.layout(views).grid == (2, 9, 8)
    features = encoder(views)
    assert features.tokens.shape == (2, 2 * 9 * 8, 4)
    assert features.signal is views
    torch.testing.assert_close(features.tokens.mT.unflatten(-1, (2, 9, 8)).transpose(1, 2), encoder.maps(views))


def test_white_pixels_are_marked():
    views = _views(1)
    views.images[0, 0, :, 3, 4] = 1.0
    marked = pixels(views)
    assert marked[0, 0, :, 3, 4].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert marked[0, 0, 3].sum() == 16 * 16 - 1


def test_a_voxel_reads_the_pixels_that_see_it(voxels):
    views = _views(3, centre=(7.0, 9.0))
    read = voxels._read(views)
    assert read.shape == (2, 2 * (4 + 4) + 4, 8, 8, 8)
    x, y, z = 5, 2, 6
    centre = 1.4 * (2 * (torch.tensor([x, y, z]) + 0.5) / 8 - 1)
    torch.testing.assert_close(read[0, -3:, x, y, z], centre / 1.4)
    seen, points = project(centre[None], views.poses[0], views.intrinsics[0])
    colours = pixels(views)[0]
    expected = []
    for view in range(3):  # bilinear, by hand
        row, column = (seen[view, 0] - 0.5).tolist()
        top, left = int(row), int(column)
        down, right = row - top, column - left
        corners = colours[view, :, top : top + 2, left : left + 2]
        share = torch.tensor([[(1 - down) * (1 - right), (1 - down) * right], [down * (1 - right), down * right]])
        expected.append((corners * share).sum((1, 2)))
    values = torch.stack(expected)
    torch.testing.assert_close(read[0, 4:8, x, y, z], values.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(read[0, 12:16, x, y, z], values.amax(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(read[0, -4, x, y, z], ((-points[:, 0, 2] - 4.0) / 1.4).mean(), atol=1e-5, rtol=0)


def test_the_order_of_the_views_does_not_matter(voxels):
    views, order = _views(3), [2, 0, 1]
    permuted = Views(*(tensor[:, order] for tensor in views))
    with torch.no_grad():
        torch.testing.assert_close(voxels(permuted).tokens, voxels(views).tokens, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("count", "size"), [(1, 16), (4, 16), (2, 20)])
def test_views_may_have_any_number_and_size(voxels, count, size):
    features = voxels(_views(count, size))
    assert features.tokens.shape == (2, 512, 4)
    assert features.grid == (8, 8, 8)


@pytest.mark.parametrize(
    "arguments",
    [{"signal_shape": None}, {"signal_shape": (3, 8, 8)}, {"grid_size": 6}, {"width": 6}, {"half_extent": 0.0}],
    ids=str,
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"signal_shape|multiples of 4|half_extent is 0.0"):
        ViewVoxels(**({"signal_shape": (1, 3, 8, 8)} | arguments))


def test_other_signals_are_refused(voxels):
    with pytest.raises(ValueError, match="posed views"):
        voxels(torch.rand(2, 3, 8, 8))


def test_maps_and_cameras_are_read_out():
    encoder, readout = ViewFeatures((1, 3, 16, 16), 4), ViewMaps()
    specs = {"maps": TensorSpec((6, -1, -1, -1), torch.Tensor), "cameras": TensorSpec((3, 16), torch.Tensor)}
    readout.connect(encoder, specs)
    latents = readout(encoder(_views(3)))
    assert {name: latent.shape for name, latent in latents.items()} == {"maps": (2, 6, 3, 8, 8), "cameras": (2, 3, 16)}
    with pytest.raises(ValueError, match=r"There are 2 support views, and this model takes 3"):
        readout(encoder(_views(2)))
    with pytest.raises(ValueError, match="ViewMaps returns latents maps and cameras"):
        ViewMaps().connect(encoder, {"map": specs["maps"]})
