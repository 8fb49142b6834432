"""Data sets of shapes in files: splits, missing and damaged shapes, both layouts, and the batches that they give."""

import json

import numpy as np
import pytest
import torch
from shape_files import ball, write_balls, write_cloud, write_deep_sdf

from datamodules import DeepSDF, ShapeFolder
from datamodules.shapes.deep_sdf import names_in_split, read_surface
from datamodules.storage.folders import NamedFile

SMALL = {"context_points": 20, "query_points": 30, "eval_points": 40, "eval_surface_points": 10, "batch_size": 2}
NAMES = [f"ball{index}" for index in range(10)]
SPLITS = {"train": ["c", "a", "b"], "test": ["e", "d"]}


def _deep_sdf(root, **options):
    """Return a data module of the layout of DeepSDF with its split files."""
    return DeepSDF(
        str(root), train_split=str(root / "train.json"), test_split=str(root / "test.json"), **SMALL | options
    )


def _names(items):
    return [shape.name for shape in items.shapes]


@pytest.fixture
def deep(tmp_path):
    """Return a folder in the layout of DeepSDF."""
    write_deep_sdf(tmp_path, SPLITS)
    return tmp_path


def _samples(root, name):
    return root / "SdfSamples" / "Set" / "balls" / f"{name}.npz"


# Our own layout


def test_random_splits_depend_on_names_and_are_disjoint(tmp_path):
    write_balls(tmp_path, NAMES)
    data = ShapeFolder(str(tmp_path), val_ratio=0.2, test_ratio=0.3, **SMALL)
    data.setup("fit")
    data.setup("test")
    train, val, test = (_names(items) for items in (data.train_set, data.val_set, data.test_set))
    assert (len(train), len(val), len(test)) == (5, 2, 3)
    assert sorted(train + val + test) == NAMES
    assert data.num_instances == 5
    assert "at random with split_seed 0" in data.notes["split"]


def test_folders_define_the_splits(tmp_path):
    write_balls(tmp_path / "train" / "chairs", ["a", "b"])
    write_balls(tmp_path / "test", ["c"])
    data = ShapeFolder(str(tmp_path), **SMALL)
    data.setup("fit")
    assert _names(data.train_set) == ["chairs/a", "chairs/b"]
    assert _names(data.val_set) == ["c"]


def test_lists_define_the_splits_and_their_order(tmp_path):
    write_balls(tmp_path / "shapes", NAMES)
    for split, names in (("train", "ball7\nball2\n\n"), ("test", "ball3")):
        (tmp_path / f"{split}.txt").write_text(names)
    lists = {f"{split}_list": str(tmp_path / f"{split}.txt") for split in ("train", "test")}
    data = ShapeFolder(str(tmp_path / "shapes"), **lists, **SMALL)
    data.setup("fit")
    assert _names(data.train_set) == ["ball7", "ball2"]
    assert _names(data.val_set) == ["ball3"]
    with pytest.raises(ValueError, match=r"train_list is None, val_list .*: pass train_list"):
        ShapeFolder(str(tmp_path), test_list=lists["test_list"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\nb\na\n", "lists a more than once"), ("\n\n", "has no names"), (None, "cannot be read")],
)
def test_unusable_lists_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "train.txt").write_text(text)
    data = ShapeFolder(str(tmp_path), train_list=str(tmp_path / "train.txt"), val_list="val.txt", **SMALL)
    with pytest.raises(ValueError, match=rf"The list .*train.txt {message}"):
        data.setup("fit")


def test_listed_shapes_that_are_missing_are_refused_or_skipped_but_never_replaced(tmp_path):
    write_balls(tmp_path, ["a", "b"])
    (tmp_path / "train.txt").write_text("a\nlost\nb\n")
    (tmp_path / "val.txt").write_text("b\n")
    lists = {f"{split}_list": str(tmp_path / f"{split}.txt") for split in ("train", "val")}
    with pytest.raises(
        ValueError, match=r"1 of 3 shapes of the split train cannot be used:\n .*lost.*\n.*on_bad_shape skip"
    ):
        ShapeFolder(str(tmp_path), **lists, **SMALL).setup("fit")
    data = ShapeFolder(str(tmp_path), on_bad_shape="skip", **lists, **SMALL)
    data.setup("fit")
    assert _names(data.train_set) == ["a", "b"]
    assert list(data.skipped) == [str(tmp_path / "lost.safetensors")]


def test_an_empty_or_missing_folder_names_the_command(tmp_path):
    for root, message in ((tmp_path, "contains no shapes"), (tmp_path / "no", "There is no folder")):
        with pytest.raises(ValueError, match=message):
            ShapeFolder(str(root), **SMALL).setup("fit")
    (tmp_path / "a.safetensors").write_bytes(b"")
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 1 shapes .*\n.*\nIf shapes are missing, sample meshes with python -m"):
        ShapeFolder(str(tmp_path), on_bad_shape="skip", **SMALL).setup("fit")


def test_batches_contain_the_stored_samples_and_the_source_maps_back(tmp_path):
    write_balls(tmp_path, NAMES)
    data = ShapeFolder(str(tmp_path), context="surface", **SMALL)
    data.setup("test")
    batch = data.to_coordinates(data.collate([data.test_set[0]]))
    assert batch.observation.signal.shape == (1, 20, 3)
    distances = batch.query.coords.norm(dim=-1, keepdim=True) - 0.6
    assert torch.allclose(batch.query.values, distances, atol=1e-6)
    assert (batch.query.values[:, 40:] == 0).all()
    assert torch.allclose(batch.query.normals[:, 40:], batch.query.coords[:, 40:] / 0.6, atol=1e-6)
    assert data.source_of(batch.names[0]) == {"offset": (1.0, 2.0, 3.0), "scale": 0.5}
    assert data.source_of("unknown") == {}


def test_on_bad_shape_is_checked():
    with pytest.raises(ValueError, match="on_bad_shape is 'replace'"):
        ShapeFolder(on_bad_shape="replace")


# DeepSDF's layout


def test_deep_sdf_reads_samples_and_splits(deep):
    data = _deep_sdf(deep)
    data.setup("fit")
    assert _names(data.train_set) == ["Set/balls/c", "Set/balls/a", "Set/balls/b"]
    assert _names(data.val_set) == ["Set/balls/e", "Set/balls/d"]
    shape, expected = data.train_set[0], ball("c")
    assert sorted(map(tuple, shape.samples)) == sorted(map(tuple, expected.samples))
    assert shape.uniform == 0
    assert (shape.offset, shape.scale) == (expected.offset, expected.scale)
    assert data.source_of("Set/balls/c") == {"offset": (1.0, 2.0, 3.0), "scale": 0.5}


def test_surface_samples_are_normalised(deep):
    data = _deep_sdf(deep, context="surface")
    data.setup("test")
    shape = data.test_set.shapes[0]
    assert np.abs(shape.surface[:, :3] - ball("e").surface[:, :3]).max() < 1e-6
    assert not shape.surface[:, 3:].any()
    write_deep_sdf(deep, SPLITS, normals=True)
    assert np.abs(data.test_set.shapes[0].surface - ball("e").surface).max() < 1e-6


def test_surface_samples_are_only_needed_where_they_are_used(deep):
    for kind in ("SurfaceSamples", "NormalizationParameters"):
        for path in (deep / kind).rglob("*.*"):
            path.unlink()
    data = _deep_sdf(deep, eval_surface_points=0)
    data.setup("fit")
    assert data.train_set[0].surface.shape == (0, 6)
    with pytest.raises(ValueError, match=r"Set/balls/c has no surface samples: there is no file .*SurfaceSamples"):
        _deep_sdf(deep).setup("fit")


def test_rows_with_nan_are_dropped_and_counted(deep):
    with np.load(_samples(deep, "a")) as file:
        pos, neg = file["pos"], file["neg"]
    pos[3, 1] = neg[0, 3] = neg[5] = np.nan
    np.savez(_samples(deep, "a"), pos=pos, neg=neg)
    data = _deep_sdf(deep)
    data.setup("fit")
    shape = data.train_set[1]
    assert len(shape.samples) == len(pos) + len(neg) - 3
    assert np.isfinite(shape.samples).all()
    assert data.dropped_rows == {"Set/balls/a": 3}
    assert data.notes["NaN"] == "3 rows with NaN dropped in 1 shapes"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pos": np.zeros((3, 4), np.float32)}, "have no array neg, only pos"),
        (
            {"pos": np.zeros((3, 3), np.float32), "neg": np.zeros((3, 4), np.float32)},
            r"have an array pos of float32 \(3, 3\)",
        ),
        ({"pos": np.zeros((3, 4), np.int64), "neg": np.zeros((3, 4), np.float32)}, "have an array pos of int64"),
        ({"pos": np.zeros((0, 4), np.float32), "neg": np.zeros((0, 4), np.float32)}, "are empty"),
    ],
)
def test_wrong_samples_are_named_during_setup(deep, arrays, message):
    np.savez(_samples(deep, "b"), **arrays)
    with pytest.raises(ValueError, match=rf"b.npz {message}"):
        _deep_sdf(deep).setup("fit")


def test_damaged_files_are_named(deep):
    content = _samples(deep, "c").read_bytes()
    _samples(deep, "c").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"c.npz cannot be read \("):
        _deep_sdf(deep).setup("fit")
    _samples(deep, "c").write_bytes(content)
    path = deep / "NormalizationParameters" / "Set" / "balls" / "a.npz"
    np.savez(path, offset=np.zeros(3), scale=np.array(0.0))
    with pytest.raises(ValueError, match=r"a.npz have offset \[0.0, 0.0, 0.0\] and scale 0.0"):
        _deep_sdf(deep).setup("fit")
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a.npz cannot be read"):
        _deep_sdf(deep).setup("fit")


def test_missing_shapes_of_a_split_are_counted_and_skipped_only_if_asked(deep):
    _samples(deep, "c").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 3 shapes of the split train cannot be used:\n  Set/balls/c has no samples"
    ):
        _deep_sdf(deep).setup("fit")
    data = _deep_sdf(deep, on_bad_shape="skip")
    data.setup("fit")
    assert _names(data.train_set) == ["Set/balls/a", "Set/balls/b"]
    assert list(data.skipped) == [str(_samples(deep, "c"))]
    for name in ("a", "b"):
        _samples(deep, name).unlink()
    with pytest.raises(ValueError, match=r"3 of 3 shapes (.*\n)*.*preprocess_data.py"):
        _deep_sdf(deep, on_bad_shape="skip").setup("fit")


def test_split_files_are_required_and_checked(deep, tmp_path):
    with pytest.raises(
        ValueError, match=r"train_split is None: set --data.init_args.train_split .*sv2_planes_train.json"
    ):
        DeepSDF(str(deep)).setup("fit")
    for content, message in (
        ("[1]", "has another layout"),
        ('{"Set": ["a"]}', "has another layout"),
        ('{"Set": {"balls": "a"}}', "has another layout"),
        ('{"Set": {"balls": []}}', "has no shapes"),
        ('{"Set": {"balls": ["a", "a"]}}', "repeats shapes"),
        ("{", "cannot be read"),
    ):
        (tmp_path / "split.json").write_text(content)
        with pytest.raises(ValueError, match=rf"The split file .*split.json {message}"):
            names_in_split(tmp_path / "split.json")
    (tmp_path / "split.json").write_text(json.dumps({"A": {"x": ["1"], "y": ["2"]}, "B": {"x": ["1"]}}))
    assert names_in_split(tmp_path / "split.json") == ["A/x/1", "A/y/2", "B/x/1"]


def test_surface_files_without_points_are_named(tmp_path):
    write_cloud(tmp_path / "a.ply", np.full((2, 3), np.nan))
    (tmp_path / "b.ply").write_text("ply\nformat ascii 1.0\n")
    for name, message in (("a", "have no finite points"), ("b", "cannot be read|have no"), ("c", "There are no")):
        with pytest.raises(ValueError, match=message) as error:
            read_surface(tmp_path / f"{name}.ply")
        assert f"{name}.ply" in str(error.value)


def test_infinite_samples_are_refused(deep):
    np.savez(_samples(deep, "a"), pos=np.full((2, 4), np.inf, np.float32), neg=np.zeros((1, 4), np.float32))
    data = _deep_sdf(deep)
    with pytest.raises(ValueError, match=r"a.npz have infinite numbers"):
        data.read(NamedFile("Set/balls/a", _samples(deep, "a")))
