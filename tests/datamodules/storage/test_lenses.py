"""Lenses: intrinsics from every combination of keys, other lenses refused, and distortion undone."""

import math

import numpy as np
import pytest
import torch

from datamodules.storage.lenses import Lens, merged, read_lens, undistorted

SHAPE = (30, 40)
BARREL = (-0.3, 0.08, 0.002, -0.001, 0.01)
INTRINSICS = (50.0, 45.0, 21.5, 13.0)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"camera_angle_x": 2 * math.atan(0.5)}, (40, 40, 20, 15)),
        ({"camera_angle_y": 2 * math.atan(0.5)}, (30, 30, 20, 15)),
        ({"camera_angle_x": 2 * math.atan(0.5), "camera_angle_y": 2 * math.atan(1.5)}, (40, 10, 20, 15)),
        ({"fl_x": 50, "camera_angle_x": 1.0, "camera_angle_y": 1.0}, (50, 50, 20, 15)),
        ({"fl_y": 50.0}, (50, 50, 20, 15)),
        ({"fl_x": 50, "fl_y": 60, "cx": 22.5, "cy": -3, "w": 40, "h": 30}, (50, 60, 22.5, -3)),
        ({"camera_angle_x": 2 * math.atan(0.5), "w": 80, "h": 60, "cx": 30, "cy": 40}, (40, 40, 15, 20)),
    ],
)
def test_intrinsics_follow_from_the_keys(facts, expected):
    lens = read_lens(facts, SHAPE, "scene")
    assert lens.intrinsics == pytest.approx(expected)
    assert not any(lens.distortion)


def test_keys_of_a_frame_replace_shared_ones():
    shared = {"fl_x": 50, "fl_y": 51, "cx": 20, "k1": 0.1, "frames": []}
    assert merged(shared, {"camera_angle_x": 1.0, "cy": 9}) == {"camera_angle_x": 1.0, "cx": 20, "cy": 9, "k1": 0.1}
    assert merged(shared, {"fl_x": 60, "file_path": "a"}) == {"fl_x": 60, "cx": 20, "k1": 0.1}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"camera_model": "OPENCV_FISHEYE", "k1": 0.05},
            "scene: camera_model 'OPENCV_FISHEYE' is not supported; .* Undistort",
        ),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model 'EQUIRECTANGULAR' is not supported"),
        ({"camera_model": "ORTHOPHOTO"}, "camera_model 'ORTHOPHOTO' is not supported"),
        ({"camera_model": ["OPENCV"]}, "camera_model .* is not supported"),
        ({"is_fisheye": True}, "is_fisheye is True, which describes a fisheye"),
        ({"k4": 0.1}, "k4 is 0.1, which describes"),
        (
            {"camera_model": "PINHOLE", "k1": 0.1},
            "camera_model PINHOLE has no k1: set camera_model to OPENCV, or remove it",
        ),
        ({"k1": "0.1"}, "k1 is '0.1'; it must be a number"),
        ({"k1": math.nan}, "k1 is nan; it must be a number"),
        ({"k1": -3.0}, "k1 -3, .* fold the image before its corners"),
        ({"cx": 0.5}, "cx is 0.5, which seems to be a fraction of 40 pixels: give it in pixels, as 20"),
        ({"cx": True}, "cx is True; it must be a number"),
        ({"w": 80}, "w is 80, but the images have 30 x 40 pixels"),
    ],
)
def test_other_lenses_are_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        read_lens({"fl_x": 50} | facts, SHAPE, "scene")


def test_unused_keys_of_other_lenses_are_accepted():
    facts = {"fl_x": 50, "camera_model": "PINHOLE", "k1": 0, "k4": 0.0, "is_fisheye": False}
    assert not any(read_lens(facts, SHAPE, "scene").distortion)
    facts = {"fl_x": 50} | dict(zip(("k1", "k2", "p1", "p2", "k3"), BARREL, strict=True))
    assert read_lens(facts, SHAPE, "scene") == Lens((50, 50, 20, 15), BARREL)


def _forward(column, row, intrinsics, distortion):
    """Return where the lens projects the ray of a pixel, both with the centre of the first pixel at 0.5."""
    focal_x, focal_y, centre_x, centre_y = intrinsics
    k1, k2, p1, p2, k3 = distortion
    x, y = (column - centre_x) / focal_x, (row - centre_y) / focal_y
    square = x * x + y * y
    radial = 1 + k1 * square + k2 * square**2 + k3 * square**3
    distorted_x = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x)
    distorted_y = y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y
    return focal_x * distorted_x + centre_x, focal_y * distorted_y + centre_y


def _naive(image, intrinsics, distortion):
    """Return an undistorted image by a loop over pixels."""
    height, width = image.shape[1:]
    levels = image.numpy().astype(float)
    result = np.zeros_like(levels)
    for row in range(height):
        for column in range(width):
            x, y = (place - 0.5 for place in _forward(column + 0.5, row + 0.5, intrinsics, distortion))
            x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            across, down = x - left, y - top
            upper = (1 - across) * levels[:, top, left] + across * levels[:, top, left + 1]
            lower = (1 - across) * levels[:, top + 1, left] + across * levels[:, top + 1, left + 1]
            result[:, row, column] = (1 - down) * upper + down * lower
    return result


@pytest.mark.parametrize("distortion", [BARREL, (0.25, 0.1, -0.003, 0.002, 0.0)], ids=["barrel", "pincushion"])
def test_images_are_undistorted_as_by_a_loop(distortion):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8))
    actual = undistorted(image, torch.tensor(INTRINSICS), torch.tensor(distortion))
    expected = _naive(image, INTRINSICS, torch.tensor(distortion).tolist())
    assert actual.dtype == torch.uint8
    assert np.abs(actual.numpy() - expected).max() <= 0.51
    assert np.abs(image.numpy().astype(float) - expected).mean() > 10


def test_straight_lines_become_straight():
    rows, columns = np.mgrid[:60, :80] + 0.5
    intrinsics, distortion = (70.0, 70.0, 40.0, 30.0), (-0.3, 0.08, 0.0, 0.0, 0.0)
    smooth = np.zeros((60, 80))
    for column in np.linspace(-20, 100, 400):  # the image of the line at row 12.3 of the pinhole camera
        x, y = _forward(column, 12.3, intrinsics, distortion)
        smooth = np.maximum(smooth, np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 2))
    image = torch.from_numpy(255 * smooth).round().to(torch.uint8).expand(3, -1, -1)
    lines = [
        (levels * rows).sum(0)[5:75] / levels.sum(0)[5:75]
        for levels in (
            image[0].double().numpy(),
            undistorted(image, torch.tensor(intrinsics), torch.tensor(distortion))[0].double().numpy(),
        )
    ]
    assert np.ptp(lines[0]) > 1
    assert np.ptp(lines[1]) < 0.1
    assert lines[1].mean() == pytest.approx(12.3, abs=0.05)


def test_images_without_distortion_are_unchanged():
    image = torch.randint(256, (3, 5, 6), dtype=torch.uint8)
    assert torch.equal(undistorted(image, torch.tensor(INTRINSICS), torch.zeros(5)), image)
