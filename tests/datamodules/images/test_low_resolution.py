"""Image files for prediction with a model of super-resolution."""

from pathlib import Path

import pytest
import torch
from patches import random_pixels
from PIL import Image

from datamodules import LowResolutionFiles
from datamodules.domain import CellGrid


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _write(name, rows, columns, **options):
    """Write a random image, and return its pixels."""
    pixels = random_pixels(rows, columns)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(name, **options)
    return pixels


def _batches(data):
    """Return the coordinate batches of a data module."""
    data.setup("predict")
    return [data.to_coordinates(batch) for batch in data.predict_dataloader()]


def test_an_image_is_observed_whole_and_queried_at_the_size_of_the_result():
    pixels = _write("a.png", 6, 9)
    [batch] = _batches(LowResolutionFiles(["a.png"], scale=2.5))
    assert torch.equal(batch.observation.signal[0], pixels.float() / 255)
    assert batch.shape == batch.pieces[0].shape == (15, 22)
    assert batch.query.values is None
    torch.testing.assert_close(batch.query.coords, CellGrid.unit(2).coords((15, 22)))


def test_the_largest_scale_of_training_is_the_default():
    _write("a.png", 4, 5)
    [batch] = _batches(LowResolutionFiles(["a.png"], scales=(1, 3)))
    assert batch.shape == (12, 15)


def test_rows_and_columns_may_have_different_factors():
    _write("a.png", 4, 5)
    [batch] = _batches(LowResolutionFiles(["a.png"], size=[5, 20]))
    assert batch.shape == (5, 20)


def test_tiles_of_an_image_are_consecutive():
    _write("a.png", 20, 30)
    _write("b.png", 5, 5)
    batches = _batches(LowResolutionFiles(["a.png", "b.png"], scale=2, max_pixels=200, margin=2))
    assert [batch.pieces[0].name for batch in batches] == ["a"] * 4 + ["b"]
    assert {tuple(batch.observation.signal.shape[2:]) for batch in batches} == {(12, 17), (5, 5)}


def test_a_grey_model_observes_the_luminance():
    pixels = _write("a.png", 3, 4)
    [batch] = _batches(LowResolutionFiles(["a.png"], signal_shape=(1, -1, -1)))
    expected = (pixels.double() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    assert (batch.observation.signal[0, 0] * 255 - expected).abs().max() <= 0.51


def test_scales_beyond_training_are_noted():
    _write("a.png", 4, 5)
    for scale, noted in ((4, False), (6, True)):
        data = LowResolutionFiles(["a.png"], scale=scale, scales=(1, 4))
        data.setup("predict")
        assert ("beyond the scales of training, 1 to 4" in data.notes["a"]) == noted


def test_unreadable_images_are_skipped():
    _write("a.png", 4, 5)
    Path("b.png").write_bytes(b"no image")
    data = LowResolutionFiles(["."], scale=2)
    data.setup("predict")
    assert [file.name for file in data.files] == ["a"]
    assert "b.png" in data.skipped["b.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.5}, "scale is 0.5"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 2, "size": 100}, "pass only one"),
        ({"max_pixels": 0}, "max_pixels 0"),
        ({"margin": -1}, "margin is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LowResolutionFiles(["a.png"], **options)


def test_a_smaller_result_is_refused_with_the_file():
    _write("a.png", 40, 50)
    with pytest.raises(ValueError, match=r"a\.png has 40 x 50 pixels, more than the result of 24 x 30"):
        LowResolutionFiles(["a.png"], size=30).setup("predict")


def test_only_prediction_is_supported():
    with pytest.raises(ValueError, match="only predict"):
        LowResolutionFiles(["a.png"]).setup("test")
