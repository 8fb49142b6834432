"""The hypernetwork: which token becomes which column."""

import math

import pytest
import torch
from torch import nn

from composers.encoders import Patches, Transformer
from composers.inference import Columns, Hypernetwork

E = 12


class _Recorder(nn.Module):
    """A stand-in for the transformer: returns the weight tokens plus the instance's index, and keeps what it was given."""

    embed_dim = E

    def forward(self, data_tokens, weight_tokens):
        self.data_tokens = data_tokens
        return weight_tokens + torch.arange(len(weight_tokens)).reshape(-1, 1, 1)


def _naive_head(head, token):
    """Return LayerNorm and Linear of one token, number by number."""
    norm, linear = head
    token = token.tolist()
    mean = sum(token) / E
    deviation = math.sqrt(sum((number - mean) ** 2 for number in token) / E + 1e-5)
    normed = [(token[e] - mean) / deviation * float(norm.weight[e]) + float(norm.bias[e]) for e in range(E)]
    return [
        sum(float(linear.weight[i, e]) * normed[e] for e in range(E)) + float(linear.bias[i])
        for i in range(linear.out_features)
    ]


def _make(columns, **arguments):
    hypernet = Hypernetwork(Patches((1, 8), 4), _Recorder(), columns, **arguments)
    for head in hypernet.heads.values():
        nn.init.normal_(head[0].weight)
        nn.init.normal_(head[0].bias)
    return hypernet


@torch.no_grad()
@pytest.mark.parametrize(
    "columns",
    [
        {1: Columns(5, 4, 5)},
        {1: Columns(6, 4, 3)},
        {1: Columns(6, 4, 1)},
        {0: Columns(4, 3, 4), 2: Columns(6, 5, 2), 3: Columns(3, 2, 1)},
    ],
    ids=str,
)
def test_tokens_give_their_columns_in_order(columns):
    hypernet = _make(columns)
    found = hypernet(torch.rand(2, 1, 8))
    assert list(found) == list(columns)
    assert hypernet.num_tokens == (2, sum(wanted.num_tokens for wanted in columns.values()))
    for instance in range(2):
        place = 0
        for layer, (number, height, num_tokens) in columns.items():
            assert found[layer].shape == (2, height, number)
            for token in range(num_tokens):
                numbers = _naive_head(hypernet.heads[str(layer)], hypernet.weight_tokens[place] + instance)
                share = number // num_tokens
                for part in range(share):
                    column = found[layer][instance, :, token * share + part]
                    wanted = torch.tensor(numbers[part * height : (part + 1) * height])
                    torch.testing.assert_close(column, wanted, atol=1e-5, rtol=0)
                place += 1


def test_data_tokens_are_embedded_and_get_positions():
    hypernet = _make({1: Columns(2, 3, 2)})
    signal = torch.rand(3, 1, 8)
    hypernet(signal)
    weight, bias = hypernet.embedding.weight, hypernet.embedding.bias
    for instance in range(3):
        for token in range(2):
            numbers = signal[instance, 0, 4 * token : 4 * token + 4]
            wanted = weight @ numbers + bias + hypernet.positions[0, token]
            torch.testing.assert_close(hypernet.transformer.data_tokens[instance, token], wanted, atol=1e-6, rtol=0)


def test_learned_tokens_and_positions_start_normal():
    hypernet = Hypernetwork(Patches((1, 800), 4), Transformer(96, 1, 1, 1), {1: Columns(64, 3, 64)})
    assert hypernet.positions.shape == (1, 200, 96)
    assert hypernet.weight_tokens.shape == (64, 96)
    for numbers in (hypernet.positions, hypernet.weight_tokens):
        assert numbers.std().item() == pytest.approx(1.0, abs=0.05)
        assert numbers.mean().item() == pytest.approx(0.0, abs=0.05)


def test_zero_start_gives_exactly_zero_columns_that_can_move():
    columns = {0: Columns(4, 3, 2), 1: Columns(3, 5, 3)}
    hypernet = Hypernetwork(Patches((1, 8), 4), Transformer(E, 2, 3, 2), columns, zero_start=True)
    found = hypernet(torch.rand(2, 1, 8))
    assert not any(part.any() for part in found.values())
    sum(part.sum() for part in found.values()).backward()
    assert all(head[1].weight.grad.any() for head in hypernet.heads.values())
    assert all(parameter.grad is not None for parameter in hypernet.parameters())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({1: Columns(6, 4, 4)}, "4 weight tokens do not divide the 6 columns of layer 1"),
        ({0: Columns(6, 4, 3), 2: Columns(3, 4, 0)}, "0 weight tokens do not divide the 3 columns of layer 2"),
        ({1: Columns(3, 4, 6)}, "6 weight tokens do not divide the 3 columns"),
    ],
    ids=str,
)
def test_tokens_that_do_not_divide_the_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        _make(columns)
