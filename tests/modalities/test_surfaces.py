"""Surfaces against closed forms: radius and orientation of a ball, closure at the cube, and PLY files."""

import math

import numpy as np
import pytest
import torch
import trimesh
from objects import Balls, Fields, ball

from composers.rendering import LightFieldRenderer, VolumeRenderer
from modalities.surfaces import half_opaque, surface
from modalities.triangle_mesh import TriangleMesh, save_mesh


class Round(Fields):
    """A field with density 100 x (0.9 - radius), and a colour that depends on the position."""

    def bind(self, modulations):
        def field(points):
            raw = torch.cat((2 * points, 100 * (0.9 - points.norm(dim=-1, keepdim=True))), dim=-1)
            return raw.unsqueeze(0)

        return field


def _composer(network=None, **options):
    composer = Balls(VolumeRenderer(2.0, 6.0, **options))
    composer.network = network or Round()
    return composer


def _solid(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@pytest.mark.parametrize(("level", "radius"), [(20.0, 0.7), (40.0, 0.5)])
def test_level_sets_of_a_ball_are_spheres(level, radius):
    mesh = surface(*ball(_composer(), 1.0), bound=1.2, resolution=49, level=level).mesh
    distances = np.linalg.norm(mesh.vertices, axis=1)
    assert np.abs(distances - radius).max() < 2e-3
    solid = _solid(mesh)
    assert solid.is_watertight
    assert solid.is_winding_consistent
    assert solid.euler_number == 2
    assert solid.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.02)  # negative if faces pointed inwards
    thick = solid.area_faces > 1e-7  # normals of slivers are inaccurate
    outwards = (solid.face_normals * solid.triangles_center).sum(1)[thick]
    assert thick.mean() > 0.5
    assert (outwards > 0.9 * radius).all()


def test_vertices_and_colours_are_in_world_coordinates():
    """A box with a different size along every axis, and colours that encode the position."""

    class Box(Round):
        def bind(self, modulations):
            centre, half = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.6, 0.4, 0.2])

            def field(points):
                inside = (half - (points - centre).abs()).amin(-1, keepdim=True)
                return torch.cat((2 * points, 1000 * inside + 30), dim=-1).unsqueeze(0)

            return field

    mesh, colours = surface(*ball(_composer(Box()), 1.0), bound=1.0, resolution=41, level=30.0)
    assert mesh.vertices.min(0) == pytest.approx([-0.3, -0.6, -0.1], abs=0.03)
    assert mesh.vertices.max(0) == pytest.approx([0.9, 0.2, 0.3], abs=0.03)
    expected = 255 / (1 + np.exp(-2 * mesh.vertices.astype(float)))
    assert np.abs(colours - expected).max() <= 0.51
    assert (mesh.vertices.dtype, mesh.faces.dtype, colours.dtype) == (np.float32, np.int32, np.uint8)


def test_surfaces_are_closed_at_the_sides_of_the_cube():
    mesh = surface(*ball(_composer(), 1.0), bound=0.5, resolution=21, level=20.0).mesh
    solid = _solid(mesh)
    assert solid.is_watertight
    assert solid.volume == pytest.approx(1.0, rel=0.25)  # the cube, a step larger, without its corners
    assert np.abs(mesh.vertices).max() <= 0.55 + 1e-6


def test_default_level_transmits_half_of_the_light_between_samples():
    renderer = VolumeRenderer(1.0, 5.0, samples_per_ray=101)
    assert math.exp(-half_opaque(renderer) * 0.04) == pytest.approx(0.5)
    composer = _composer(samples_per_ray=101)
    mesh = surface(*ball(composer, 1.0), bound=1.2, resolution=33).mesh
    expected = 0.9 - half_opaque(composer.renderer) / 100
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(expected, abs=2e-3)
    with pytest.raises(ValueError, match="no near and far, so there is no default level: pass level"):
        half_opaque(VolumeRenderer())


def test_softplus_density_is_used():
    """At the edge of the ball, where ReLU has density 0, softplus has log 2."""
    composer = _composer(density="softplus")
    mesh = surface(*ball(composer, 1.0), bound=1.2, resolution=65, level=math.log(2)).mesh
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(0.9, abs=0.01)


def test_result_does_not_depend_on_max_memory():
    expected, actual = (
        surface(*ball(_composer(), 1.0), resolution=24, level=20.0, max_memory=memory) for memory in (500, 0.1)
    )
    for left, right in zip((*expected.mesh, expected.colours), (*actual.mesh, actual.colours), strict=True):
        assert np.array_equal(left, right)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"no surface of density 95 within 1\.5 of the origin, .* 0 to \d\d:"):
        surface(*ball(_composer(), 1.0), resolution=16, level=95)
    with pytest.raises(ValueError, match="LightFieldRenderer has no density"):
        surface(*ball(Balls(LightFieldRenderer()), 1.0))
    with pytest.raises(ValueError, match=r"resolution is 1, bound 1\.5, level None"):
        surface(*ball(_composer(), 1.0), resolution=1)
    with pytest.raises(ValueError, match="level -1"):
        surface(*ball(_composer(), 1.0), level=-1)
    with pytest.raises(ValueError, match="max_memory is 1e-05 MB, too little"):
        surface(*ball(_composer(), 1.0), max_memory=1e-5)


@pytest.mark.parametrize("suffix", ["ply", "glb", "obj"])
def test_coloured_meshes_round_trip(tmp_path, suffix):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
    colours = np.array([[1, 2, 3], [40, 50, 60], [255, 0, 128], [7, 8, 9]], np.uint8)
    save_mesh(TriangleMesh(corners, faces), tmp_path / "new" / f"solid.{suffix}", colours)
    mesh = trimesh.load(tmp_path / "new" / f"solid.{suffix}", process=False, force="mesh")
    assert np.array_equal(mesh.vertices, corners)
    assert np.array_equal(mesh.faces, faces)
    assert np.array_equal(mesh.visual.vertex_colors[:, :3], colours)
    assert mesh.volume == pytest.approx(1.0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"solid.{suffix}"]
