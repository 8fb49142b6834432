"""Ray casting of meshes: geometry, coverage of pixels, and shading."""

import math

import numpy as np
import pytest
import torch
import trimesh
from coordinates import pixel_rays

from datamodules.cameras import centred_intrinsics, focal_length, look_at, orbit
from datamodules.scenes.raycast import Caster
from datamodules.storage.meshes import Mesh

FOCAL = focal_length(math.radians(45), 40)
LIGHT = np.array((-0.5, -0.3, 0.8)) / np.linalg.norm((-0.5, -0.3, 0.8))


def _mesh(parts):
    """Return the mesh of (trimesh, colour) pairs."""
    corners = np.concatenate([part.triangles for part, _ in parts]).astype(np.float32)
    colours = np.concatenate([np.tile(np.float32(colour), (len(part.faces), 3, 1)) for part, colour in parts])
    return Mesh(corners, colours)


def _ball(centre, radius=0.25):
    ball = trimesh.creation.icosphere(2, radius)
    ball.apply_translation(centre)
    return ball


def _box(sides=(1.0, 1.2, 0.8), flipped=False):
    box = trimesh.creation.box(sides)
    if flipped:
        box.invert()
    return box


def _views(caster, poses, size=40, **options):
    """Return rendered RGBA views as integers."""
    intrinsics = centred_intrinsics(torch.full((len(poses), 2), FOCAL * size / 40), (size, size))
    return caster.render(poses, intrinsics, (size, size), **options).int()


def _middle(mask):
    """Return the mean row and column of a mask."""
    rows, columns = mask.nonzero().double().mean(0).tolist()
    return rows, columns


def test_images_are_upright_and_not_mirrored():
    caster = Caster(_mesh([(_ball((0, 0, 1)), (1, 0, 0)), (_ball((1, 0, 0)), (0, 0, 1))]))
    front, behind, above = _views(caster, look_at(torch.tensor([[0.0, -4, 0], [0, 4, 0], [0, 0, 4]])))
    red, blue = ((view[0] > 0) & (view[2] == 0) & (view[3] > 0) for view in (front, behind))
    assert _middle(red)[0] < 10  # +z is in the upper half of the image, at the centre of its columns
    assert _middle(red)[1] == pytest.approx(19.5, abs=0.3)
    right = (front[2] > 0) & (front[0] == 0)
    assert _middle(right) == pytest.approx((19.5, 19.5 + FOCAL / 4), abs=0.5)
    left = (behind[2] > 0) & (behind[0] == 0)
    assert _middle(left) == pytest.approx((19.5, 19.5 - FOCAL / 4), abs=0.5)
    assert _middle((above[2] > 0) & (above[0] == 0))[1] > 25
    assert blue.any()


def _naive(mesh, ray):
    """Return the depth and colour of the nearest intersection of a ray with triangles, computed in a loop."""
    origin, direction = ray[:3], ray[3:]
    nearest, colour = math.inf, None
    for corners, paints in zip(mesh.corners.astype(float), mesh.colours.astype(float), strict=True):
        first, second = corners[1] - corners[0], corners[2] - corners[0]
        matrix = np.stack((first, second, -direction), axis=1)
        if abs(np.linalg.det(matrix)) < 1e-12:
            continue
        right, left, depth = np.linalg.solve(matrix, origin - corners[0])
        if min(right, left, 1 - right - left, depth) >= 0 and depth < nearest:
            normal = np.cross(first, second) / np.linalg.norm(np.cross(first, second))
            normal = -normal if normal @ direction > 0 else normal
            paint = (1 - right - left) * paints[0] + right * paints[1] + left * paints[2]
            nearest, colour = depth, paint * (0.25 + 0.75 * (1 + normal @ LIGHT) / 2)
    return nearest, colour


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_images_and_depths_match_a_naive_ray_caster(samples):
    random = np.random.default_rng(1)
    mesh = Mesh(random.normal(size=(7, 3, 3)).astype(np.float32), random.random((7, 3, 3)).astype(np.float32))
    pose, intrinsics = orbit(5, 4.0, 20.0)[1:2], torch.tensor([[9.0, 8.0, 5.5, 3.0]])
    shape = (7, 9)
    [image] = Caster(mesh).render(pose, intrinsics, shape, samples=samples).double()
    [depth] = Caster(mesh).depth(pose, intrinsics, shape)
    rays = pixel_rays(pose[0].double(), samples * intrinsics[0].double(), [samples * side for side in shape])
    hits = [_naive(mesh, ray) for ray in rays.numpy()]
    cells = np.array([colour if colour is not None else np.full(3, np.nan) for _, colour in hits])
    cells = cells.reshape(7, samples, 9, samples, 3).swapaxes(1, 2).reshape(7, 9, -1, 3)
    covered = ~np.isnan(cells[..., 0])
    assert 0.1 < covered.mean() < 0.9
    assert np.array_equal(image[3].numpy(), np.round(covered.mean(-1) * 255))
    visible = covered.any(-1)
    expected = 255 * np.nansum(cells, axis=2)[visible] / covered.sum(-1)[visible][:, None]
    assert np.abs(image[:3].permute(1, 2, 0).numpy()[visible] - expected).max() <= 0.51
    assert (image[:3].permute(1, 2, 0).numpy()[~visible] == 255).all()
    if samples == 1:
        expected_depths = np.array([nearest for nearest, _ in hits]).reshape(shape)
        assert np.allclose(depth.numpy(), expected_depths, atol=1e-4)


def test_half_covered_pixels_have_half_alpha_and_full_colour():
    wall = trimesh.Trimesh([[-9, 0, -9], [0, 0, -9], [0, 0, 9], [-9, 0, 9]], [[0, 1, 2], [0, 2, 3]], process=False)
    caster = Caster(_mesh([(wall, (1, 1, 1))]))
    pose = look_at(torch.tensor([[0.0, -4, 0]]))
    [image] = caster.render(pose, torch.tensor([[5.0, 5.0, 2.5, 2.5]]), (5, 5)).int()
    assert image[3, 0].tolist() == [255, 255, 128, 0, 0]
    assert image[0, 0, 0] == image[0, 0, 2]


def test_shading_does_not_depend_on_the_camera():
    caster = Caster(_mesh([(_box(), (1, 1, 1))]))
    levels = set()
    for elevation in (10.0, 30.0, 60.0):
        images = _views(caster, orbit(12, 4.0, elevation), samples=1)
        levels |= set(images[:, 0][images[:, 3] == 255].unique().tolist())
    normals = np.concatenate((np.eye(3), -np.eye(3)[:2]))  # the bottom is not visible from above
    assert levels == {round(255 * (0.25 + 0.75 * (1 + normal @ LIGHT) / 2)) for normal in normals}
    assert len(levels) == 5


def test_shading_does_not_depend_on_the_orientation_of_faces():
    poses = orbit(5, 4.0, 35.0)
    expected, actual = (_views(Caster(_mesh([(_box(flipped=flip), (0.5, 1, 0))])), poses) for flip in (False, True))
    assert torch.equal(actual, expected)


def test_background_is_white_and_transparent_and_degenerate_faces_are_ignored():
    mesh = Mesh(np.zeros((2, 3, 3), np.float32), np.ones((2, 3, 3), np.float32))
    [image] = _views(Caster(mesh), orbit(1))
    assert (image[:3] == 255).all()
    assert (image[3] == 0).all()


def test_objects_of_radius_1_4_fit_into_the_minimum_field_of_view():
    ball = trimesh.creation.icosphere(4, 1.4)
    angle = 2 * math.asin(1.4 / 4)
    intrinsics = centred_intrinsics(torch.full((1, 2), focal_length(angle, 64)), (64, 64))
    [image] = Caster(_mesh([(ball, (1, 1, 1))])).render(orbit(1), intrinsics, (64, 64), samples=1)
    edge = torch.cat((image[3, 0], image[3, -1], image[3, :, 0], image[3, :, -1]))
    assert 0 < int((edge > 0).sum()) < 64  # touches the edges near their centres
    assert not image[3, [0, 0, -1, -1], [0, -1, 0, -1]].any()
