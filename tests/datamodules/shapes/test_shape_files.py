"""Files of shapes: what is written is read, and damaged files are named with the reason."""

import json
import math

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from shape_files import ball

from datamodules.shapes.files import read_facts, read_shape, write_shape


@pytest.fixture
def path(tmp_path):
    """Return the file of a ball."""
    write_shape(tmp_path / "ball.safetensors", ball("ball"), {"seed": 3})
    return tmp_path / "ball.safetensors"


def _rewritten(path, arrays=None, **entries):
    """Write a file with some arrays and metadata replaced; None removes an array."""
    shape = ball("ball")
    tensors = {"samples": shape.samples, "surface": shape.surface} | (arrays or {})
    with safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["shape"])
    text = json.dumps(metadata | entries)
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"shape": text})


def test_what_is_written_is_read(path):
    expected, actual = ball("ball"), read_shape(path)
    assert np.array_equal(actual.samples, expected.samples)
    assert np.array_equal(actual.surface, expected.surface)
    assert actual[2:] == expected[2:]
    assert read_facts(path) == {"seed": 3, "offset": [1.0, 2.0, 3.0], "scale": 0.5}
    assert [file.name for file in path.parent.iterdir()] == ["ball.safetensors"]


def test_normalisation_is_exact(tmp_path):
    shape = ball("a")._replace(offset=(0.1, -1e-17, 1e9), scale=1 / 3)
    write_shape(tmp_path / "a.safetensors", shape)
    assert read_shape(tmp_path / "a.safetensors")[2:] == shape[2:]


def test_a_file_without_surface_points_is_valid(tmp_path):
    write_shape(tmp_path / "a.safetensors", ball("a")._replace(surface=np.zeros((0, 6), np.float32)))
    assert read_shape(tmp_path / "a.safetensors").surface.shape == (0, 6)


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        ({"samples": None}, {}, "has no array samples, only surface"),
        (
            {"samples": np.zeros((5, 3), np.float32)},
            {},
            r"array samples of float32 \(5, 3\); expected float32 \(N, 4\)",
        ),
        ({"surface": np.zeros((5, 6))}, {}, r"array surface of F64 \(5, 6\); expected float32 \(N, 6\)"),
        ({"samples": np.full((200, 4), np.nan, np.float32)}, {}, "non-finite numbers in 200 of 200 rows of samples"),
        ({}, {"format": "pt"}, "has 'pt' as its format"),
        ({}, {"uniform": 301}, "has 301 as its uniform"),
        ({}, {"offset": [1, 2]}, r"has \[1, 2\] as its offset"),
        ({}, {"offset": [1, 2, math.nan]}, "as its offset"),
        ({}, {"scale": 0}, "has 0 as its scale"),
        ({}, {"scale": None}, "has None as its scale"),
        ({}, {"facts": []}, r"has \[\] as its facts"),
        ({}, {"name": ""}, "has '' as its name"),
    ],
)
def test_damaged_files_are_named_with_the_fix(path, arrays, metadata, message):
    _rewritten(path, arrays, **metadata)
    with pytest.raises(ValueError, match=message) as error:
        read_shape(path)
    assert str(path) in str(error.value)
    assert "python -m tools.sample_sdf" in str(error.value)


def test_truncated_and_missing_files_are_named(path):
    content = path.read_bytes()
    for size in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"ball.safetensors cannot be read \(.*sample it again"):
            read_shape(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"There is no shape file .*ball.safetensors"):
        read_facts(path)


def test_files_of_other_software_are_named(path):
    save_file({"samples": ball("a").samples, "surface": ball("a").surface}, path, {"shape": "chair"})
    with pytest.raises(ValueError, match="has no metadata of a shape"):
        read_shape(path)


def test_equal_shapes_give_equal_files(tmp_path):
    for name in ("a", "b"):
        write_shape(tmp_path / name, ball("ball"), {"seed": 3, "source": "x"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_wrong_arrays_are_not_written(tmp_path):
    path = tmp_path / "a.safetensors"
    shape = ball("a")
    for wrong, message in (
        (shape._replace(samples=shape.samples[:, :3]), "array samples"),
        (shape._replace(surface=shape.surface * np.float32("inf")), "non-finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shape(path, wrong)
    assert list(tmp_path.iterdir()) == []
