"""Procedural shapes: addressed, varied, normalised, upright."""

from typing import get_args

import numpy as np
import pytest

from datamodules.shapes.families import FAMILIES, Family, generate
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


def test_chairs_have_many_kinds() -> None:
    counts = {len(generate("chairs", 0, index).parts) for index in range(60)}
    assert len(counts) > 8


@pytest.mark.parametrize("family", get_args(Family))
def test_points_on_the_surface_have_an_outside_and_parts_leave_no_walls(family: Family) -> None:
    for index in ADDRESSES:
        solid = generate(family, 0, index)
        positions, normals = solid.surface(300, np.random.default_rng(0))
        assert (solid.distance(positions + 1e-3 * normals) > 0).mean() > 0.97  # less at concave edges
