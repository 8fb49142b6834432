"""The transformer against loops over instances, heads and tokens, and the cost of its last block."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from composers.encoders import Transformer
from composers.encoders.transformer import Attention, Block

B, T, K, E, HEADS, RATIO = 2, 5, 3, 12, 3, 2


def _perturbed(module):
    """Add noise to all parameters, so that no bias is zero and no LayerNorm the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def _numpy(parameter):
    return parameter.detach().double().numpy()


def _naive_linear(linear, tokens):
    """Return ``tokens @ W^T + b`` token by token."""
    bias = 0 if linear.bias is None else _numpy(linear.bias)
    return np.array([_numpy(linear.weight) @ token + bias for token in tokens])


def _naive_norm(norm, tokens):
    """Return a LayerNorm token by token, epsilon 1e-5."""
    rows = []
    for token in tokens:
        mean = sum(token) / len(token)
        variance = sum((number - mean) ** 2 for number in token) / len(token)
        rows.append((token - mean) / math.sqrt(variance + 1e-5) * _numpy(norm.weight) + _numpy(norm.bias))
    return np.array(rows)


def _naive_attention(attention, tokens):
    """Return the self-attention of tokens ``(T, E)``, computed with loops over heads and pairs of tokens."""
    queries = _naive_linear(attention.query, tokens)
    keys_values = _naive_linear(attention.key_value, tokens)
    keys, values = keys_values[:, : tokens.shape[1]], keys_values[:, tokens.shape[1] :]
    width = tokens.shape[1] // attention.num_heads
    gathered = np.zeros_like(tokens)
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(tokens)):
            scores = [math.exp(queries[i, part] @ keys[j, part] / math.sqrt(width)) for j in range(len(tokens))]
            for j in range(len(tokens)):
                gathered[i, part] += scores[j] / sum(scores) * values[j, part]
    return _naive_linear(attention.projection, gathered)


def _naive_transformer(transformer, tokens):
    """Return all tokens ``(T, E)`` of one instance after all blocks, with the exact GELU."""
    for block in transformer.blocks:
        tokens = tokens + _naive_attention(block.attention, _naive_norm(block.attention_norm, tokens))
        hidden = _naive_linear(block.mlp[0], _naive_norm(block.mlp_norm, tokens))
        hidden = np.vectorize(lambda h: h * 0.5 * (1 + math.erf(h / math.sqrt(2))))(hidden)
        tokens = tokens + _naive_linear(block.mlp[2], hidden)
    return tokens


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("num_heads", [1, 3, 12])
def test_weight_tokens_equal_a_loop(qkv_bias, num_blocks, num_heads):
    transformer = _perturbed(Transformer(E, num_blocks, num_heads, RATIO, qkv_bias=qkv_bias)).double().eval()
    data, weight = torch.randn(B, T, E).double(), torch.randn(B, K, E).double()
    actual = transformer(data, weight)
    assert actual.shape == (B, K, E)
    for instance in range(B):
        expected = _naive_transformer(transformer, np.concatenate((data[instance], weight[instance])))[T:]
        np.testing.assert_allclose(actual[instance].detach().numpy(), expected, atol=1e-10)


def test_float32_is_close_to_a_loop():
    transformer = _perturbed(Transformer(E, 2, HEADS, RATIO)).eval()
    data, weight = torch.randn(B, T, E), torch.randn(B, K, E)
    expected = _naive_transformer(transformer, torch.cat((data[0], weight[0])).double().numpy())[T:]
    np.testing.assert_allclose(transformer(data, weight)[0].detach().numpy(), expected, atol=1e-4)


def test_bias_of_queries_keys_and_values_is_optional():
    assert Attention(E, HEADS, qkv_bias=True).query.bias is not None
    without = Attention(E, HEADS, qkv_bias=False)
    assert without.query.bias is None
    assert without.key_value.bias is None
    assert without.projection.bias is not None


def test_last_block_equals_computing_all_tokens_and_slicing():
    block = _perturbed(Block(E, HEADS, RATIO, residual_dropout=0.1, qkv_bias=True)).eval()
    tokens = torch.randn(B, T + K, E)
    torch.testing.assert_close(block(tokens, K), block(tokens, T + K)[:, T:], atol=1e-6, rtol=0)


def _linear_flops(num_tokens, num_read):
    """Return the operations of the linear layers of a block: two for every token, input and output."""
    keys_values = num_tokens * E * 2 * E
    read = num_read * (E * E + E * E + 2 * E * RATIO * E)  # query, projection, MLP
    return 2 * B * (keys_values + read)


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_last_block_computes_only_the_weight_tokens(num_blocks):
    transformer = Transformer(E, num_blocks, HEADS, RATIO).eval()
    with FlopCounterMode(display=False) as counter:
        transformer(torch.randn(B, T, E), torch.randn(B, K, E))
    counts = counter.get_flop_counts()["Global"]
    actual = sum(count for operator, count in counts.items() if operator in (torch.ops.aten.addmm, torch.ops.aten.mm))
    assert actual == (num_blocks - 1) * _linear_flops(T + K, T + K) + _linear_flops(T + K, K)


def test_order_of_data_tokens_has_no_effect_without_positions():
    transformer = _perturbed(Transformer(E, 2, HEADS, RATIO)).eval()
    data, weight = torch.randn(B, T, E), torch.randn(B, K, E)
    torch.testing.assert_close(
        transformer(data[:, torch.randperm(T)], weight), transformer(data, weight), atol=1e-5, rtol=0
    )


def test_tokens_depend_on_their_own_instance_only():
    transformer = _perturbed(Transformer(E, 2, HEADS, RATIO)).eval()
    data = torch.randn(B, T, E, requires_grad=True)
    (gradient,) = torch.autograd.grad(transformer(data, torch.randn(B, K, E))[0].square().sum(), data)
    assert gradient[0].any()
    assert not gradient[1].any()


def test_dropout_applies_to_both_residuals_in_training_only():
    transformer = Transformer(E, 2, HEADS, RATIO, residual_dropout=0.5)
    calls = []
    for block in transformer.blocks:
        block.dropout.register_forward_hook(lambda module, arguments, output: calls.append((arguments[0], output)))
    data, weight = torch.randn(B, T, E), torch.randn(B, K, E)
    assert not torch.equal(transformer(data, weight), transformer(data, weight))
    assert [len(output[0]) for _, output in calls] == [T + K, T + K, K, K] * 2
    for before, after in calls:
        kept = after != 0
        torch.testing.assert_close(after[kept], 2 * before[kept])
    assert 0.3 < torch.cat([(after == 0).flatten() for _, after in calls]).float().mean() < 0.7
    transformer.eval()
    assert torch.equal(transformer(data, weight), transformer(data, weight))


def test_dropout_can_be_disabled():
    transformer = Transformer(E, 2, HEADS, RATIO, residual_dropout=0.0).train()
    data, weight = torch.randn(B, T, E), torch.randn(B, K, E)
    assert torch.equal(transformer(data, weight), transformer(data, weight))


def test_transformer_has_no_final_norm_and_an_exact_gelu():
    transformer = Transformer(E, 1, HEADS, RATIO)
    assert sum(isinstance(module, nn.LayerNorm) for module in transformer.modules()) == 2
    assert [module.approximate for module in transformer.modules() if isinstance(module, nn.GELU)] == ["none"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 0}, "embed_dim 0"),
        ({"num_blocks": 0}, "num_blocks 0"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"mlp_ratio": 0}, "mlp_ratio 0"),
        ({"embed_dim": 16, "num_heads": 3}, "num_heads 3 does not divide embed_dim 16"),
        ({"residual_dropout": 1.0}, "residual_dropout is 1.0"),
        ({"residual_dropout": -0.1}, "residual_dropout is -0.1"),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**arguments)


def test_encoding_returns_all_tokens():
    torch.manual_seed(0)
    transformer, tokens = Transformer(12, 2, 3, residual_dropout=0.0), torch.randn(2, 5, 12)
    expected = tokens
    for block in transformer.blocks:
        expected = block(expected, 5)
    torch.testing.assert_close(transformer.encode(tokens), expected)
