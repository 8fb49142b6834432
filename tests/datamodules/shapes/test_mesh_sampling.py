"""Signed distances from meshes: closed forms, ray parity, damaged meshes, and random numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
import trimesh
from program import REPOSITORY
from solids import DIRECTIONS, box_distance, convex_distance, is_inside, triangle_distance

from datamodules.shapes.mesh_repair import Triangulation, filled, merged, oriented
from datamodules.shapes.mesh_sampling import (
    MARGIN,
    MeshSolid,
    SamplingSettings,
    sample_mesh,
    sample_solid,
    solid_from,
    solid_of,
)

MESHES = REPOSITORY / "samples" / "meshes"
WATERTIGHT = ("chair_chair", "chair_chair2", "chair_foldingChair", "lamp_desklamp")
SMALL = SamplingSettings(samples=3000, surface=500)
TETRAHEDRON = np.array([(1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)]) / 2
OCTAHEDRON = np.concatenate((np.eye(3), -np.eye(3))) * (0.9, 0.7, 0.5)


def _box(half, centre=(0, 0, 0)):
    """Return the corners of the triangles of a box."""
    return trimesh.creation.box(2 * np.asarray(half)).triangles + np.asarray(centre)


def _hull(points):
    """Return the corners of the triangles of a convex hull."""
    return np.asarray(trimesh.convex.convex_hull(np.asarray(points, dtype=float)).triangles)


def _points(count=20000, seed=0):
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (count, 3))


def _sphere(radius, subdivisions=2):
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius).triangles


def _error(corners, expected, points, **options):
    """Return the largest error of the distances to a solid."""
    actual, doubt = solid_from(np.asarray(corners, dtype=float), **options).signed_distance(points)
    assert not doubt.any()
    return np.abs(actual - expected).max()


def test_distances_to_a_box_equal_the_closed_form():
    points = _points()
    half = (0.3, 0.5, 0.4)
    assert _error(_box(half), box_distance(points, half), points) < 1e-12


@pytest.mark.parametrize("vertices", [TETRAHEDRON, OCTAHEDRON], ids=["tetrahedron", "octahedron"])
def test_distances_to_convex_solids_equal_the_closed_form(vertices):
    corners, points = _hull(vertices), _points(5000)
    assert _error(corners, convex_distance(points, corners), points) < 1e-12


def test_distances_to_disjoint_boxes_are_those_to_the_nearest():
    first, second = ((0.2, 0.3, 0.1), (-0.5, 0, 0)), ((0.3, 0.2, 0.4), (0.4, 0.1, 0))
    points = _points()
    expected = np.minimum(box_distance(points, *first), box_distance(points, *second))
    assert _error(np.concatenate((_box(*first), _box(*second))), expected, points) < 1e-12


@pytest.mark.slow
def test_distances_to_a_finely_tessellated_sphere_approach_the_closed_form():
    sphere = trimesh.creation.icosphere(subdivisions=8)
    points = _points(2000)
    solid = MeshSolid(Triangulation(np.asarray(sphere.vertices), np.asarray(sphere.faces, dtype=np.int64)))
    assert np.abs(solid.signed_distance(points)[0] - (np.linalg.norm(points, axis=1) - 1)).max() < 1e-5


def test_distances_in_files_agree_with_the_closed_form_in_single_precision(tmp_path):
    trimesh.creation.box((2, 3, 4)).export(tmp_path / "box.obj")
    shape = sample_mesh(tmp_path / "box.obj", SMALL)
    half = np.array((1, 1.5, 2)) * shape.scale
    points = shape.samples[:, :3].astype(np.float64)
    assert np.linalg.norm(half) == pytest.approx(1 / MARGIN)
    assert np.abs(shape.samples[:, 3] - box_distance(points, half)).max() < 1e-6
    assert np.abs(box_distance(shape.surface[:, :3].astype(np.float64), half)).max() < 1e-6


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("chair_foldingChair", 6000),
        *(pytest.param(name, 200_000, marks=pytest.mark.slow) for name in WATERTIGHT),
    ],
)
def test_every_sign_of_a_watertight_mesh_is_that_of_ray_parity(name, count):
    mesh = trimesh.load(MESHES / f"{name}.ply", process=False)
    shape = sample_mesh(MESHES / f"{name}.ply", SamplingSettings(samples=count, surface=10))
    vertices = (mesh.vertices + np.array(shape.offset)) * shape.scale
    for direction in DIRECTIONS:
        expected = is_inside(vertices, mesh.faces, shape.samples[:, :3], direction)
        assert 0.01 < expected.mean() < 0.6
        assert ((shape.samples[:, 3] < 0) == expected).all()


def test_signs_next_to_the_surface_are_right():
    corners = _sphere(0.8, 3)
    solid = solid_from(corners)
    points, normals = solid.sample_surface(2000, np.random.default_rng(0))
    for step in (1e-9, 1e-7, 1e-5):
        assert (solid.signed_distance(points + step * normals)[0] > 0).all()
        assert (solid.signed_distance(points - step * normals)[0] < 0).all()


def test_samples_have_the_documented_distribution():
    settings = SamplingSettings(samples=40_000, surface=2000, uniform=0.25, std=(0.07, 0.02))
    shape, quality = sample_solid(solid_from(_box((0.3, 0.3, 0.3))), settings, 0, "box")
    assert shape.samples.shape == (40_000, 4)
    assert shape.surface.shape == (2000, 6)
    assert shape.samples.dtype == shape.surface.dtype == np.float32
    assert shape.uniform == 10_000
    uniform, wide, close = np.split(shape.samples, (10_000, 25_000))
    assert np.abs(uniform[:, :3]).max() <= 1
    assert uniform[:, :3].mean(0) == pytest.approx([0, 0, 0], abs=0.03)
    assert uniform[:, :3].var(0) == pytest.approx([1 / 3] * 3, rel=0.05)
    assert (uniform[:, 3] < 0).mean() == pytest.approx(0.6**3 / 8, rel=0.2)
    for near, std in ((wide, 0.07), (close, 0.02)):
        flat = (np.abs(near[:, :2]) < 0.3 - 3 * std).all(1) & (near[:, 2] > 0)  # the Gaussian of one face
        assert near[flat, 3].std() == pytest.approx(std, rel=0.05)
        assert near[flat, 3].mean() == pytest.approx(0, abs=0.1 * std)
    assert quality.is_watertight
    assert quality.doubt == 0
    assert quality.inside == pytest.approx((shape.samples[:, 3] < 0).mean())


def test_surface_points_are_uniform_by_area_with_outward_normals():
    half = np.array((0.2, 0.4, 0.8))
    points, normals = solid_from(_box(half)[:, ::-1]).sample_surface(30_000, np.random.default_rng(1))
    assert np.abs(box_distance(points, half)).max() < 1e-12
    assert np.linalg.norm(normals, axis=1) == pytest.approx(np.ones(30_000))
    assert (box_distance(points + 1e-3 * normals, half) > 0).all()
    axis = np.abs(normals).argmax(1)
    area = np.array((half[1] * half[2], half[0] * half[2], half[0] * half[1]))
    assert np.bincount(axis) / 30_000 == pytest.approx(area / area.sum(), abs=0.01)


def test_normalisation_is_that_of_deepsdf_for_any_unit(tmp_path):
    mesh = trimesh.creation.cone(radius=1, height=3)
    mesh.apply_translation((5, -2, 1))
    for name, unit in (("metres", 1.0), ("millimetres", 1000.0), ("microns", 1e-6)):
        scaled = mesh.copy()
        scaled.apply_scale(unit)
        scaled.export(tmp_path / f"{name}.stl")
        solid = solid_of(tmp_path / f"{name}.stl")
        low, high = solid.vertices.min(0), solid.vertices.max(0)
        assert low + high == pytest.approx([0, 0, 0], abs=1e-6)
        assert np.linalg.norm(solid.vertices, axis=1).max() == pytest.approx(1 / 1.03)
        centre = (scaled.vertices.min(0) + scaled.vertices.max(0)) / 2
        farthest = np.linalg.norm(scaled.vertices - centre, axis=1).max()
        assert solid.scale == pytest.approx(1 / (1.03 * farthest), rel=1e-4)
        assert solid.offset == pytest.approx(-centre, rel=1e-4)
    shapes = [sample_mesh(tmp_path / f"{name}.stl", SMALL, name="a") for name in ("metres", "millimetres")]
    assert np.abs(shapes[0].samples - shapes[1].samples).max() < 1e-4


def test_up_turns_the_mesh_so_that_y_is_up(tmp_path):
    trimesh.creation.box((1, 2, 3)).apply_translation((0, 0, 7)).export(tmp_path / "a.ply")
    solid = solid_of(tmp_path / "a.ply", up="z")
    sizes = np.ptp(solid.vertices, axis=0) / solid.scale
    assert sizes == pytest.approx([1, 3, 2], rel=1e-5)
    assert solid.offset == pytest.approx((0, -7, 0), abs=1e-5)
    assert solid.signed_distance(np.zeros((1, 3)))[0][0] == pytest.approx(-0.5 * solid.scale, rel=1e-5)


def test_random_numbers_depend_on_seed_and_name_only(tmp_path):
    trimesh.creation.box().export(tmp_path / "box.ply")
    first, again = (sample_mesh(tmp_path / "box.ply", SMALL, 3) for _ in range(2))
    assert np.array_equal(first.samples, again.samples)
    assert np.array_equal(first.surface, again.surface)
    for other in (sample_mesh(tmp_path / "box.ply", SMALL, 4), sample_mesh(tmp_path / "box.ply", SMALL, 3, "cube")):
        assert np.isin(other.samples[:, 0], first.samples[:, 0]).mean() < 0.01


# Damaged and unusual meshes


def test_unmerged_vertices_and_flipped_faces_make_no_difference():
    corners = _sphere(0.9)
    points = _points(3000)
    expected = solid_from(corners).signed_distance(points)[0]
    generator = np.random.default_rng(0)
    flipped = corners.copy()
    half = generator.random(len(corners)) < 0.5
    flipped[half] = flipped[half][:, ::-1]
    jittered = corners + generator.uniform(-1e-8, 1e-8, corners.shape)  # vertices of neighbours differ slightly
    for changed in (flipped, corners[:, ::-1], jittered, np.concatenate((corners, corners[:50, ::-1]))):
        solid = solid_from(changed)
        assert solid.is_watertight
        assert np.abs(solid.signed_distance(points)[0] - expected).max() < 1e-7


def test_an_open_mesh_is_repaired_refused_or_accepted():
    corners = _sphere(0.9, 3)
    points = _points(3000)
    exact = solid_from(corners).signed_distance(points)[0]
    lost = corners[20:]  # some of them leave holes of more than three edges
    repaired, accepted = (solid_from(lost, on_open=on_open) for on_open in ("repair", "accept"))
    assert not repaired.is_watertight
    assert not accepted.is_watertight
    assert any("holes filled" in note for note in repaired.notes) or len(repaired.faces) == len(accepted.faces)
    far = np.abs(exact) > 0.1
    for solid in (repaired, accepted):
        assert ((solid.signed_distance(points)[0] < 0) == (exact < 0))[far].all()
    with pytest.raises(ValueError, match=r"The mesh cup is not watertight: .*--on_open repair"):
        solid_from(lost, on_open="refuse", name="cup")


def test_lost_triangles_and_small_holes_are_filled_exactly():
    for corners, count in ((_box((0.3, 0.4, 0.5))[1:], 1), (np.delete(_sphere(0.9, 4), (0, 700), axis=0), 2)):
        mesh, holes = filled(oriented(merged(corners))[0])
        assert holes == count
        assert mesh.is_watertight
    points = _points(2000)
    solid = solid_from(_box((0.3, 0.4, 0.5))[1:])
    assert np.abs(solid.signed_distance(points)[0] - box_distance(points, (0.3, 0.4, 0.5))).max() < 1e-12
    assert not solid.is_watertight


def test_a_hole_of_many_edges_is_filled_around_its_centroid():
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=0.9)
    near = np.linalg.norm(sphere.triangles_center - sphere.vertices[40], axis=1) < 0.03
    assert 4 < near.sum() < 20
    mesh, holes = filled(merged(sphere.triangles[~near]))
    assert holes == 1
    assert mesh.is_watertight
    assert trimesh.Trimesh(*mesh).volume == pytest.approx(sphere.volume, rel=1e-3)


def test_large_holes_stay_open_and_leave_signs_in_doubt():
    corners = _box((0.5, 0.5, 0.5))
    sheet = solid_from(corners[(corners[..., 1] < 0.4).any(1)])  # without its lid
    _, doubt = sheet.signed_distance(_points(5000))
    assert 0 < doubt.mean() < 0.2
    with pytest.raises(ValueError, match=r"The mesh mesh has gaps .* more than max_doubt 0.1%.*--max_doubt"):
        sample_solid(sheet, SamplingSettings(samples=2000, surface=0, max_doubt=0.001), 0, "sheet")


def test_a_flat_sheet_is_refused():
    square = np.array([[(0, 0, 0), (1, 0, 0), (1, 1, 0)], [(0, 0, 0), (1, 1, 0), (0, 1, 0)]]) - (0.5, 0.5, 0)
    with pytest.raises(ValueError, match=r"mesh"):
        sample_solid(solid_from(square), SMALL, 0, "square")


@pytest.mark.parametrize("turn", [1, -1], ids=["outwards", "inside out"])
def test_a_shell_of_opposite_orientation_is_a_cavity(turn):
    corners = np.concatenate((_box((0.8, 0.8, 0.8)), _box((0.3, 0.3, 0.3))[:, ::-1]))[:, ::turn]
    points = _points()
    expected = np.maximum(box_distance(points, (0.8,) * 3), -box_distance(points, (0.3,) * 3))
    assert _error(corners, expected, points) < 1e-12


def test_a_shell_of_the_same_orientation_is_no_surface():
    corners = np.concatenate((_box((0.8, 0.8, 0.8)), _box((0.3, 0.3, 0.3))))
    points = _points()
    assert _error(corners, box_distance(points, (0.8,) * 3), points) < 1e-12
    assert solid_from(corners).notes == ("1 inner parts dropped",)


def test_a_solid_in_a_cavity_is_kept():
    shells = (_box((0.9,) * 3), _box((0.6,) * 3)[:, ::-1], _box((0.3,) * 3))
    points = _points()
    outer, cavity, inner = (box_distance(points, (half,) * 3) for half in (0.9, 0.6, 0.3))
    assert _error(np.concatenate(shells), np.minimum(np.maximum(outer, -cavity), inner), points) < 1e-12


def test_overlapping_parts_are_united_whatever_their_orientation():
    first, second = ((0.5, 0.2, 0.2), (-0.2, 0, 0)), ((0.5, 0.3, 0.1), (0.3, 0, 0))
    corners = np.concatenate((_box(*first), _box(*second)[:, ::-1]))
    points = _points()
    expected = np.minimum(box_distance(points, *first), box_distance(points, *second))
    solid = solid_from(corners)
    actual, _ = solid.signed_distance(points)
    assert ((actual < 0) == (expected < 0)).all()
    assert np.abs(actual - expected)[expected > 0].max() < 1e-12
    surface, normals = solid.sample_surface(3000, np.random.default_rng(0))
    union = [
        np.minimum(box_distance(places, *first), box_distance(places, *second))
        for places in (surface, surface + 1e-3 * normals)
    ]
    assert np.abs(union[0]).max() < 1e-9  # no point on inner walls
    assert (union[1] > 0).all()


def test_touching_boxes_lose_their_common_wall():
    left = _box((0.2, 0.2, 0.2), (-0.2, 0, 0))
    corners = np.concatenate((left, left[:, ::-1] * (-1, 1, 1)))
    points = _points()
    assert _error(corners, box_distance(points, (0.4, 0.2, 0.2)), points) < 1e-12


def test_two_sided_faces_count_once():
    corners = _box((0.4, 0.5, 0.3))
    points = _points()
    assert _error(np.concatenate((corners, corners[:, ::-1])), box_distance(points, (0.4, 0.5, 0.3)), points) < 1e-12


def test_slivers_between_three_distinct_vertices_do_not_disturb():
    corners = _box((0.5, 0.5, 0.5))
    a, b, c = corners[0]
    middle = (a + b) / 2
    split = np.concatenate((corners[1:], [(a, middle, c), (middle, b, c), (a, b, middle)]))
    points = _points()
    solid = solid_from(split)
    assert solid.is_watertight
    assert np.abs(solid.signed_distance(points)[0] - box_distance(points, (0.5,) * 3)).max() < 1e-12


def test_self_intersecting_meshes_are_solid_where_they_wind():
    torus = trimesh.creation.torus(0.2, 0.4)  # intersects itself around the origin
    solid = solid_from(np.asarray(torus.triangles))
    points = np.array([(0.0, 0, 0), (0.2, 0, 0), (0, 0, 0.35), (0.7, 0, 0)])
    assert solid.is_watertight
    distances, _ = solid.signed_distance(points)
    assert (distances < 0).tolist() == [False, True, False, False]  # the two directions cancel around the origin
    for direction in DIRECTIONS:
        many = _points(3000)
        expected = is_inside(solid.vertices, solid.faces, many, direction)
        assert ((solid.signed_distance(many)[0] < 0) == expected).all()


def test_scenes_are_joined_with_their_transforms(tmp_path):
    scene = trimesh.Scene()
    box = trimesh.creation.box((1, 1, 1))
    scene.add_geometry(box, node_name="low", transform=trimesh.transformations.translation_matrix((0, -2, 0)))
    scene.add_geometry(box, node_name="high", transform=trimesh.transformations.translation_matrix((0, 2, 0)))
    scene.export(tmp_path / "scene.glb")
    solid = solid_of(tmp_path / "scene.glb")
    points = _points(3000)
    half, centre = np.full(3, 0.5) * solid.scale, np.array((0, 2, 0)) * solid.scale
    expected = np.minimum(box_distance(points, half, centre), box_distance(points, half, -centre))
    assert solid.is_watertight
    assert np.abs(solid.signed_distance(points)[0] - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no triangles|cannot be read"),
        ("v 0 0 0\nv 1 0 0\nv 0 nan 0\nf 1 2 3\n", "line 3: the vertex '0 nan 0' has not three finite numbers"),
        ("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "has only degenerate triangles without area"),
        ("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "cannot be scaled, its extent is 0"),
        ("v 0 0 0\nv 1e200 0 0\nv 0 1e200 0\nf 1 2 3\n", "cannot be scaled, its extent is inf"),
    ],
    ids=["empty", "nan", "no area", "no extent", "infinite"],
)
def test_unusable_meshes_are_named(tmp_path, text, message):
    (tmp_path / "bad.obj").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        solid_of(tmp_path / "bad.obj")
    assert str(tmp_path / "bad.obj") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 1},
        {"surface": -1},
        {"uniform": 1.1},
        {"max_doubt": -0.1},
        {"std": ()},
        {"std": (0.1, math.nan)},
        {"on_open": "ignore"},
        {"up": "x"},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingSettings(**options)


def test_distances_to_triangles_of_the_reference_are_right():
    a, b, c = np.eye(3)
    points = np.array([(1, 1, 1), (2, 0, 0), (0.5, 0.5, -1)])
    expected = [2 / math.sqrt(3), 1, 1]
    assert triangle_distance(points, a, b, c) == pytest.approx(expected)
    assert Path(MESHES).is_dir()
