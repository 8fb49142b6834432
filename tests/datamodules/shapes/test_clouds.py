"""Observations of point clouds: normalisation, random subsets, and estimated distances."""

import numpy as np
import pytest
import torch

from datamodules.shapes.clouds import (
    Normalization,
    check_normalized,
    drawn_samples,
    has_distances,
    normalization,
    observed_distances,
    observed_surface,
)
from datamodules.shapes.mesh_sampling import MARGIN, solid_of
from datamodules.storage.points import PointCloud

RNG = np.random.default_rng(0)


def _sphere(count, radius=1 / 1.03, seed=0):
    """Return points on a sphere around the origin, with normals."""
    directions = np.random.default_rng(seed).normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return PointCloud(radius * directions, directions)


def test_normalised_points_touch_the_sphere_and_are_centred(tmp_path):
    points = RNG.normal(size=(50, 3)) * [1, 20, 3] + [100, -5, 3]
    normalised = normalization(points, tmp_path)(points)
    assert np.linalg.norm(normalised, axis=1).max() == pytest.approx(1 / 1.03, abs=1e-12)
    np.testing.assert_allclose(normalised.min(0), -normalised.max(0), atol=1e-12)


def test_points_and_meshes_are_normalised_alike(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.creation.box((2, 3, 9))
    mesh.apply_translation((4, 5, 6))
    mesh.export(tmp_path / "box.obj")
    solid, points = solid_of(tmp_path / "box.obj"), normalization(mesh.vertices, tmp_path)
    assert points.scale == pytest.approx(solid.scale)
    assert points.offset == pytest.approx(solid.offset)
    assert pytest.approx(1.03) == MARGIN


def test_facts_lead_back_to_the_units_of_the_file(tmp_path):
    points = RNG.normal(size=(9, 3)) * 7
    facts = normalization(points, tmp_path)
    offset, scale = facts.facts()["offset"], facts.facts()["scale"]
    np.testing.assert_allclose(facts(points) / scale - np.array(offset), points, atol=1e-12)


@pytest.mark.parametrize("points", [np.ones((5, 3)), np.array([[1e200] * 3, [-1e200] * 3]), np.eye(3) * 1e-310])
def test_points_without_extent_are_refused(tmp_path, points):
    with pytest.raises(ValueError, match=rf"{tmp_path / 'a.xyz'} cannot be scaled"):
        normalization(points, tmp_path / "a.xyz")


def test_normalised_points_are_checked(tmp_path):
    assert check_normalized(np.array([[1.0, -1.0, 0.2]]), tmp_path) == Normalization()
    with pytest.raises(ValueError, match=r"coordinates up to 3.5, but .* omit --normalized"):
        check_normalized(np.array([[1.0, -3.5, 0.2]]), tmp_path)


def test_all_points_of_a_small_cloud_are_observed(tmp_path):
    cloud = _sphere(30)
    item, notes = observed_surface(cloud, 100, True, "ball", tmp_path)
    np.testing.assert_allclose(item.context[:, :3], cloud.points, atol=1e-6)
    np.testing.assert_allclose(item.context_normals, cloud.normals, atol=1e-6)
    assert not item.context[:, 3].any()
    assert (item.name, notes) == ("ball", ["30 points"])
    assert torch.equal(item.query[:, :3], item.context[:, :3])
    assert not has_distances(item.query)


def test_a_random_subset_of_a_large_cloud_depends_on_the_name_only(tmp_path):
    cloud = _sphere(5000)
    item, notes = observed_surface(cloud, 200, False, "ball", tmp_path)
    again, _ = observed_surface(cloud, 200, False, "ball", tmp_path / "elsewhere")
    other, _ = observed_surface(cloud, 200, False, "other", tmp_path)
    assert notes == ["200 of 5,000 points"]
    assert torch.equal(item.context, again.context)
    assert not torch.equal(item.context, other.context)
    assert len(item.context.unique(dim=0)) == 200
    rows = {tuple(row) for row in cloud.points.astype(np.float32).tolist()}
    assert all(tuple(row) in rows for row in item.context[:, :3].tolist())


def test_points_without_a_normal_are_left_out_where_normals_are_observed(tmp_path):
    cloud = _sphere(30)
    cloud.normals[:10] = 0
    assert len(observed_surface(cloud, 100, True, "ball", tmp_path)[0].context) == 20
    assert len(observed_surface(cloud, 100, False, "ball", tmp_path)[0].context) == 30


def test_missing_normals_are_refused_where_the_model_takes_them(tmp_path):
    cloud = PointCloud(_sphere(30).points)
    assert not observed_surface(cloud, 100, False, "ball", tmp_path)[0].context_normals.any()
    with pytest.raises(ValueError, match="has no normals, but the model takes normals"):
        observed_surface(cloud, 100, True, "ball", tmp_path)
    with pytest.raises(ValueError, match="takes distances, which are estimated from normals"):
        observed_distances(cloud, 100, "ball", tmp_path)


@pytest.mark.parametrize("count", [1, 7, 2048])
def test_distances_estimated_on_a_sphere_are_those_of_the_sphere(tmp_path, count):
    item, notes = observed_distances(_sphere(20_000), count, "ball", tmp_path)
    assert item.context.shape == (count, 4)
    expected = item.context[:, :3].norm(dim=-1) - 1 / 1.03
    errors = (item.context[:, 3] - expected).abs()
    assert errors.max() < 0.03
    assert errors.mean() < 0.003
    doubtful = expected.abs() < 0.005
    assert ((item.context[:, 3] < 0) == (expected < 0))[~doubtful].all()
    assert notes == ["distances estimated from 20,000 points"]
    assert not has_distances(item.query)


def test_estimated_distances_are_near_the_surface_and_in_the_volume(tmp_path):
    context = observed_distances(_sphere(5000), 4000, "ball", tmp_path)[0].context
    inside = float((context[:, 3] < 0).float().mean())
    assert 0.4 < inside < 0.6
    assert float((context[:, 3].abs() < 0.1).float().mean()) > 0.8
    assert context[:, 3].min() < -0.5  # within the sphere, away from its surface


def _naive_counts(distances, count, inside):
    """Return how many samples inside and outside a draw has."""
    available = [sum(value < 0 for value in distances), sum(value >= 0 for value in distances)]
    asked = min(round(inside * count), available[0])
    return (asked, count - asked) if count - asked <= available[1] else (count - available[1], available[1])


@pytest.mark.parametrize("inside", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("share", [0.01, 0.4, 0.95])
def test_a_fraction_of_the_samples_is_inside_as_far_as_there_are_enough(inside, share):
    distances = np.where(np.arange(200) < 200 * share, -1.0, 1.0)
    chosen = drawn_samples(distances, 100, inside, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 100
    actual = distances[chosen]
    assert ((actual < 0).sum(), (actual > 0).sum()) == _naive_counts(distances, 100, inside)


def test_estimated_distances_have_the_fraction_inside(tmp_path):
    context = observed_distances(_sphere(5000), 1000, "ball", tmp_path, inside=0.3)[0].context
    assert (context[:, 3] < 0).sum() == 300


def test_normals_at_random_are_refused(tmp_path):
    cloud = _sphere(500)
    normals = RNG.permutation(cloud.normals)
    with pytest.raises(ValueError, match=r"disagree on inside and outside for \d+% of the samples: orient them"):
        observed_distances(PointCloud(cloud.points, normals), 400, "ball", tmp_path)


def test_fewer_points_than_neighbours_are_enough(tmp_path):
    item, _ = observed_distances(_sphere(6), 20, "ball", tmp_path)
    assert torch.isfinite(item.context).all()
