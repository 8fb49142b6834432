"""Networks of tokens: the MLP of ANR against loops, places of tokens, chunks and refusals."""

import itertools
import math
import re

import numpy as np
import pytest
import torch

from composers.networks import AttentiveMLP, FourierFeatures, TokenAttention, token_network
from datamodules.domain import CellGrid, Grid

B, N, E, SIZES = 2, 6, 5, (3, 4)
LOCAL = {"sharpness": 0.8, "relative": True}


def _network(num_tokens=12, coord_dim=2, options=None, **arguments):
    torch.manual_seed(0)
    return AttentiveMLP(
        FourierFeatures(2, 4.0),
        hidden_dim=7,
        num_hidden=2,
        coord_dim=coord_dim,
        value_dim=3,
        token_dim=E,
        num_tokens=num_tokens,
        attention=TokenAttention(2, 4, **(options or {})),
        **arguments,
    )


def _tokens(*sizes):
    return {"tokens": torch.randn(B, E, *(sizes or (12,)), generator=torch.Generator().manual_seed(1))}


def _coords(axes=2, shared=True):
    return 2 * torch.rand(*(() if shared else (B,)), N, axes, generator=torch.Generator().manual_seed(2)) - 1


def _numpy(tensor):
    return tensor.detach().double().numpy()


def _linear(layer, row):
    return _numpy(layer.weight) @ row + (0 if layer.bias is None else _numpy(layer.bias))


def _naive(network, coord, tokens):
    """Return the value at one coordinate of one instance with tokens ``(E, T)``, without places."""
    phases = [math.pi * position * frequency for position in coord for frequency in (1.0, 4.0)]
    query = _linear(
        network.attention.query, np.array([math.cos(phase) for phase in phases] + [math.sin(phase) for phase in phases])
    )
    keys, values = (
        [_linear(layer, token) for token in tokens.T] for layer in (network.attention.key, network.attention.value)
    )
    read = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = np.array([math.exp(query[part] @ key[part] / 2) for key in keys])
        weights = np.maximum(weights / weights.sum() - network.attention.threshold, 0)
        read.append(sum(weight * value[part] for weight, value in zip(weights / weights.sum(), values, strict=True)))
    hidden = _linear(network.projection, np.concatenate(read))
    for layer in network.hidden:
        hidden = np.maximum(_linear(layer, hidden), 0)
    return _linear(network.last, hidden) + network.output_offset


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per instance"])
@pytest.mark.parametrize("threshold", [0.0, 0.08])
def test_equals_a_loop(threshold, shared):
    network = _network(options={"threshold": threshold}, output_offset=0.25).double()
    tokens, coords = _tokens()["tokens"].double(), _coords(shared=shared).double()
    values = network(coords, {"tokens": tokens})
    assert values.shape == (B, N, 3)
    for instance, place in itertools.product(range(B), range(N)):
        coord = _numpy(coords if shared else coords[instance])[place]
        expected = _naive(network, coord, _numpy(tokens[instance]))
        np.testing.assert_allclose(_numpy(values[instance, place]), expected, atol=1e-6)


def test_published_sizes():
    network = AttentiveMLP(
        coord_dim=2, value_dim=3, token_dim=512, num_tokens=256, attention=TokenAttention(6, 64, threshold=0.0015)
    )
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_839_107
    assert network.encoding.width(2) == 512
    assert network.slots["tokens"].shape == (512, 256)
    views = AttentiveMLP(FourierFeatures(85, 512.0), coord_dim=3, value_dim=4, token_dim=512, num_tokens=128)
    assert views.encoding.width(3) == 510  # filled with two zeros as released


@pytest.mark.parametrize(
    ("num_tokens", "axes", "shape", "grid"),
    [
        (12, 2, (E, 12), None),
        ((3, 4), 2, (E, 12), (3, 4)),
        (None, 2, (E, -1, -1), None),
        (12, 1, (E, 12), (12,)),
        (None, 1, (E, -1), None),
        (12, 3, (E, 12), None),
    ],
    ids=str,
)
def test_the_slot_follows_from_the_number_of_tokens(num_tokens, axes, shape, grid):
    network = _network(num_tokens, axes)
    [(name, spec)] = network.slots.items()
    assert (name, spec.shape, network.grid) == ("tokens", shape, grid)
    assert spec.initial().shape == tuple(max(size, 1) for size in shape)
    assert spec.initial().std() > 0.3  # equal tokens would stay equal under gradient steps


@pytest.mark.parametrize("num_tokens", [SIZES, None], ids=str)
def test_tokens_are_at_the_centres_of_cells(num_tokens):
    ranges = ((-3.0, 1.0), (0.0, 10.0))
    network = _network(num_tokens, ranges=ranges, options={"sharpness": 200.0})  # only the nearest token has a weight
    centres = Grid(ranges).coords(SIZES)
    tokens = _tokens(12 if num_tokens else SIZES[0], *(() if num_tokens else SIZES[1:]))["tokens"].requires_grad_()
    values = network(centres, {"tokens": tokens})
    for place in range(12):
        (gradient,) = torch.autograd.grad(values[:, place].sum(), tokens, retain_graph=True)
        assert gradient.flatten(2).abs().amax((0, 1)).nonzero().flatten().tolist() == [place]


def test_a_grid_by_the_network_equals_that_of_the_encoder():
    fixed, free = _network(SIZES, options=LOCAL), _network(None, options=LOCAL)
    tokens, coords = _tokens(*SIZES)["tokens"], _coords()
    torch.testing.assert_close(fixed(coords, {"tokens": tokens.flatten(2)}), free(coords, {"tokens": tokens}))


def test_values_move_with_the_tokens():
    network = _network(None, 1, LOCAL | {"sharpness": 30.0})
    tokens = torch.zeros(B, E, 8)
    tokens[:, :, 2:4] = _tokens(2)["tokens"]
    near = torch.linspace(-0.5, 0.0, N).unsqueeze(-1)  # around tokens 2 and 3
    with torch.no_grad():
        network.attention.query.weight.zero_()  # the query is a function of the absolute position
    moved = network(near + 0.5, {"tokens": tokens.roll(2, -1)})
    torch.testing.assert_close(moved, network(near, {"tokens": tokens}), atol=1e-5, rtol=0)


def test_sizes_of_queries_are_no_places():
    network = _network(SIZES, coord_dim=4, ranges=((-1, 1), (-1, 1)), options=LOCAL)
    assert network(CellGrid.unit(2).coords((4, 4)), _tokens()).shape == (B, 16, 3)


@pytest.mark.parametrize("num_tokens", [12, SIZES, None], ids=str)
def test_a_bound_field_projects_tokens_once(num_tokens, monkeypatch):
    network = _network(num_tokens, options=None if num_tokens == 12 else LOCAL)
    modulations = _tokens(*(SIZES if num_tokens is None else (12,)))
    calls = []
    network.attention.key.register_forward_hook(lambda *_: calls.append(1))
    field = network.bind(modulations)
    coords = _coords()
    torch.testing.assert_close(field(coords), network(coords, modulations), atol=0, rtol=0)
    shared, separate = field(coords), field(coords.expand(B, -1, -1))
    torch.testing.assert_close(separate, shared)
    assert len(calls) == 2


def test_more_tokens_than_counted_are_read_in_parts(monkeypatch):
    network = _network(None, options=LOCAL)
    modulations, coords, evaluated = _tokens(*SIZES), _coords(), []
    expected = network(coords, modulations)
    assert network.floats_per_coord == network.floats_of_layers + network.attention.floats_per_coord(256)
    monkeypatch.setattr(token_network, "_COUNTED", 4)
    evaluate = network.evaluate
    monkeypatch.setattr(network, "evaluate", lambda part, tokens: evaluated.append(len(part)) or evaluate(part, tokens))
    with torch.no_grad():
        torch.testing.assert_close(network(coords, modulations), expected)
    assert evaluated == [2, 2, 2]
    network(coords, modulations)
    assert evaluated == [2, 2, 2, N]


def test_autocast_computes_the_last_layer_in_float32():
    network = _network()
    with torch.autocast("cpu", torch.bfloat16):
        values = network(_coords(), _tokens())
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, network(_coords(), _tokens()), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"coord_dim": None},
            "coord_dim and value_dim are missing: the command line sets them from the data module; in Python "
            "pass both.",
        ),
        (
            {"ranges": ((-1, 1),) * 3},
            "ranges is ((-1, 1), (-1, 1), (-1, 1)) and coord_dim 2: give a lower and an upper bound for every dimension, or "
            "for every position of positions with sizes.",
        ),
        (
            {"num_tokens": 0},
            "token_dim is 5 and num_tokens 0; token_dim must be at least 1, and num_tokens one number of at "
            "least 1, one for each of 2 axes, or null.",
        ),
        (
            {"num_tokens": (2, 2, 3)},
            "token_dim is 5 and num_tokens (2, 2, 3); token_dim must be at least 1, and num_tokens one "
            "number of at least 1, one for each of 2 axes, or null.",
        ),
        (
            {"options": {"relative": True}},
            "num_tokens is 12, a set of tokens without places, and the attention depends on places: give one number for each "
            "of 2 axes, or null, or set sharpness of the attention to 0 and relative to false.",
        ),
        (
            {"options": {"threshold": 0.2}},
            "threshold is 0.2; with 12 tokens all weights may be below it: set it to less than 0.0833.",
        ),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _network(**arguments)


@pytest.mark.parametrize(("hidden_dim", "num_hidden"), [(0, 1), (4, 0)])
def test_an_empty_mlp_raises_an_error(hidden_dim, num_hidden):
    message = f"hidden_dim is {hidden_dim} and num_hidden {num_hidden}; both must be at least 1."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AttentiveMLP(hidden_dim=hidden_dim, num_hidden=num_hidden, coord_dim=2, value_dim=3)


def test_modulations_and_coords_that_do_not_fit_raise_an_error():
    network = _network()
    message = (
        "Modulations have the shapes {'tokens': (5, 11)} per instance; this network takes tokens (5, 12), where -1 is any "
        "size."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network.bind(_tokens(11))
    with pytest.raises(ValueError, match="takes tokens"):
        network.bind({"weight.0": torch.zeros(B, 2, 2)})
    with pytest.raises(
        ValueError, match=re.escape("coords have the shape (6, 3); this network takes (N, 2), or (2, N, 2)")
    ):
        network(_coords(3), _tokens())
    with pytest.raises(ValueError, match=re.escape("coords have the shape (3, 6, 2)")):
        network(_coords().expand(3, -1, -1), _tokens())
    with pytest.raises(ValueError, match=r"threshold is 0\.1; with 12 tokens all weights may be below it"):
        _network(None, options={"threshold": 0.1}).bind(_tokens(*SIZES))
