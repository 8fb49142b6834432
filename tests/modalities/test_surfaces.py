"""Surfaces against closed forms: a ball has its radius, its faces look outwards, and files say what was written."""

import math

import numpy as np
import pytest
import torch
import trimesh
from objects import Balls, Fields, radius_of

from composers.rendering import LightFieldRenderer, VolumeRenderer
from modalities.surfaces import SurfaceMesh, half_opaque, save_ply, surface


class Round(Fields):
    """Density 100 x (0.9 - distance), coloured by the place; of two instances the first is asked."""

    def bind(self, modulations):
        def field(points):
            raw = torch.cat((2 * points, 100 * (0.9 - points.norm(dim=-1, keepdim=True))), dim=-1)
            return raw.unsqueeze(0)

        return field


def _composer(inr=None, **options):
    composer = Balls(VolumeRenderer(2.0, 6.0, **options))
    composer.network = inr or Round()
    return composer


def _solid(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@pytest.mark.parametrize(("level", "radius"), [(20.0, 0.7), (40.0, 0.5)])
def test_a_ball(level, radius):
    mesh = surface(_composer(), radius_of(1.0), bound=1.2, resolution=49, level=level)
    distances = np.linalg.norm(mesh.vertices, axis=1)
    assert np.abs(distances - radius).max() < 2e-3
    solid = _solid(mesh)
    assert solid.is_watertight
    assert solid.is_winding_consistent
    assert solid.euler_number == 2
    assert solid.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.02)  # negative if faces looked inwards
    thick = solid.area_faces > 1e-7  # the normal of a sliver says nothing
    outwards = (solid.face_normals * solid.triangles_center).sum(1)[thick]
    assert thick.mean() > 0.5
    assert (outwards > 0.9 * radius).all()


def test_axes_and_colours_are_those_of_the_world():
    """Another size along every axis, and a colour that says where a vertex is."""

    class Box(Round):
        def bind(self, modulations):
            centre, half = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.6, 0.4, 0.2])

            def field(points):
                inside = (half - (points - centre).abs()).amin(-1, keepdim=True)
                return torch.cat((2 * points, 1000 * inside + 30), dim=-1).unsqueeze(0)

            return field

    mesh = surface(_composer(Box()), radius_of(1.0), bound=1.0, resolution=41, level=30.0)
    assert mesh.vertices.min(0) == pytest.approx([-0.3, -0.6, -0.1], abs=0.03)
    assert mesh.vertices.max(0) == pytest.approx([0.9, 0.2, 0.3], abs=0.03)
    wanted = 255 / (1 + np.exp(-2 * mesh.vertices.astype(float)))
    assert np.abs(mesh.colours - wanted).max() <= 0.51
    assert (mesh.vertices.dtype, mesh.faces.dtype, mesh.colours.dtype) == (np.float32, np.int32, np.uint8)


def test_what_leaves_the_cube_is_closed():
    mesh = surface(_composer(), radius_of(1.0), bound=0.5, resolution=21, level=20.0)
    solid = _solid(mesh)
    assert solid.is_watertight
    assert solid.volume == pytest.approx(1.0, rel=0.25)  # the cube, a step larger, without its corners
    assert np.abs(mesh.vertices).max() <= 0.55 + 1e-6


def test_the_usual_level_is_half_a_step_of_light():
    renderer = VolumeRenderer(1.0, 5.0, samples_per_ray=101)
    assert math.exp(-half_opaque(renderer) * 0.04) == pytest.approx(0.5)
    composer = _composer(samples_per_ray=101)
    mesh = surface(composer, radius_of(1.0), bound=1.2, resolution=33)
    wanted = 0.9 - half_opaque(composer.renderer) / 100
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(wanted, abs=2e-3)
    with pytest.raises(ValueError, match="no near and far, from which a level follows: give level"):
        half_opaque(VolumeRenderer())


def test_softplus_has_another_density():
    """Far above 0 both are alike; where ReLU has none softplus has log 2 at the edge."""
    composer = _composer(density="softplus")
    mesh = surface(composer, radius_of(1.0), bound=1.2, resolution=65, level=math.log(2))
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(0.9, abs=0.01)


def test_memory_changes_nothing():
    one, other = (
        surface(_composer(), radius_of(1.0), resolution=24, level=20.0, max_memory=memory) for memory in (500, 0.1)
    )
    for left, right in zip(one, other, strict=True):
        assert np.array_equal(left, right)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"no surface of density 95 within 1\.5 of the middle: .* 0 to 7\d"):
        surface(_composer(), radius_of(1.0), resolution=16, level=95)
    with pytest.raises(ValueError, match="LightFieldRenderer knows no density"):
        surface(Balls(LightFieldRenderer()), radius_of(1.0))
    with pytest.raises(ValueError, match=r"resolution is 1, bound 1\.5, level None"):
        surface(_composer(), radius_of(1.0), resolution=1)
    with pytest.raises(ValueError, match="level -1"):
        surface(_composer(), radius_of(1.0), level=-1)
    with pytest.raises(ValueError, match="max_memory is 1e-05 MB, too little"):
        surface(_composer(), radius_of(1.0), max_memory=1e-5)


def test_a_file_is_the_mesh(tmp_path):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
    colours = np.array([[1, 2, 3], [40, 50, 60], [255, 0, 128], [7, 8, 9]], np.uint8)
    save_ply(SurfaceMesh(corners, faces, colours), tmp_path / "new" / "solid.ply")
    found = trimesh.load(tmp_path / "new" / "solid.ply", process=False)
    assert np.array_equal(found.vertices, corners)
    assert np.array_equal(found.faces, faces)
    assert np.array_equal(found.visual.vertex_colors[:, :3], colours)
    assert found.volume == pytest.approx(1.0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["solid.ply"]
