"""Mixing of grids and its parts: against naive loops."""

import itertools

import pytest
import torch

from composers.networks import GridMixer, ScaledLinear
from composers.networks.neighbours import neighbourhoods


def disturb(module, std=0.3):
    """Set all parameters to random values, so that nothing is zero or one."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_before_training_a_mixer_is_the_identity(axes):
    tokens = torch.rand(2, *(4, 3, 2)[:axes], 5)
    assert torch.equal(GridMixer(5, 2, 3, 2, axes)(tokens), tokens)


@torch.no_grad()
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_block_is_that_of_a_naive_loop(axes):
    torch.manual_seed(0)
    grid = (4, 3, 2)[:axes]
    tokens = torch.rand(1, *grid, 5)
    mixer = disturb(GridMixer(5, 1, 3, 2, axes))
    [block] = mixer.blocks
    normed, actual = block.norm(tokens)[0], mixer(tokens)[0]
    weight, bias = block.convolution.weight, block.convolution.bias
    for place in itertools.product(*map(range, grid)):
        mixed = bias.clone()
        for offset in itertools.product(range(3), repeat=axes):
            source = tuple(p + o - 1 for p, o in zip(place, offset, strict=True))
            if all(0 <= s < size for s, size in zip(source, grid, strict=True)):
                mixed += weight[:, 0, *offset] * normed[source]
        hidden = torch.nn.functional.gelu(block.expand(block.mlp_norm(mixed)))
        torch.testing.assert_close(actual[place], tokens[0, *place] + block.project(hidden), atol=1e-5, rtol=1e-5)


def test_a_mixer_without_blocks_mixes_nothing():
    tokens = torch.rand(1, 4, 3)
    assert GridMixer(3, 0, 3, 1, 1)(tokens) is tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 3, 1, 1), "embed_dim is 0"),
        ((4, -1, 3, 1, 1), "num_blocks -1"),
        ((4, 1, 2, 1, 1), "kernel_size is 2; it must be odd"),
        ((4, 1, 3, 0, 1), "mlp_ratio 0"),
        ((4, 1, 3, 1, 4), "The signal has 4 axes; convolutions mix grids of 1 to 3 axes"),
    ],
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridMixer(*arguments)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_neighbourhoods_are_those_of_a_naive_loop(size):
    tokens = torch.rand(2, 3, 4, 2)
    actual, reach = neighbourhoods(tokens, size), size // 2
    for row, column in itertools.product(range(3), range(4)):
        parts = []
        for r, c in itertools.product(range(row - reach, row + reach + 1), range(column - reach, column + reach + 1)):
            parts.append(tokens[:, r, c] if 0 <= r < 3 and 0 <= c < 4 else torch.zeros(2, 2))
        assert torch.equal(actual[:, row, column], torch.cat(parts, dim=-1))


def test_a_scaled_layer_is_linear_and_changes_slowly():
    layer, inputs = ScaledLinear(4, 3, factor=10.0), torch.rand(5, 4)
    weight, bias = torch.rand(3, 4), torch.rand(3)
    layer.assign(weight, bias)
    torch.testing.assert_close(layer(inputs), inputs @ weight.T + bias)
    torch.testing.assert_close(layer.double()(inputs.double()), (inputs @ weight.T + bias).double())
    layer.assign(weight)
    torch.testing.assert_close(layer(inputs.double()), (inputs @ weight.T).double())
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(inputs.double()).sum().backward()
    optimizer.step()
    change = layer.weight.detach() / 10 - weight.double()
    torch.testing.assert_close(change.abs(), torch.full_like(change, 0.01), atol=1e-5, rtol=0)
