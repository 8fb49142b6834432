"""The decoder of weight tokens against loops over instances, heads and tokens."""

import math
import re

import numpy as np
import pytest
import torch

from composers.encoders import Patches, TokenDecoder, Transformer
from composers.encoders.encoder import Features
from composers.networks import TensorSpec

B, T, D, E, HEADS, WIDTH = 2, 4, 3, 10, 3, 2
LATENTS = {
    "tokens": TensorSpec((6, 5), lambda: torch.zeros(6, 5)),
    "extra": TensorSpec((4, 2), lambda: torch.zeros(4, 2)),
}


def _encoder(num_tokens=T):
    encoder = Patches((D, num_tokens), patch_size=1)
    assert (encoder.embed_dim, encoder.num_tokens) == (D, num_tokens)
    return encoder


def _readout(**arguments):
    torch.manual_seed(0)
    transformer = Transformer(E, 2, HEADS, 2, residual_dropout=0.0, qkv_bias=False, head_dim=WIDTH)
    readout = TokenDecoder(transformer, **({"num_layers": 2} | arguments))
    readout.connect(_encoder(), LATENTS)
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return readout.double().eval()


def _numpy(tensor):
    return tensor.detach().double().numpy()


def _linear(layer, rows):
    return rows @ _numpy(layer.weight).T + (0 if layer.bias is None else _numpy(layer.bias))


def _norm(norm, rows):
    mean, variance = rows.mean(1, keepdims=True), rows.var(1, keepdims=True)
    return (rows - mean) / np.sqrt(variance + norm.eps) * _numpy(norm.weight) + _numpy(norm.bias)


def _attention(attention, rows, others):
    queries, keys_values = _linear(attention.query, rows), _linear(attention.key_value, others)
    read = np.zeros((len(rows), HEADS * WIDTH))
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        keys, values = keys_values[:, part], keys_values[:, HEADS * WIDTH :][:, part]
        for i, query in enumerate(queries[:, part]):
            weights = [math.exp(query @ key / math.sqrt(WIDTH)) for key in keys]
            read[i, part] = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
    return _linear(attention.projection, read)


def _mlp(block, rows):
    hidden = _linear(block.mlp[0], _norm(block.mlp_norm, rows))
    hidden = np.vectorize(lambda number: number * 0.5 * (1 + math.erf(number / math.sqrt(2))))(hidden)
    return _linear(block.mlp[2], hidden)


def _naive(readout, tokens):
    """Return the latents of one instance with tokens ``(T, D)``."""
    data = _linear(readout.embedding, tokens) + _numpy(readout.positions[0])
    for block in readout.transformer.blocks:
        normed = _norm(block.attention_norm, data)
        data = data + _attention(block.attention, normed, normed)
        data = data + _mlp(block, data)
    weight = _numpy(readout.weight_tokens)
    for layer in readout.layers:
        normed = _norm(layer.attention_norm, weight)
        weight = weight + _attention(layer.attention, normed, normed)
        weight = weight + _attention(layer.cross_attention, _norm(layer.cross_norm, weight), data)
        weight = weight + _mlp(layer, weight)
    latents, first = {}, 0
    for name, spec in LATENTS.items():
        norm, linear = readout.heads[name]
        part = _linear(linear, _norm(norm, weight[first : first + spec.shape[1]]))
        latents[name] = (_numpy(readout.scales[name]) * part + _numpy(readout.bases[name])).T
        first += spec.shape[1]
    return latents


def test_latents_equal_a_loop():
    readout, tokens = _readout(), torch.randn(B, T, D).double()
    latents = readout(Features(tokens))
    assert list(latents) == list(LATENTS)
    for instance in range(B):
        for name, expected in _naive(readout, _numpy(tokens[instance])).items():
            assert expected.shape == LATENTS[name].shape
            np.testing.assert_allclose(_numpy(latents[name][instance]), expected, atol=1e-10)


def test_initial_scales_are_one_and_bases_standard_normal():
    readout = TokenDecoder(Transformer(8, 1, 2, 1), num_layers=1)
    readout.connect(_encoder(), {"tokens": TensorSpec((64, 32), lambda: torch.zeros(64, 32))})
    assert (readout.scales["tokens"] == 1).all()
    assert readout.bases["tokens"].mean().abs() < 0.1
    assert 0.9 < readout.bases["tokens"].std() < 1.1
    assert readout.num_weight_tokens == 32
    assert readout.weight_tokens.shape == (32, 8)


def test_decoder_layers_have_the_sizes_of_the_transformer():
    readout = _readout()
    [*layers] = readout.layers
    assert len(layers) == 2
    assert layers[0].cross_attention.query.weight.shape == (HEADS * WIDTH, E)
    assert layers[0].cross_attention.query.bias is None
    assert layers[0].mlp[0].weight.shape == (2 * E, E)


@pytest.mark.parametrize(
    ("shape", "listed"),
    [((6, -1), "{'tokens': (6, -1)}"), ((6,), "{'tokens': (6,)}"), ((6, 2, 2), "{'tokens': (6, 2, 2)}")],
)
def test_latents_without_columns_raise_an_error(shape, listed):
    message = (
        f"TokenDecoder predicts latents of two fixed axes; this parametrization has {listed}: state num_tokens of the network, "
        "or use readout PerToken or WeightTokens."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TokenDecoder(Transformer(8, 1, 2, 1)).connect(_encoder(), {"tokens": TensorSpec(shape, lambda: None)})


def test_a_decoder_without_layers_raises_an_error():
    with pytest.raises(ValueError, match=r"^num_layers of TokenDecoder is 0; it must be at least 1\.$"):
        TokenDecoder(Transformer(8, 1, 2, 1), num_layers=0)


def test_heads_that_do_not_divide_the_width_raise_an_error():
    message = "num_heads 6 does not divide embed_dim 512: choose a divisor of embed_dim, or set head_dim."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Transformer(512, num_heads=6)
    assert Transformer(512, 1, 6, 1, head_dim=64).blocks[0].attention.query.weight.shape == (384, 512)
