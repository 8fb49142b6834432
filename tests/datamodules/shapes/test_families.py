"""Procedural shapes: addressed, varied, normalised, upright, with the distance of their mesh."""

from typing import get_args

import igl
import numpy as np
import pytest

from datamodules.shapes.families import _GLASS, _HEADLIGHT, _TYRE, FAMILIES, Family, generate
from datamodules.shapes.parts import RADIUS

ADDRESSES = range(40)


@pytest.mark.parametrize("family", get_args(Family))
def test_shapes_are_normalised_and_have_an_inside(family: Family) -> None:
    for index in ADDRESSES:
        solid = generate(family, 0, index)
        vertices = np.asarray(solid.mesh().vertices)
        np.testing.assert_allclose(vertices.min(0) + vertices.max(0), 0, atol=1e-9)
        assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(RADIUS)
        positions, normals = solid.surface(64, np.random.default_rng(0))
        assert (solid.distance(positions - 1e-3 * normals) < 0).mean() > 0.9


@pytest.mark.parametrize("family", get_args(Family))
def test_an_address_gives_one_shape_and_others_differ(family: Family) -> None:
    again, first, other = (generate(family, 3, index).mesh() for index in (7, 7, 8))
    np.testing.assert_array_equal(again.vertices, first.vertices)
    np.testing.assert_array_equal(again.visual.face_colors, first.visual.face_colors)
    assert other.vertices.shape != first.vertices.shape or not np.allclose(other.vertices, first.vertices)


@pytest.mark.parametrize("family", get_args(Family))
def test_the_sign_of_the_distance_is_that_of_the_winding_number_of_the_mesh(family: Family) -> None:
    for index in range(4):
        solid = generate(family, 1, index)
        points = np.random.default_rng(index).uniform(-1, 1, (500, 3))
        distances = solid.distance(points)
        mesh = solid.mesh()
        winding = igl.fast_winding_number(np.asarray(mesh.vertices), np.asarray(mesh.faces), points)
        clear = np.abs(distances) > 0.01  # meshes of curved parts lie inside of these
        np.testing.assert_array_equal(winding[clear] > 0.5, distances[clear] < 0)


def test_every_family_is_listed() -> None:
    assert set(FAMILIES) == set(get_args(Family))


def test_chairs_stand_upright_with_the_back_behind() -> None:
    depths = []
    for index in range(60):
        vertices, _ = generate("chairs", 0, index).surface(400, np.random.default_rng(index))
        low, high = vertices[:, 1].min(), vertices[:, 1].max()
        top = vertices[vertices[:, 1] > low + 0.85 * (high - low)]
        depths.append(top[:, 2].mean() / (vertices[:, 2].max() - vertices[:, 2].min()))
    assert np.median(depths) < -0.2  # the tops of most chairs are backs, at negative z
    assert max(depths) < 0.25  # and no chair has it in front


def test_cars_drive_along_z_on_four_wheels() -> None:
    for index in ADDRESSES:
        solid = generate("cars", 0, index)
        vertices = np.asarray(solid.mesh().vertices)
        width, height, length = vertices.max(0) - vertices.min(0)
        assert length > max(width, height)
        tyres = [part for part in solid.parts if part.colour == _TYRE]
        assert len(tyres) == 4
        low = vertices[:, 1].min()
        for tyre in tyres:
            assert tyre.position[1] - low == pytest.approx(tyre.part.top * tyre.scale)
        lights = np.mean([part.position[2] for part in solid.parts if part.colour == _HEADLIGHT])
        assert lights > 0.8 * vertices[:, 2].max()  # the front is at positive z


def test_cars_have_windows_on_all_sides_of_another_colour() -> None:
    for index in ADDRESSES:
        solid = generate("cars", 0, index)
        paint = solid.parts[0].colour
        glass = [part for part in solid.parts if part.colour in _GLASS]
        assert len(glass) == 2
        assert paint not in _GLASS
        for part in glass:  # some of it is on the surface
            positions = np.asarray(part.mesh().sample(400, seed=index))
            assert (np.abs(solid.distance(positions)) < 1e-6).mean() > 0.02


def test_chairs_have_many_kinds() -> None:
    counts = {len(generate("chairs", 0, index).parts) for index in range(60)}
    assert len(counts) > 8


@pytest.mark.parametrize("family", get_args(Family))
def test_points_on_the_surface_have_an_outside_and_parts_leave_no_walls(family: Family) -> None:
    for index in ADDRESSES:
        solid = generate(family, 0, index)
        positions, normals = solid.surface(300, np.random.default_rng(0))
        assert (solid.distance(positions + 1e-3 * normals) > 0).mean() > 0.97  # less at concave edges
