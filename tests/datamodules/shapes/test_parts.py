"""Primitives and unions: distances against closed forms and triangle meshes, surfaces, normalisation."""

import math

import igl
import numpy as np
import pytest
import trimesh

from datamodules.shapes.parts import (
    RADIUS,
    Arc,
    Capsule,
    Cone,
    Cuboid,
    Part,
    Placed,
    Prism,
    Solid,
    Sphere,
    Torus,
    rotation,
    towards,
)

PARTS: list[Part] = [
    Cuboid((1.0, 0.5, 0.3)),
    Cuboid((1.0, 0.5, 0.3), 0.1),
    Sphere(0.5),
    Capsule(1.0, 0.2),
    Arc(0.6, 0.1, 1.2),
    Arc(0.6, 0.1, 2.6),
    Torus(0.6, 0.15),
    Cone(0.5, 0.2, 0.8),
    Cone(0.2, 0.6, 0.8),
    Cone(0.3, 0.3, 1.0),
    Prism(((-0.4, -0.6), (-0.4, 0.5), (0.1, 0.3), (0.3, -0.4)), 0.7),
    Prism(((-0.4, -0.6), (0.3, -0.4), (-0.4, 0.5)), 0.7),  # the other way around
]


def points(count: int = 2000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3))


def mesh_distance(mesh: trimesh.Trimesh, at: np.ndarray) -> np.ndarray:
    kind = igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
    return igl.signed_distance(at, np.asarray(mesh.vertices), np.asarray(mesh.faces), kind)[0]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_the_distance_is_that_to_the_mesh_up_to_its_flat_faces(part: Part) -> None:
    mesh, at = part.mesh(), points()
    # A mesh with vertices on a curved surface lies inside of it by at most the sagitta of its largest triangle.
    np.testing.assert_allclose(part.distance(at), mesh_distance(mesh, at), atol=0.008)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_meshes_are_closed_oriented_and_have_their_vertices_on_the_surface(part: Part) -> None:
    mesh = part.mesh()
    assert mesh.is_watertight
    assert mesh.volume > 0
    np.testing.assert_allclose(part.distance(np.asarray(mesh.vertices)), 0, atol=1e-9)


def test_a_box_agrees_with_its_mesh_exactly() -> None:
    box = Cuboid((1.0, 0.5, 0.3))
    np.testing.assert_allclose(box.distance(points()), mesh_distance(box.mesh(), points()), atol=1e-12)


@pytest.mark.parametrize(
    ("part", "at", "expected"),
    [
        (Cuboid((2.0, 2.0, 2.0)), (2.0, 2.0, 2.0), math.sqrt(3)),
        (Cuboid((2.0, 2.0, 2.0), 0.5), (2.0, 2.0, 2.0), math.sqrt(3) * 1.5 - 0.5),
        (Cuboid((2.0, 4.0, 2.0)), (0.0, 0.0, 0.0), -1.0),
        (Capsule(2.0, 0.5), (0.0, 3.0, 0.0), 1.5),
        (Torus(1.0, 0.25), (0.0, 0.0, 0.0), 0.75),
        (Arc(1.0, 0.25, math.pi / 2), (0.0, -1.0, 0.0), math.sqrt(2) - 0.25),
        (Cone(1.0, 1.0, 2.0), (0.0, 0.0, 0.0), -1.0),
        (Cone(1.0, 0.0, 1.0), (0.0, 1.5, 0.0), 1.0),
        (Cone(1.0, 0.5, 2.0), (0.0, -3.0, 0.0), 2.0),
        (Prism(((0.0, 0.0), (2.0, 0.0), (0.0, 2.0)), 4.0), (0.0, 0.5, 0.5), -0.5),
        (Prism(((0.0, 0.0), (2.0, 0.0), (0.0, 2.0)), 4.0), (0.0, 2.0, 2.0), math.sqrt(2)),
        (Prism(((0.0, 0.0), (2.0, 0.0), (0.0, 2.0)), 4.0), (3.0, -1.0, 0.5), math.sqrt(2)),
    ],
)
def test_distances_in_closed_form(part: Part, at: tuple[float, float, float], expected: float) -> None:
    assert part.distance(np.array([at]))[0] == pytest.approx(expected, abs=1e-12)


def test_rotation_translation_and_scale_move_a_part() -> None:
    turned = Placed(Cuboid((1.0, 0.2, 0.2)), rotation((0, 0, 1), math.pi / 2), np.array((1.0, 0.0, 0.0)), 2.0)
    assert turned.distance(np.array([[1.0, 0.9, 0.0], [1.0, 1.5, 0.0], [1.5, 0.0, 0.0]])) == pytest.approx(
        [-0.1, 0.5, 0.3]
    )
    mesh = turned.mesh()
    np.testing.assert_allclose(mesh.bounds, [[0.8, -1.0, -0.2], [1.2, 1.0, 0.2]], atol=1e-9)


@pytest.mark.parametrize("direction", [(0, 1, 0), (0, -1, 0), (1, 0, 0), (0.3, -0.4, 2.0)])
def test_towards_turns_the_y_axis(direction: tuple[float, float, float]) -> None:
    turn = towards(np.array(direction, dtype=float))
    np.testing.assert_allclose(turn @ (0, 1, 0), np.array(direction) / np.linalg.norm(direction), atol=1e-9)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(turn) == pytest.approx(1)


def two_boxes() -> Solid:
    wide = Placed(Cuboid((1.0, 0.2, 0.2)), np.eye(3), np.zeros(3), colour=(1.0, 0.0, 0.0))
    tall = Placed(Cuboid((0.2, 1.0, 0.2)), np.eye(3), np.zeros(3))
    return Solid((wide, tall))


def test_a_union_is_exact_outside_and_in_sign_and_a_bound_inside() -> None:
    solid, at = two_boxes(), points(5000) * 0.7
    separate = np.stack([part.distance(at) for part in solid.parts])
    distance = solid.distance(at)
    np.testing.assert_array_equal(distance < 0, (separate < 0).any(0))
    outside = distance > 0
    np.testing.assert_allclose(distance[outside], separate.min(0)[outside])
    corner = np.array([[0.08, 0.08, 0.0]])  # 0.02 inside both boxes; the surface of the union is at (0.1, 0.1)
    assert solid.distance(corner)[0] == pytest.approx(-0.02)
    assert abs(solid.distance(corner)[0]) < 0.02 * math.sqrt(2)


def test_surface_points_lie_on_the_union_with_unit_outward_normals() -> None:
    solid = two_boxes()
    positions, normals = solid.surface(4000, np.random.default_rng(0))
    assert positions.shape == normals.shape == (4000, 3)
    np.testing.assert_allclose(solid.distance(positions), 0, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    assert (solid.distance(positions + 1e-3 * normals) > 0).all()
    assert (solid.distance(positions - 1e-3 * normals) < 0).all()


def test_surface_points_are_uniform() -> None:
    positions, _ = Solid((Placed(Cuboid((2.0, 1.0, 1.0)), np.eye(3), np.zeros(3)),)).surface(
        20000, np.random.default_rng(0)
    )
    ends = (np.abs(np.abs(positions[:, 0]) - 1) < 1e-9).mean()
    assert ends == pytest.approx(2 / 10, abs=0.01)  # two of ten unit squares


def test_a_part_inside_another_has_no_surface() -> None:
    inner = Placed(Sphere(0.2), np.eye(3), np.zeros(3))
    outer = Placed(Sphere(0.5), np.eye(3), np.zeros(3))
    positions, _ = Solid((inner, outer)).surface(500, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(positions, axis=1), 0.5, atol=1e-9)


def test_the_mesh_carries_the_colours_of_its_parts() -> None:
    colours = two_boxes().mesh().visual.face_colors
    assert (colours[:12] == (255, 0, 0, 255)).all()
    assert not (colours[12:] == (255, 0, 0, 255)).all(axis=1).any()


def test_normalisation_centres_the_box_and_scales_the_farthest_vertex() -> None:
    moved = Solid(tuple(part._replace(position=part.position * 0 + (5.0, 2.0, 1.0)) for part in two_boxes().parts))
    vertices = np.asarray(moved.normalized().mesh().vertices)
    np.testing.assert_allclose(vertices.min(0) + vertices.max(0), 0, atol=1e-9)
    assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(RADIUS)
