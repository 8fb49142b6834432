"""Patches against loops that slice them out one by one."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from composers.encoders import Patches


def _padded_sample(signal, channel, place, paddings):
    """Return one number of a signal with zeros around it, whose far ends are mirrored without repeating the last."""
    source = []
    for index, size, padding in zip(place, signal.shape[1:], paddings, strict=True):
        padded = size + 2 * padding
        mirrored = index if index < padded else 2 * (padded - 1) - index
        if not padding <= mirrored < padding + size:
            return 0.0
        source.append(mirrored - padding)
    return signal[channel, *source]


def _naive_patches(signal, patch_size, padding):
    """Return the tokens of one signal ``(C, *shape)`` by a loop over patches, channels and offsets."""
    axes = signal.ndim - 1
    patches, paddings = ([n] * axes if isinstance(n, int) else list(n) for n in (patch_size, padding))
    counts = [-(-(size + 2 * p) // n) for size, n, p in zip(signal.shape[1:], patches, paddings, strict=True)]
    return np.array(
        [
            [
                _padded_sample(signal, channel, np.array(patch) * patches + offset, paddings)
                for channel in range(signal.shape[0])
                for offset in product(*(range(n) for n in patches))
            ]
            for patch in product(*(range(count) for count in counts))
        ]
    )


def _assert_equal_loop(shape, patch_size, padding, remainder):
    tokenizer = Patches(shape, patch_size, padding, remainder)
    signal = torch.rand(2, *shape)
    tokens = tokenizer(signal)
    assert tokens.shape == (2, tokenizer.num_tokens, tokenizer.token_dim)
    for found, image in zip(tokens, signal, strict=True):
        np.testing.assert_array_equal(found.numpy(), _naive_patches(image.numpy(), patch_size, padding))


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
def test_any_size_can_be_cut(sizes, channels, patch_size, padding):
    _assert_equal_loop((channels, *sizes), patch_size, padding, "reflect")


@pytest.mark.parametrize(("height", "width", "padding"), [(12, 18, 0), (16, 10, 1), (8, 2, 2)])
def test_images_are_cut_as_unfold_cuts_them(height, width, padding):
    signal = torch.rand(2, 3, height, width)
    wanted = functional.unfold(signal, kernel_size=6, stride=6, padding=padding).mT
    assert torch.equal(Patches((3, height, width), 6, padding)(signal), wanted)


@pytest.mark.parametrize(
    ("shape", "patch_size", "padding", "num_tokens", "token_dim"),
    [
        ((3, 178, 178), 9, 1, 400, 243),
        ((1, 16000), 200, 0, 80, 200),
        ((1, 48000), 200, 0, 240, 200),
        ((9, 128, 128), 8, 0, 256, 576),
        ((3, 1024, 1024), 32, 0, 1024, 3072),
    ],
)
def test_published_sizes(shape, patch_size, padding, num_tokens, token_dim):
    tokenizer = Patches(shape, patch_size, padding)
    assert (tokenizer.num_tokens, tokenizer.token_dim) == (num_tokens, token_dim)
    assert not list(tokenizer.parameters())


def test_tokens_that_were_stated_for_an_open_shape():
    tokenizer = Patches((3, -1, -1), patch_size=4, num_tokens=6)
    signal = torch.rand(1, 3, 8, 12)
    assert torch.equal(tokenizer(signal), Patches((3, 8, 12), 4)(signal))
    assert tokenizer(torch.rand(1, 3, 4, 24)).shape == (1, 6, 48)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\) and 4 patches .* with 6"):
        tokenizer(torch.rand(1, 3, 8, 8))


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
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Patches(**arguments)


@pytest.mark.parametrize("shape", [(1, 8, 12), (3, 8, 8), (3, 16, 12), (3, 8, 13)], ids=str)
def test_signals_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"signal|signal_shape"):
        Patches((3, 8, 12), patch_size=4)(torch.rand(2, *shape))


def test_patches_of_another_size_along_each_axis_are_named():
    tokenizer = Patches((3, -1, -1), (4, 2), num_tokens=6)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\) and 8 patches of 4 x 2; .* with 6"):
        tokenizer(torch.rand(1, 3, 8, 8))


def test_a_signal_on_its_side_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 12, 8\)"):
        Patches((3, 8, 12), patch_size=4)(torch.rand(2, 3, 12, 8))


def test_a_remainder_that_is_too_short_to_mirror_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"200.*50|50.*200"):
        Patches((1, 50), patch_size=200, remainder="reflect")
