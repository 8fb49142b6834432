"""The draw of context and query from stored shapes, and the batches of shapes."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from datamodules.randomness import generator_at
from datamodules.shapes.base import ShapeModule
from datamodules.shapes.samples import ShapeDraw, StoredShape


def sphere(name: str = "sphere", samples: int = 4000, surface: int = 3000, radius: float = 0.6) -> StoredShape:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (samples, 3))
    normals = rng.normal(size=(surface, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    distances = np.linalg.norm(points, axis=1) - radius
    return StoredShape(
        np.c_[points, distances].astype(np.float32),
        np.c_[radius * normals, normals].astype(np.float32),
        name,
        samples // 2,
    )


class Spheres(ShapeModule):
    def shapes(self, split: str) -> list[StoredShape]:
        return [sphere(f"{split}-{number}", radius=0.4 + 0.1 * number) for number in range(4)]


def rows(points: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in points.tolist()}


@pytest.mark.parametrize("inside", [None, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_dense_context_and_query_are_disjoint_samples(inside: float | None, seed: int) -> None:
    shape = sphere()
    item = ShapeDraw("dense", 400, 500, inside=inside)(shape, generator_at(seed))
    context, query, stored = rows(item.context), rows(item.query), rows(torch.from_numpy(shape.samples))
    assert (len(item.context), len(item.query)) == (400, 500)
    assert not context & query
    assert context | query <= stored
    assert not item.context_normals.any()


@pytest.mark.parametrize("inside", [0.25, 0.5])
def test_the_fraction_inside_is_as_asked_in_context_and_query(inside: float) -> None:
    item = ShapeDraw("dense", 400, 500, inside=inside)(sphere(radius=0.3), generator_at(0))
    assert (item.context[:, 3] < 0).float().mean() == pytest.approx(inside, abs=0.005)
    assert (item.query[:, 3] < 0).float().mean() == pytest.approx(inside, abs=0.005)


def test_few_samples_inside_are_repeated_and_stay_disjoint() -> None:
    shape = sphere(radius=0.12)
    count = int((shape.samples[:, 3] < 0).sum())
    assert 2 <= count < 50
    item = ShapeDraw("dense", 200, 200, inside=0.5)(shape, generator_at(0))
    inside = [rows(part[part[:, 3] < 0]) for part in (item.context, item.query)]
    assert not inside[0] & inside[1]
    assert len(inside[0]) + len(inside[1]) == count


def test_a_shape_without_an_inside_is_drawn_as_stored() -> None:
    item = ShapeDraw("dense", 100, 100, inside=0.5)(sphere(radius=-0.1), generator_at(0))
    assert (item.context[:, 3] > 0).all()
    assert len(item.query) == 100


def test_evaluation_takes_uniform_samples_that_were_not_observed_then_the_surface() -> None:
    shape = sphere()
    item = ShapeDraw("dense", 400, 300, 200, inside=0.3, uniform=True)(shape, generator_at(0))
    volume, surface = item.query[:300], item.query[300:]
    assert rows(volume) <= rows(torch.from_numpy(shape.samples[: shape.uniform]))
    assert not rows(volume) & rows(item.context)
    assert (surface[:, 3] == 0).all()
    assert rows(surface[:, :3]) <= rows(torch.from_numpy(shape.surface[:, :3]))
    torch.testing.assert_close(item.query_normals[300:], surface[:, :3] / 0.6)
    true = (shape.samples[: shape.uniform, 3] < 0).mean()
    assert (volume[:, 3] < 0).float().mean() == pytest.approx(true, abs=0.08)  # as in the volume, not as in the context


@pytest.mark.parametrize("kind", ["surface", "partial"])
def test_surface_contexts_are_points_with_distance_zero_and_their_normals(kind: str) -> None:
    shape = sphere()
    item = ShapeDraw(kind, 150, 300)(shape, generator_at(0))  # type: ignore[arg-type]
    assert (item.context[:, 3] == 0).all()
    torch.testing.assert_close(item.context_normals, item.context[:, :3] / 0.6)
    assert rows(item.query) <= rows(torch.from_numpy(shape.samples))


@pytest.mark.parametrize("kind", ["surface", "partial"])
def test_the_true_surface_of_an_evaluation_is_not_observed(kind: str) -> None:
    item = ShapeDraw(kind, 500, 50, 1000)(sphere(), generator_at(0))  # type: ignore[arg-type]
    assert not rows(item.context[:, :3]) & rows(item.query[50:, :3])
    few = ShapeDraw(kind, 500, 50, 1000)(sphere(surface=40), generator_at(0))  # type: ignore[arg-type]
    assert len(few.query) == 1050


def test_a_partial_context_is_the_side_of_a_sphere_that_faces_the_camera() -> None:
    item = ShapeDraw("partial", 600, 10)(sphere(surface=20000), generator_at(4))
    directions = item.context[:, :3] / 0.6
    camera = directions.mean(0)
    cosines = directions @ (camera / camera.norm())
    assert cosines.min() > -0.12  # the mean of the points is not exactly the camera
    assert cosines.mean() == pytest.approx(0.5, abs=0.06)  # of a hemisphere


def test_a_wall_hides_what_is_behind_it() -> None:
    rng = np.random.default_rng(0)
    flat = rng.uniform(-0.8, 0.8, (20000, 2))
    walls = [np.c_[flat, np.full(len(flat), height), np.zeros((len(flat), 3))] for height in (0.2, -0.2)]  # no normals
    shape = sphere()._replace(surface=np.concatenate(walls).astype(np.float32))
    shares = []
    for seed in range(12):
        upper = (ShapeDraw("partial", 3000, 10)(shape, generator_at(seed)).context[:, 2] > 0).float().mean().item()
        shares.append(max(upper, 1 - upper))
    assert np.median(shares) > 0.6  # from oblique directions, much of the second wall shows beside the first
    assert max(shares) > 0.85


def test_the_published_overlap_appends_the_context_to_the_query() -> None:
    item = ShapeDraw("dense", 100, 200, include_context=True)(sphere(), generator_at(0))
    assert len(item.query) == 300
    assert rows(item.context) <= rows(item.query)


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        (sphere(samples=1), "dense", "sphere has 1 distance samples; at least 2 are needed"),
        (
            sphere(surface=0),
            "surface",
            "sphere has no points on its surface, which context surface and evaluation need",
        ),
    ],
)
def test_shapes_that_lack_points_are_named(shape: StoredShape, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapeDraw(kind, 10, 10)(shape, generator_at(0))  # type: ignore[arg-type]


SMALL = {"context_points": 50, "query_points": 70, "eval_points": 90, "eval_surface_points": 40, "batch_size": 2}


@pytest.mark.parametrize(
    ("options", "channels", "observed"),
    [
        ({}, 4, 50),
        ({"context": "surface"}, 3, 50),
        ({"context": "surface", "normals": True}, 6, 50),
        ({"context": "partial", "normals": True, "normal_offset": 0.05}, 6, 150),
    ],
)
def test_batches_have_the_stated_signal(options: dict[str, object], channels: int, observed: int) -> None:
    data = Spheres(**SMALL, **options)  # type: ignore[arg-type]
    data.setup("fit")
    batch = data.to_coordinates(default_collate([data.val_set[0], data.val_set[1]]))
    assert data.spec.signal_shape == (50, channels)
    assert batch.observation.signal.shape == (2, 50, channels)
    assert batch.observation.samples.coords.shape == (2, observed, 3)
    assert batch.query.coords.shape == (2, 130, 3)
    assert batch.shape == (130,)
    training = next(data.training_batches(2))
    assert training.query.values.shape == (2, 70, 1)
    assert data.to_coordinates(data.random_items(3)).observation.signal.shape == (3, 50, channels)


def test_offset_samples_lie_on_both_sides_of_the_surface() -> None:
    data = Spheres(**SMALL, context="surface", normal_offset=0.05)  # type: ignore[arg-type]
    data.setup("test")
    samples = data.to_coordinates(default_collate([data.test_set[1]])).observation.samples
    radii = samples.coords[0].norm(dim=-1) - 0.5
    torch.testing.assert_close(radii, samples.values[0, :, 0], atol=1e-5, rtol=0)
    assert sorted({round(value, 3) for value in samples.values.flatten().tolist()}) == [-0.05, 0.0, 0.05]


def test_points_without_a_normal_have_no_offset_samples() -> None:
    data = Spheres(**SMALL, context="surface", normal_offset=0.05)  # type: ignore[arg-type]
    item = data.evaluation(sphere(), generator_at(0))
    normals = item.context_normals.clone()
    normals[:10] = 0
    samples = data.to_coordinates(default_collate([item._replace(context_normals=normals)])).observation.samples
    assert samples.mask.sum() == 150 - 20
    assert samples.mask[0, :50].all()
    assert not samples.mask[0, 50:60].any()
    assert not samples.mask[0, 100:110].any()


def test_training_draws_depend_on_the_epoch_and_evaluation_on_the_name_only() -> None:
    data = Spheres(**SMALL)  # type: ignore[arg-type]
    data.setup("fit")
    first, again, other = (data.augmentation(data.train_set[0], generator_at(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.context, again.context)
    assert not torch.equal(first.context, other.context)
    assert torch.equal(data.val_set[2].query, data.val_set[2].query)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": "sparse"}, "context is 'sparse': choose one of dense, surface, partial"),
        ({"context_points": 0}, "context_points is 0"),
        ({"normals": True}, "set context to surface or partial, or omit them"),
        ({"inside": 1.0}, "inside is 1.0: it must be a fraction between 0 and 1"),
        ({"context": "surface", "normal_offset": -0.1}, "normal_offset is -0.1"),
        ({"context": "surface", "normal_offset": math.nan}, "normal_offset is nan"),
    ],
)
def test_arguments_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spheres(**(SMALL | options))  # type: ignore[arg-type]


def test_a_split_without_shapes_is_named() -> None:
    data = Spheres(**SMALL)  # type: ignore[arg-type]
    data.shapes = lambda split: []  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match="Spheres has no shapes of the split train"):
        data.setup("fit")
