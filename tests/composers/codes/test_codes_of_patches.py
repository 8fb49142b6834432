"""Codes of signals of any size: decoding, sampling rates, and codes that do not fit their model."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from patches import build_patch_ipc, random_pixels
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from composers import Refinement
from composers.codes import Axis, decode, decoding, interpolate, read_code, takes_any_size
from composers.latents import Layout
from datamodules.domain import Grid
from modalities import audio
from modalities.images import encode, render

PREDICTION = Refinement(steps=0)


@pytest.fixture(scope="module")
def composer():
    """Return a tiny model of images of any size."""
    return build_patch_ipc()


@pytest.fixture(scope="module")
def code(composer):
    """Return the code of an image whose sizes are no multiples of the patch."""
    return encode(composer, random_pixels(11, 18), refinement=PREDICTION)


def _field(composer, code, shape):
    """Return the values ``(*shape, C)`` of a code, evaluated at all coordinates together."""
    with torch.no_grad():
        values = composer.render(composer.compose(code.latents, code.layout), Grid.unit(2).coords(shape))
    return values[0].unflatten(0, shape)


def test_a_code_states_its_grid_and_size(composer, code):
    assert takes_any_size(composer)
    assert (code.boxes, code.shape) == ([((0, 11), (0, 18))], (11, 18))
    assert code.layout == Layout((3, 5), (11, 18))
    assert code.numel == 15 * 5


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(11, 18), (44, 72), (5, 40), (1, 1)])
@pytest.mark.parametrize("largest", [1, 70, 1 << 15])
def test_blocks_of_patches_hold_the_values_of_the_field(composer, code, shape, largest, monkeypatch):
    monkeypatch.setattr(decoding, "_MAX_BLOCK", {"cpu": largest})
    torch.testing.assert_close(torch.cat(list(decode(composer, code, shape))), _field(composer, code, shape))


def test_blocks_hold_whole_patches(composer, code, monkeypatch):
    monkeypatch.setattr(decoding, "_MAX_BLOCK", {"cpu": 16 * 16 * 6})
    axes = [Axis(4 * size, Fraction(1, 4)) for size in code.shape]
    rows, block = decoding._sizes(composer, axes, 500.0)
    assert block.shape == (2 * 16, 3 * 16)
    assert rows % block.shape[0] == 0
    assert list(block.of([(3, 44), (0, 72)]))[:2] == [[(3, 35), (0, 48)], [(3, 35), (48, 72)]]


def test_modulations_are_composed_once_for_all_bands(composer, code, monkeypatch):
    monkeypatch.setattr(decoding, "_MAX_BAND", 1)
    calls, compose = [], composer.compose
    monkeypatch.setattr(composer, "compose", lambda *args: calls.append(args) or compose(*args))
    assert len(list(decode(composer, code))) == 11
    assert len(calls) == 1


def test_large_images_are_split_into_blended_tiles_of_whole_patches(composer):
    pixels = random_pixels(30, 41)
    code = encode(composer, pixels, max_pixels=500, refinement=PREDICTION)
    sizes = {tuple(stop - start for start, stop in box) for box in code.boxes}
    assert len(code.boxes) > 2
    assert len(sizes) == 1
    [(rows, columns)] = sizes
    assert rows * columns <= 500
    assert rows in (30, rows // 4 * 4)
    assert columns in (41, columns // 4 * 4)
    first = encode(composer, pixels[:, :rows, :columns], refinement=PREDICTION)
    torch.testing.assert_close(code.latents["codes"][:1], first.latents["codes"], rtol=1e-4, atol=1e-4)
    assert render(composer, code, scale=2).size == (82, 60)


def test_codes_of_another_width_or_layout_are_refused(composer, code):
    codes = code.latents["codes"]
    for changed in (
        replace(code, latents={"codes": codes[..., :4]}),
        replace(code, latents={"codes": codes[:, :-1]}),
        replace(code, latents={"other": codes}),
        replace(code, layout=Layout((3, 4), (11, 16))),
    ):
        with pytest.raises(
            ValueError, match=r"cat\.safetensors holds latents of the shapes .* model takes .*encode the"
        ):
            changed.check(composer, "cat.safetensors")
    with pytest.raises(ValueError, match=r"This code states no layout of its latents .*: encode the signal again"):
        list(decode(composer, replace(code, layout=Layout())))


def test_truncated_and_incomplete_files_are_refused(composer, code, tmp_path):
    path = tmp_path / "a.safetensors"
    code.save(path)
    loaded = read_code(path)
    assert (loaded.layout, loaded.sample_rate) == (code.layout, None)
    content, tensors = path.read_bytes(), load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged"):
        read_code(path)
    for key, value, fault in (
        ("boxes", None, "boxes is missing"),
        ("shape", "[3,", "shape is not valid JSON"),
        ("layout", json.dumps({"cells": [1]}), "layout"),
    ):
        save_file(tensors, path, {name: text for name, text in (metadata | {key: value}).items() if text is not None})
        with pytest.raises(ValueError, match=rf"a\.safetensors is not a valid code: {fault}.*Write it again"):
            read_code(path)


def test_codes_of_other_sizes_are_not_interpolated(composer, code):
    other = encode(composer, random_pixels(11, 30), refinement=PREDICTION)
    with pytest.raises(ValueError, match="encode both signals at one size"):
        interpolate(code, other, 0.5)
    same = encode(composer, random_pixels(11, 18, seed=1), refinement=PREDICTION)
    halfway = interpolate(code, same, 0.5)
    torch.testing.assert_close(halfway.latents["codes"], (code.latents["codes"] + same.latents["codes"]) / 2)


def test_audio_of_any_length_keeps_its_sampling_rate(tmp_path):
    composer = build_patch_ipc(1, 20, 1)
    values = torch.rand(1, 1234) - 0.5
    code = audio.encode(composer, values, 400, refinement=PREDICTION)
    code.save(tmp_path / "a.safetensors")
    code = read_code(tmp_path / "a.safetensors")
    assert (code.layout, code.domain) == (Layout((62,), (1234,)), Grid.unit(1))
    assert audio.code_sample_rate(code) == code.sample_rate == 400
    assert audio.Audio().size_of_code(code).rate == pytest.approx(62 * 5 * 32 / 3085)
    original, double = audio.render(composer, code), audio.render(composer, code, 800)
    assert (original.shape, double.shape) == ((1, 1234), (1, 2468))
    torch.testing.assert_close(double[:, ::2], original, rtol=1e-4, atol=5e-4)
    with torch.no_grad():
        expected = composer.render(composer.compose(code.latents, code.layout), Grid.unit(1).coords((1234,)))
    torch.testing.assert_close(original, expected[0].mT, rtol=1e-4, atol=1e-4)


def test_long_recordings_are_split_into_blended_tiles():
    composer = build_patch_ipc(1, 20, 1)
    code = audio.encode(composer, torch.rand(1, 1234) - 0.5, 400, max_seconds=1.5, refinement=PREDICTION)
    [(start, stop)] = code.boxes[0]
    assert (start, len(code.boxes), (stop - start) % 20) == (0, 3, 0)
    assert stop - start <= 600
    assert audio.render(composer, code).shape == (1, 1234)
    assert audio.code_sample_rate(code) == 400
