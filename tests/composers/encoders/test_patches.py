"""`Patches` against loops over patches, channels and offsets."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from composers.encoders import Patches
from composers.latents import Layout


def _padded_sample(signal, channel, position, paddings):
    """Return one sample of a signal padded with zeros, whose far end is mirrored without repeating the last sample."""
    source = []
    for index, size, padding in zip(position, signal.shape[1:], paddings, strict=True):
        padded = size + 2 * padding
        mirrored = index if index < padded else 2 * (padded - 1) - index
        if not padding <= mirrored < padding + size:
            return 0.0
        source.append(mirrored - padding)
    return signal[channel, *source]


def _naive_patches(signal, patch_size, padding):
    """Return the tokens of one signal ``(C, *shape)``."""
    axes = signal.ndim - 1
    sizes, paddings = ([n] * axes if isinstance(n, int) else list(n) for n in (patch_size, padding))
    counts = [-(-(size + 2 * p) // n) for size, n, p in zip(signal.shape[1:], sizes, paddings, strict=True)]
    return np.array(
        [
            [
                _padded_sample(signal, channel, np.array(patch) * sizes + offset, paddings)
                for channel in range(signal.shape[0])
                for offset in product(*(range(n) for n in sizes))
            ]
            for patch in product(*(range(count) for count in counts))
        ]
    )


def _assert_equal_loop(shape, patch_size, padding, remainder):
    encoder = Patches(shape, patch_size, padding, remainder)
    signal = torch.rand(2, *shape)
    features = encoder(signal)
    assert features.tokens.shape == (2, encoder.num_tokens, encoder.embed_dim)
    assert math.prod(features.grid) == encoder.num_tokens
    for actual, instance in zip(features.tokens, signal, strict=True):
        np.testing.assert_array_equal(actual.numpy(), _naive_patches(instance.numpy(), patch_size, padding))


@pytest.mark.parametrize(
    ("shape", "patch_size", "padding", "remainder"),
    [
        ((1, 12), 4, 0, "refuse"),
        ((2, 10), 4, 1, "refuse"),
        ((1, 11), 4, 0, "reflect"),
        ((1, 215), 20, 0, "reflect"),
        ((3, 6, 4), 2, 0, "refuse"),
        ((3, 4, 7), 3, 1, "refuse"),
        ((3, 14, 18), 4, 1, "refuse"),
        ((3, 7, 5), 3, 0, "reflect"),
        ((2, 5, 6), 4, 1, "reflect"),
        ((1, 4, 2, 6), 2, 0, "refuse"),
        ((2, 4, 2, 6), 2, 1, "refuse"),
        ((2, 3, 5, 4), 2, 0, "reflect"),
        ((3, 2, 2), 1, 0, "refuse"),
        ((3, 6, 4), (3, 2), 0, "refuse"),
        ((3, 6, 4), 4, (1, 0), "refuse"),
        ((2, 4, 7), [2, 4], [1, 2], "reflect"),
        ((2, 4, 2, 6), (1, 2, 3), (0, 1, 0), "refuse"),
    ],
)
def test_tokens_equal_a_loop(shape, patch_size, padding, remainder):
    _assert_equal_loop(shape, patch_size, padding, remainder)


@given(st.lists(st.integers(4, 7), min_size=1, max_size=2), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2))
def test_tokens_of_any_size_equal_a_loop(sizes, channels, patch_size, padding):
    _assert_equal_loop((channels, *sizes), patch_size, padding, "reflect")


@pytest.mark.parametrize(("height", "width", "padding"), [(12, 18, 0), (16, 10, 1), (8, 2, 2)])
def test_tokens_of_images_equal_unfold(height, width, padding):
    signal = torch.rand(2, 3, height, width)
    expected = functional.unfold(signal, kernel_size=6, stride=6, padding=padding).mT
    assert torch.equal(Patches((3, height, width), 6, padding).tokens(signal), expected)


@pytest.mark.parametrize(
    ("shape", "patch_size", "padding", "num_tokens", "embed_dim"),
    [
        ((3, 178, 178), 9, 1, 400, 243),
        ((1, 16000), 200, 0, 80, 200),
        ((1, 48000), 200, 0, 240, 200),
        ((9, 128, 128), 8, 0, 256, 576),
        ((3, 1024, 1024), 32, 0, 1024, 3072),
    ],
)
def test_published_sizes(shape, patch_size, padding, num_tokens, embed_dim):
    encoder = Patches(shape, patch_size, padding)
    assert (encoder.num_tokens, encoder.embed_dim) == (num_tokens, embed_dim)
    assert not list(encoder.parameters())


def test_open_shape_takes_signals_with_the_given_number_of_tokens():
    encoder = Patches((3, -1, -1), patch_size=4, num_tokens=6)
    signal = torch.rand(1, 3, 8, 12)
    assert torch.equal(encoder.tokens(signal), Patches((3, 8, 12), 4).tokens(signal))
    assert encoder(torch.rand(1, 3, 4, 24)).tokens.shape == (1, 6, 48)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\) and 4 patches .* with 6"):
        encoder(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "shape", "grid"),
    [
        (((3, 8, 12), 4), (8, 12), (2, 3)),
        (((3, 8, 12), (2, 3)), (8, 12), (4, 4)),
        (((3, 14, 18), 4, 1), (14, 18), (4, 5)),
        (((1, 11), 4, 0, "reflect"), (11,), (3,)),
        (((3, -1, -1), 4, 0, "refuse", 6), (4, 24), (1, 6)),
    ],
    ids=str,
)
def test_layout_has_the_grid_and_the_extent_without_padding(arguments, shape, grid):
    encoder = Patches(*arguments)
    signal = torch.rand(2, encoder.signal_shape[0], *shape)
    assert encoder.layout(signal) == Layout(grid, shape)
    assert encoder(signal).grid == grid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "signal_shape is None"),
        ({"signal_shape": (3,)}, r"signal_shape is \(3,\)"),
        ({"signal_shape": (3, 8, 8), "patch_size": 0}, "patch_size is 0"),
        ({"signal_shape": (3, 8, 8), "patch_size": 4, "padding": -1}, "padding -1"),
        ({"signal_shape": (3, 178, 178)}, "patch_size 9 with padding 0 does not divide 178"),
        ({"signal_shape": (3, 8, 9), "patch_size": 4, "padding": 2}, r"does not divide 9 samples \(13 with padding\)"),
        ({"signal_shape": (3, 8, 8), "patch_size": 4, "num_tokens": 5}, "num_tokens is 5, .* gives 4"),
        ({"signal_shape": (3, 8, 8), "patch_size": (4, 0)}, r"patch_size is \(4, 0\)"),
        (
            {"signal_shape": (3, 8, 8), "patch_size": [4]},
            r"patch_size is \[4\], and the signal has 2 axes: give one number",
        ),
        ({"signal_shape": (3, 8, 8), "padding": (0, 0, 1)}, r"padding is \[0, 0, 1\], and the signal has 2 axes"),
        ({"signal_shape": (3, 8, 9), "patch_size": (4, 2)}, "patch_size 2 with padding 0 does not divide 9 samples"),
        ({"signal_shape": (3, -1, -1), "patch_size": 4}, "num_tokens is None"),
        ({"signal_shape": (3, -1, -1), "patch_size": 4, "num_tokens": 0}, "num_tokens is 0"),
    ],
    ids=str,
)
def test_invalid_arguments_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Patches(**arguments)


@pytest.mark.parametrize("shape", [(1, 8, 12), (3, 8, 8), (3, 16, 12), (3, 8, 13)], ids=str)
def test_signals_of_another_shape_raise_an_error(shape):
    with pytest.raises(ValueError, match=r"signal|signal_shape"):
        Patches((3, 8, 12), patch_size=4)(torch.rand(2, *shape))


def test_error_message_has_the_patch_size_of_every_axis():
    encoder = Patches((3, -1, -1), (4, 2), num_tokens=6)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\) and 8 patches of 4 x 2; .* with 6"):
        encoder(torch.rand(1, 3, 8, 8))


def test_transposed_signal_raises_an_error():
    with pytest.raises(ValueError, match=r"shape \(3, 12, 8\)"):
        Patches((3, 8, 12), patch_size=4)(torch.rand(2, 3, 12, 8))


def test_remainder_too_short_to_mirror_raises_an_error_at_construction():
    with pytest.raises(ValueError, match=r"200.*50|50.*200"):
        Patches((1, 50), patch_size=200, remainder="reflect")
