"""The nearest training shape as the baseline of shapes."""

import numpy as np
import pytest
import torch

from callbacks.nearest_shape import NearestTrainingShape, nearest_rows
from datamodules.shapes.families import generate
from datamodules.shapes.sample_shapes import SampleShapes
from modalities.shape_metrics import Chamfer, FScore


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SampleShapes:
    module = SampleShapes(
        family="unions",
        train_shapes=12,
        samples=300,
        surface=400,
        eval_points=50,
        eval_surface_points=300,
        root=str(tmp_path_factory.mktemp("shapes")),
    )
    module.prepare_data()
    module.setup("test")
    module.test_set.shapes = module.test_set.shapes[:3]  # type: ignore[attr-defined]
    return module


def chamfer(first: torch.Tensor, second: torch.Tensor) -> float:
    distances = torch.cdist(first.double(), second.double())
    return float(distances.amin(0).mean() + distances.amin(1).mean()) / 2


def test_rows_are_those_of_an_exhaustive_search(data: SampleShapes) -> None:
    rows = nearest_rows(data, {"chamfer": Chamfer(points=5000), "fscore": FScore(points=5000)}, candidates=12)
    surfaces = {shape.name: torch.from_numpy(shape.surface[:, :3]) for shape in data.shapes("train")}
    for index, row in enumerate(rows):
        item = data.test_set[index]
        true = item.query[item.query[:, 3] == 0, :3]
        all_distances = {name: chamfer(points, true) for name, points in surfaces.items()}
        nearest = min(all_distances, key=all_distances.__getitem__)
        edge = float((true.amax(0) - true.amin(0)).max())
        assert (row.name, row.nearest) == (item.name, nearest)
        (shape,) = (shape for shape in data.shapes("train") if shape.name == nearest)
        many = torch.from_numpy(data.surface_points(shape, 5000)[:, :3])  # as many as a prediction
        assert row.metrics["chamfer"] == pytest.approx(100 * chamfer(many, true) / edge, rel=1e-5)
        distances = torch.cdist(many.double(), true.double()) / edge
        precision, recall = ((distances.amin(axis) <= 0.01).double().mean() for axis in (1, 0))
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert row.metrics["fscore"] == pytest.approx(float(expected), abs=1e-9)


def test_few_candidates_are_ranked_by_coarse_points(data: SampleShapes) -> None:
    metrics = {"chamfer": Chamfer()}
    exhaustive, few = (nearest_rows(data, metrics, candidates) for candidates in (12, 4))
    assert [row.nearest for row in few] == [row.nearest for row in exhaustive]
    worse = nearest_rows(data, metrics, candidates=1)
    assert all(row.metrics["chamfer"] >= best.metrics["chamfer"] for row, best in zip(worse, exhaustive, strict=True))


def test_a_copy_of_a_training_shape_is_nearest_to_it(data: SampleShapes) -> None:
    shape = data.shapes("train")[5]
    data.test_set.shapes = [shape._replace(name="copy")]  # type: ignore[attr-defined]
    (row,) = nearest_rows(data, {"chamfer": Chamfer()}, candidates=3)
    assert row.nearest == shape.name
    assert row.metrics["chamfer"] < 3.0  # the spacing of 300 true points


def test_surface_points_of_generated_shapes_are_on_the_solid(data: SampleShapes) -> None:
    shape = data.shapes("train")[2]
    surface = data.surface_points(shape, 1000)
    solid = generate("unions", 0, "train", 2)
    assert surface.shape == (1000, 6)
    np.testing.assert_allclose(solid.distance(surface[:, :3].astype(np.float64)), 0, atol=1e-6)


def test_candidates_must_be_positive() -> None:
    with pytest.raises(ValueError, match="candidates is 0; it must be at least 1"):
        NearestTrainingShape(candidates=0)
