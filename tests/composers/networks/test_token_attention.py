"""Attention from coordinates to tokens against loops over instances, coordinates, heads and tokens."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from composers.networks import TokenAttention
from composers.networks.token_attention import _lowest_frequencies

B, N, T, E, Q, HEADS, WIDTH = 2, 5, 7, 6, 3, 2, 4
OPTIONS = {
    "free": {},
    "threshold": {"threshold": 0.12},
    "distance": {"sharpness": 0.7},
    "relative": {"relative": True},
    "all": {"threshold": 0.1, "sharpness": 0.7, "relative": True, "qkv_bias": True},
}


def _attention(dtype=torch.float64, axes=2, **options):
    attention = TokenAttention(HEADS, WIDTH, **options)
    attention.connect(Q, E, axes, T)
    return attention.to(dtype)


def _inputs(shared=True, axes=2, dtype=torch.float64, seed=0):
    """Return queries, tokens, positions and places, far enough apart for weights below a threshold."""
    generator = torch.Generator().manual_seed(seed)
    queries = 3 * torch.randn(*(() if shared else (B,)), N, Q, generator=generator)
    tokens = 2 * torch.randn(B, T, E, generator=generator)
    positions = 3 * torch.rand(*(() if shared else (B,)), N, axes, generator=generator)
    places = 3 * torch.rand(T, axes, generator=generator)
    return tuple(tensor.to(dtype) for tensor in (queries, tokens, positions, places))


def _numpy(tensor):
    return tensor.detach().double().numpy()


def _linear(layer, row):
    return _numpy(layer.weight) @ row + (0 if layer.bias is None else _numpy(layer.bias))


def _rotated(value, offset, frequencies):
    """Return a value rotated pair by pair: entry j and the entry half a width further are a complex number."""
    half = len(value) // 2
    numbers = [
        complex(value[j], value[j + half]) * np.exp(1j * math.pi * float(offset @ frequencies[j])) for j in range(half)
    ]
    return np.array([number.real for number in numbers] + [number.imag for number in numbers])


def _naive(attention, query, tokens, position, places):
    """Return what one coordinate reads of tokens ``(T, E)`` of one instance."""
    frequencies, read = _numpy(attention.frequencies), []
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        key_weights, values = [], []
        for token, place in zip(tokens, places, strict=True):
            score = _linear(attention.query, query)[part] @ _linear(attention.key, token)[part] / math.sqrt(WIDTH)
            share = head / (HEADS - 1)
            score -= attention.sharpness * math.exp(share) * sum((position - place) ** 2)
            value = _linear(attention.value, token)[part]
            values.append(_rotated(value, position - place, frequencies) if attention.relative else value)
            key_weights.append(math.exp(score))
        weights = [weight / sum(key_weights) for weight in key_weights]
        kept = [max(weight - attention.threshold, 0) for weight in weights]
        read.append(sum(weight / sum(kept) * value for weight, value in zip(kept, values, strict=True)))
    return np.concatenate(read)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per instance"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_equals_a_loop(options, shared, axes):
    attention = _attention(axes=axes, **options)
    queries, tokens, positions, places = _inputs(shared, axes)
    actual = attention(queries, attention.project(tokens, places), positions)
    assert actual.shape == (B, N, HEADS * WIDTH)
    for instance, coordinate in itertools.product(range(B), range(N)):
        of_instance = (coordinate,) if shared else (instance, coordinate)
        expected = _naive(
            attention,
            *(_numpy(part) for part in (queries[of_instance], tokens[instance], positions[of_instance], places)),
        )
        np.testing.assert_allclose(_numpy(actual[instance, coordinate]), expected, atol=1e-6)


def test_a_threshold_cuts_weights_to_zero():
    attention = _attention(threshold=0.14)
    queries, tokens, _, _ = _inputs()
    tokens.requires_grad_()
    projected = attention.project(tokens)
    values = projected.values.detach().requires_grad_()
    read = attention(queries, projected._replace(values=values))
    (gradient,) = torch.autograd.grad(read[0, 0, :WIDTH].sum(), values)
    weights = gradient[0, 0, :, 0]
    assert (weights == 0).any()
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1)


def test_relative_values_move_with_tokens_and_coordinates():
    attention = _attention(relative=True, sharpness=1.0)
    queries, tokens, positions, places = _inputs()
    moved = attention(queries, attention.project(tokens, places + 40.25), positions + 40.25)
    torch.testing.assert_close(moved, attention(queries, attention.project(tokens, places), positions))


def test_phases_stay_exact_far_from_the_origin():
    attention = _attention(torch.float32, axes=1, relative=True)
    queries, tokens, positions, places = _inputs(axes=1, dtype=torch.float32)
    positions, places = (positions * 8).round() / 8, (places * 8).round() / 8  # so that sums are exact
    far = attention(queries, attention.project(tokens, places + 2**15), positions + 2**15)
    torch.testing.assert_close(far, attention(queries, attention.project(tokens, places), positions))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_autocast_keeps_distances_and_phases_in_float32(options):
    attention = _attention(torch.float32, **options)
    queries, tokens, positions, places = _inputs(dtype=torch.float32)
    far = [part + 512 for part in (positions, places)]  # bfloat16 has a spacing of 4 there
    expected = attention(queries, attention.project(tokens, far[1]), far[0])
    with torch.autocast("cpu", torch.bfloat16):
        read = attention(queries, attention.project(tokens, far[1]), far[0])
    assert read.dtype == torch.bfloat16
    torch.testing.assert_close(read.float(), expected, atol=0.15, rtol=0.05)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_gradients(options):
    attention = _attention(**options)
    queries, tokens, positions, places = _inputs()

    def read(tokens, positions):
        return attention(queries, attention.project(tokens, places), positions).sum((0, 1))

    inputs = (tokens[:, :, :].clone().requires_grad_(), positions.clone().requires_grad_())
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(read, inputs, atol=1e-4)


def test_the_lowest_frequencies_are_half_a_ball():
    plane = [tuple(vector) for vector in _lowest_frequencies(13, 2).int().tolist()]
    assert plane[0] == (0, 0)
    assert set(plane[1:3]) == {(0, 1), (1, 0)}
    lengths = [first**2 + second**2 for first, second in plane]
    assert lengths == sorted(lengths)
    assert not {(-first, -second) for first, second in plane[1:]} & set(plane)
    ball = [vector for vector in itertools.product(range(-3, 4), repeat=2) if sum(number**2 for number in vector) < 9]
    assert len(ball) == 2 * len([vector for vector in plane if sum(number**2 for number in vector) < 9]) - 1


def test_floats_count_the_scores():
    plain = TokenAttention(6, 64)
    assert plain.floats_per_coord(256) == 6 * 256 + 3 * 384
    assert TokenAttention(6, 64, threshold=0.001).floats_per_coord(256) - plain.floats_per_coord(256) == 2 * 6 * 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_heads": 0},
            "num_heads is 0 and head_dim 64: both must be at least 1, and head_dim even where relative is true.",
        ),
        (
            {"head_dim": 5, "relative": True},
            "num_heads is 2 and head_dim 5: both must be at least 1, and head_dim even where relative is true.",
        ),
        (
            {"threshold": 1.0},
            "threshold is 1.0 and sharpness 0.0: threshold must lie in [0, 1), and sharpness must be at least 0.",
        ),
        (
            {"sharpness": -1.0},
            "threshold is 0.0 and sharpness -1.0: threshold must lie in [0, 1), and sharpness must be at least 0.",
        ),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TokenAttention(**arguments)


def test_a_threshold_that_may_exceed_all_weights_raises_an_error():
    message = "threshold is 0.25; with 4 tokens all weights may be below it: set it to less than 0.25."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TokenAttention(threshold=0.25).connect(3, 3, 2, 4)
    TokenAttention(threshold=0.25).connect(3, 3, 2, 3)


@pytest.mark.parametrize("options", [{"sharpness": 1.0}, {"relative": True}], ids=str)
def test_local_attention_without_places_raises_an_error(options):
    attention = _attention(**options)
    queries, tokens, _, places = _inputs()
    message = (
        "Attention with sharpness or relative depends on places: pass places to project, and positions to forward."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attention.project(tokens)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attention(queries, attention.project(tokens, places))
