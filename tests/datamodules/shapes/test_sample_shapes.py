"""Procedural training shapes and held-out meshes."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.shapes.families import generate
from datamodules.shapes.mesh_sampling import SamplingSettings
from datamodules.shapes.sample_shapes import SampleShapes, sample_parts
from datamodules.storage.sample_meshes import CHAIRS


def small(root: Path, **options: object) -> SampleShapes:
    sizes = {"samples": 400, "surface": 100, "context_points": 64, "query_points": 64, "eval_points": 50}
    return SampleShapes(root=str(root), eval_surface_points=60, batch_size=2, **(sizes | options))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    small(folder, family="tables", train_shapes=5).prepare_data()
    return folder


def test_distances_and_surfaces_are_those_of_the_solid() -> None:
    solid, settings = generate("chairs", 0, "train", 3), SamplingSettings(1000, uniform=0.5, surface=200)
    shape = sample_parts(solid, settings, 0, "a chair")
    assert shape.samples.shape == (1000, 4)
    assert shape.surface.shape == (200, 6)
    assert shape.uniform == 500
    np.testing.assert_allclose(shape.samples[:, 3], solid.distance(shape.samples[:, :3].astype(np.float64)), atol=1e-6)
    np.testing.assert_allclose(solid.distance(shape.surface[:, :3].astype(np.float64)), 0, atol=1e-6)
    near, uniform = np.abs(shape.samples[500:, 3]).mean(), np.abs(shape.samples[:500, 3]).mean()
    assert near < 0.06 < uniform


def test_training_shapes_do_not_depend_on_their_number(root: Path, tmp_path: Path) -> None:
    few = small(tmp_path, family="tables", train_shapes=2)
    few.prepare_data()
    many = small(root, family="tables", train_shapes=5)
    for index in range(2):
        np.testing.assert_array_equal(few.shapes("train")[index].samples, many.shapes("train")[index].samples)
    assert many.num_instances == 5


def test_splits_of_generated_families_are_disjoint(root: Path) -> None:
    data = small(root, family="tables", train_shapes=5)
    names = [{file.name for file in data.files(split)} for split in ("train", "val", "test")]
    assert [len(some) for some in names] == [5, 8, 32]
    assert not set.intersection(*names)
    first = [data.shapes(split)[0].samples for split in ("train", "val", "test")]
    assert not np.array_equal(first[0], first[1])


def test_missing_files_are_generated_again_and_valid_ones_kept(root: Path) -> None:
    data = small(root, family="tables", train_shapes=5)
    removed, kept = data.files("train")[1].path, data.files("train")[2].path
    before, samples = kept.stat().st_mtime_ns, data.shapes("train")[1].samples
    removed.write_bytes(removed.read_bytes()[:3000])
    data.prepare_data()
    np.testing.assert_array_equal(data.shapes("train")[1].samples, samples)
    assert kept.stat().st_mtime_ns == before


def test_missing_shapes_are_named_with_the_fix(tmp_path: Path) -> None:
    message = "(?s)3 of 3 shapes of the split train cannot be used.*tables-train-00000.*start the program again"
    with pytest.raises(ValueError, match=message):
        small(tmp_path, family="tables", train_shapes=3).shapes("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "boats"}, "family is 'boats': choose one of chairs, tables, lamps, cars, unions"),
        ({"train_shapes": 0}, "train_shapes is 0"),
        ({"samples": 1}, "samples 1"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **options)


@pytest.mark.slow
def test_bundled_meshes_are_held_out(tmp_path: Path) -> None:
    data = small(tmp_path, family="chairs", train_shapes=2)
    data.prepare_data()
    assert [file.name for file in data.files("val")] == list(CHAIRS["val"])
    assert {file.name for file in data.files("test")} == {*CHAIRS["train"], *CHAIRS["test"]}
    data.setup("test")
    item = data.test_set[0]
    assert item.query.shape == (110, 4)
    assert (item.query[50:, 3] == 0).all()
    assert data.source_of(item.name)["scale"] == pytest.approx(1 / 1.03, rel=1e-3)  # bundled meshes have radius 1
