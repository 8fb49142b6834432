"""Prediction data for models of any size: whole signals at their own resolution, one at a time."""

from pathlib import Path

import pytest
import soundfile
import torch
from coordinates import grid
from patches import random_pixels
from PIL import Image

from composers.checkpoint import check_data
from datamodules import ImageFiles
from datamodules.audio.prediction import AudioFiles
from datamodules.domain import Grid
from datamodules.storage.recordings import prepare_recording
from datamodules.tiles import cover, split, whole

OPEN = [3, -1, -1]


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


def test_images_are_whole_at_their_own_resolution():
    images = {name: _write(f"{name}.png", *shape) for name, shape in {"a": (11, 18), "b": (3, 1), "c": (40, 5)}.items()}
    batches = _batches(ImageFiles(["."], OPEN, patch_size=4))
    assert [batch.pieces[0].name for batch in batches] == list(images)
    for batch, pixels in zip(batches, images.values(), strict=True):
        shape = tuple(pixels.shape[1:])
        assert (batch.shape, batch.pieces[0].box) == (shape, whole(shape))
        assert torch.equal(batch.observation.signal[0], pixels.float() / 255)
        assert torch.equal(batch.query.values[0], pixels.float().flatten(1).mT / 255)
        torch.testing.assert_close(batch.query.coords, grid(shape))


def test_orientation_applies_to_whole_images():
    exif = Image.Exif()
    exif[0x0112] = 6
    _write("a.png", 5, 12, exif=exif)
    [batch] = _batches(ImageFiles(["a.png"], OPEN))
    assert batch.shape == (12, 5)


def test_large_images_are_split_and_noted():
    pixels = _write("a.png", 30, 41)
    data = ImageFiles(["a.png"], OPEN, max_pixels=500, patch_size=[4, 4])
    batches = _batches(data)
    tiles = split((30, 41), 500, (4, 4))
    assert [batch.pieces[0].box for batch in batches] == tiles
    for batch, ((top, bottom), (left, right)) in zip(batches, tiles, strict=True):
        assert torch.equal(batch.observation.signal[0], pixels[:, top:bottom, left:right].float() / 255)
    (top, bottom), (left, right) = tiles[0]
    assert data.notes["a"] == f"{len(tiles)} tiles of {bottom - top} x {right - left}, above max_pixels 500"


def test_tiles_of_a_given_size_are_not_resized():
    _write("a.png", 30, 41)
    batches = _batches(ImageFiles(["a.png"], OPEN, tile=True, tile_size=16))
    assert [batch.pieces[0].box for batch in batches] == cover((30, 41), 16)
    assert {batch.shape for batch in batches} == {(16, 16)}
    [batch] = _batches(ImageFiles(["a.png"], OPEN, tile=True))
    assert batch.shape == (30, 41)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (OPEN, {"detail": 2}, "detail is 2, but a model of any size encodes images at their own resolution"),
        (OPEN, {"max_pixels": 0}, "max_pixels is 0; it must be at least 1"),
        (OPEN, {"max_pixels": 9, "tile": True}, "max_pixels is 9, but --tile sets the tiles"),
        ([3, 8, 8], {"max_pixels": 9}, "max_pixels is 9, but the model resizes images"),
    ],
)
def test_arguments_that_do_not_apply_raise_an_error(shape, options, message):
    with pytest.raises(ValueError, match=message):
        ImageFiles([], shape, **options)


def test_a_limit_below_one_patch_raises_an_error():
    _write("a.png", 30, 41)
    with pytest.raises(ValueError, match=r"smallest, exceeds the limit of 15: raise the limit"):
        ImageFiles(["a.png"], OPEN, max_pixels=15, patch_size=4).setup("predict")


@pytest.mark.parametrize("shape", [[1, -1, -1], [3, -1], [3, -1, 8]])
def test_open_models_of_other_signals_raise_an_error(shape):
    with pytest.raises(ValueError, match=r"colour images of any size, \[3, -1, -1\]"):
        _ = ImageFiles([], shape).spec


# Audio


def _write_audio(name, samples, sample_rate=400, channels=1):
    """Write noise."""
    values = 0.5 * torch.rand(samples, channels, generator=torch.Generator().manual_seed(samples))
    soundfile.write(name, values.numpy(), sample_rate, subtype="FLOAT")


def test_recordings_are_whole_without_padding():
    for name, samples in {"a": 1001, "b": 1}.items():
        _write_audio(f"{name}.wav", samples)
    data = AudioFiles(["."], [1, -1], 400, patch_size=20)
    for batch, samples in zip(_batches(data), (1001, 1), strict=True):
        assert (batch.shape, batch.pieces[0].box) == ((samples,), whole((samples,)))
        assert torch.equal(batch.observation.signal[0].mT, batch.query.values[0])
        torch.testing.assert_close(batch.query.coords, grid((samples,)))
        assert batch.query.mask is None or bool(batch.query.mask.all())
    assert (data.spec.sample_rate, data.spec.domain) == (400, Grid.unit(1))


def test_other_channels_and_sampling_rates_are_converted_and_noted():
    _write_audio("a.wav", 1001, 800, channels=2)
    data = AudioFiles(["a.wav"], [1, -1], 400)
    [batch] = _batches(data)
    assert torch.equal(batch.observation.signal[0], prepare_recording("a.wav", 1, 400).values)
    assert data.notes["a"] == "2 channels mixed to one; resampled from 800 to 400 Hz"


def test_empty_recordings_are_skipped_with_the_reason():
    _write_audio("a.wav", 1)
    _write_audio("b.wav", 0)
    Path("c.wav").touch()
    data = AudioFiles(["."], [1, -1], 400)
    data.setup("predict")
    assert [file.name for file in data.files] == ["a"]
    assert "holds no samples" in data.skipped["b.wav"]
    assert "is empty" in data.skipped["c.wav"]


def test_long_recordings_are_split_and_noted():
    _write_audio("a.wav", 1001)
    data = AudioFiles(["a.wav"], [1, -1], 400, max_seconds=1, patch_size=20)
    assert [batch.pieces[0].box for batch in _batches(data)] == split((1001,), 400, (20,))
    assert data.notes["a"] == "3 tiles of 0.9 s, above max_seconds 1"


@pytest.mark.parametrize(("shape", "seconds"), [([1, 400], 1.0), ([1, -1], 0.0), ([1, -1], float("nan"))])
def test_maximum_lengths_that_do_not_apply_raise_an_error(shape, seconds):
    with pytest.raises(
        ValueError, match=f"max_seconds is {seconds}; it must be positive, and applies to a model of any"
    ):
        AudioFiles([], shape, max_seconds=seconds)


def test_other_sampling_rates_than_in_training_raise_an_error():
    facts = AudioFiles([], [1, -1], 400).spec.facts()
    checkpoint = {"data": facts | {"signal_shape": [1, 400]}}
    check_data(AudioFiles([], [1, -1], 400), checkpoint, "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt was trained with .* at 400 Hz\); this AudioFiles has .* \(800 Hz\)"):
        check_data(AudioFiles([], [1, -1], 800), checkpoint, "a.ckpt")
