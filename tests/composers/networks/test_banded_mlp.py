"""The network of LA-INR: the equations of its docstring coordinate by coordinate, precision, sizes and refusals."""

import itertools
import math

import numpy as np
import pytest
import torch

from composers.networks import BandedMLP, TokenAttention
from datamodules.domain import CellGrid, Grid

B, N, E, H = 2, 5, 6, 7  # instances, coordinates, entries of a token, width of the bands
BANDS, QUERY = (2.0, 4.0, 8.0), 3.0
NAMES = ("shared", "per instance")
SHARED = pytest.mark.parametrize("shared", [True, False], ids=NAMES)


def _network(num_tokens=4, coord_dim=2, options=None, **arguments):
    """Return a network with random weights, of which those of the attention are large enough to select."""
    torch.manual_seed(0)
    arguments = {"bands": BANDS, "query_frequency": QUERY, "num_frequencies": 3, "hidden_dim": H} | arguments
    attention = TokenAttention(2, 4, **(options or {}))
    network = BandedMLP(
        coord_dim=coord_dim, value_dim=3, token_dim=E, num_tokens=num_tokens, attention=attention, **arguments
    )
    for parameter in network.attention.parameters():
        torch.nn.init.normal_(parameter)
    return network


def _tokens(*sizes):
    """Return the modulations of two instances."""
    return {"tokens": torch.randn(B, E, *(sizes or (4,)), generator=torch.Generator().manual_seed(1))}


def _coords(axes=2, shared=True, count=N):
    """Return random coordinates in [-1, 1]."""
    shape = (count, axes) if shared else (B, count, axes)
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(2)) - 1


def _numpy(tensor):
    return tensor.detach().double().numpy()


def _linear(layer, row):
    """Return a linear layer of a vector."""
    return _numpy(layer.weight) @ row + (0 if layer.bias is None else _numpy(layer.bias))


def _relu(row):
    return np.maximum(row, 0)


def _gamma(coord, highest):
    """Return the cosines, then the sines of three frequencies from 1 to the highest, axis by axis."""
    phases = [math.pi * position * highest**power for position in coord for power in (0, 1 / 2, 1)]
    return np.array([math.cos(phase) for phase in phases] + [math.sin(phase) for phase in phases])


def _naive(network, coord, tokens):
    """Return the value at one coordinate of one instance with tokens ``(E, T)`` without places."""
    query = _linear(network.attention.query, _relu(_linear(network.query, _gamma(coord, QUERY))))
    read = []
    for part in (slice(0, 4), slice(4, 8)):  # the heads
        scores = [query[part] @ _linear(network.attention.key, token)[part] / math.sqrt(4) for token in tokens.T]
        weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        values = [_linear(network.attention.value, token)[part] for token in tokens.T]
        read.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    aggregated = _linear(network.aggregation, np.concatenate(read))
    total, before = network.output_offset + _numpy(network.last.bias), None
    for index, highest in enumerate(BANDS):
        features = _relu(_linear(network.of_coords[index], _gamma(coord, highest)))
        band = _relu(features + _linear(network.of_tokens[index], aggregated))
        if before is not None:
            band = _relu(_linear(network.composition[index - 1], band + before))
        total = total + _numpy(network.last.weight)[:, index * H : (index + 1) * H] @ band
        before = band
    return total


@SHARED
def test_values_are_those_of_the_equations(shared):
    network, coords = _network(output_offset=0.25).double(), _coords(shared=shared).double()
    tokens = _tokens()["tokens"].double()
    values = network(coords, {"tokens": tokens})
    assert values.shape == (B, N, 3)
    for instance, place in itertools.product(range(B), range(N)):
        coord = _numpy(coords if shared else coords[instance])[place]
        expected = _naive(network, coord, _numpy(tokens[instance]))
        np.testing.assert_allclose(_numpy(values[instance, place]), expected, atol=1e-6)  # frequencies are float32


@SHARED
def test_a_bound_field_equals_the_network(shared):
    network, coords, tokens = _network(), _coords(shared=shared), _tokens()
    with torch.no_grad():
        torch.testing.assert_close(network.bind(tokens)(coords), network(coords, tokens))


@pytest.mark.parametrize("grid", [(3, 4), (1, 7)], ids=str)
def test_tokens_of_patches_are_read_at_their_places(grid):
    """Let attention be sharp, so that a coordinate reads the token of its cell only."""
    network = _network(None, options={"sharpness": 400.0})
    tokens = _tokens(*grid)["tokens"]
    centres = Grid.unit(2).coords(grid)
    changed = tokens.clone()
    changed[:, :, 0, 2] += 1
    with torch.no_grad():
        difference = (network(centres, {"tokens": changed}) - network(centres, {"tokens": tokens})).abs().sum((0, 2))
    assert difference.nonzero().flatten().tolist() == [2]


def test_ranges_place_the_tokens():
    """A signal of three seconds has coordinates in [-3, 3]."""
    arguments = {"num_tokens": None, "coord_dim": 1, "options": {"sharpness": 400.0, "relative": True}}
    network = _network(ranges=[[-3.0, 3.0]], **arguments)
    tokens = _tokens(6)["tokens"]
    changed = tokens.clone()
    changed[:, :, 5] += 1
    coords = Grid(((-3.0, 3.0),)).coords((12,))
    with torch.no_grad():
        difference = network(coords, {"tokens": changed}) - network(coords, {"tokens": tokens})
    assert difference.abs().sum((0, 2)).nonzero().flatten().tolist() == [10, 11]


def test_sizes_of_positions_are_ignored_by_the_attention():
    network = _network(None, 4, {"sharpness": 400.0}, ranges=[[-1.0, 1.0]] * 2)
    tokens, coords = _tokens(3, 4)["tokens"], CellGrid.unit(2).coords((3, 4))
    changed = tokens.clone()
    changed[:, :, 0, 2] += 1
    with torch.no_grad():
        difference = (network(coords, {"tokens": changed}) - network(coords, {"tokens": tokens})).abs().sum((0, 2))
    assert difference.nonzero().flatten().tolist() == [2]


@SHARED
def test_bf16_is_close_and_values_are_float32(shared):
    network, coords, tokens = _network(), _coords(shared=shared), _tokens()
    with torch.no_grad():
        expected = network(coords, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            values = network(coords, tokens)
            rounded = network(coords.bfloat16(), tokens)
    assert values.dtype == torch.float32
    assert 0 < (values - expected).abs().max() < 0.05 * expected.abs().max()
    assert rounded.dtype == torch.float32


def test_gradients_reach_every_parameter_and_the_tokens():
    network, tokens = _network(None, options={"sharpness": 1.0, "relative": True}), _tokens(2, 3)
    tokens["tokens"].requires_grad_()
    network(_coords(), tokens).square().sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    assert tokens["tokens"].grad.any()


def test_activations_are_those_of_the_bands():
    network, tokens, coords = _network(), _tokens(), _coords()
    with torch.no_grad():
        layers = network.activations(tokens, coords)
        assert {index: layer.shape for index, layer in layers.items()} == dict.fromkeys(range(3), (B, N, H))
        values = torch.cat(list(layers.values()), -1) @ network.last.weight.mT + network.last.bias + 0.5
        torch.testing.assert_close(values, network(coords, tokens))


def test_sizes_of_the_third_party_configuration():
    """Two heads of 64, tokens of 256 numbers, two bands, all 256 wide with 64 frequencies per axis."""
    network = BandedMLP(coord_dim=2, value_dim=3)
    one_bias = 3  # the linear maps of all bands have one bias together
    assert sum(parameter.numel() for parameter in network.parameters()) == 527_622 - one_bias
    assert network.slots["tokens"].shape == (256, 256)
    assert network.floats_per_coord == 3 * 256 + 10 * 256 + 2 * 256 + 3 * 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_dim": 0}, "hidden_dim is 0 and bands"),
        ({"bands": []}, r"bands \[\]: hidden_dim must be at least 1, and bands must name at least one frequency"),
        ({"bands": [0.5]}, "max_frequency is 0.5; it must be at least 1"),
        ({"num_frequencies": 0}, "num_frequencies is 0"),
        ({"query_frequency": 0.0}, "max_frequency is 0.0"),
        ({"num_tokens": 4, "options": {"sharpness": 1.0}}, "num_tokens is 4, a set of tokens without places"),
        ({"num_tokens": 0}, "num_tokens 0"),
    ],
    ids=str,
)
def test_sizes_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _network(**arguments)


@pytest.mark.parametrize(
    ("modulations", "message"),
    [
        ({}, r"takes tokens \(6, 4\)"),
        ({"tokens": torch.zeros(2, 6, 5)}, r"shapes {'tokens': \(6, 5\)} per instance"),
        ({"tokens": torch.zeros(2, 5, 4)}, r"\(5, 4\)"),
        ({"tokens": torch.zeros(2, 6, 4), "map": torch.zeros(2, 1)}, "'map'"),
    ],
    ids=["none", "another number", "another width", "more"],
)
def test_modulations_of_other_networks_are_refused(modulations, message):
    with pytest.raises(ValueError, match=message):
        _network()(_coords(), modulations)


@pytest.mark.parametrize("coords", [torch.zeros(5, 3), torch.zeros(3, 5, 2)], ids=["axes", "instances"])
def test_coordinates_of_other_signals_are_refused(coords):
    with pytest.raises(ValueError, match=r"this network takes \(N, 2\), or \(2, N, 2\)"):
        _network()(coords, _tokens())


def test_any_width_of_the_bands_fits_any_heads():
    """Heads have a width of their own, so that no width must be a multiple of their number."""
    torch.manual_seed(0)
    network = BandedMLP(
        coord_dim=2, value_dim=3, token_dim=5, num_tokens=4, hidden_dim=7, attention=TokenAttention(3, 2)
    )
    with torch.no_grad():
        assert network(_coords(), {"tokens": torch.randn(B, 5, 4)}).shape == (B, N, 3)


def test_unverified_choices_are_options():
    tokens, coords = _tokens(), _coords()
    plain = _network()
    low, unit, normed = (
        _network(**options) for options in ({"min_frequency": 2.0}, {"unit_coords": True}, {"norm": True})
    )
    assert torch.allclose(low.encodings[0].frequencies, torch.full((3,), 2.0))
    assert torch.allclose(low.encodings[2].frequencies, torch.tensor([2.0, 4.0, 8.0]))
    assert torch.allclose(unit(coords, tokens), plain((coords + 1) / 2, tokens), atol=1e-5)
    normed.norm.weight.data *= 2
    values = normed(coords, tokens)
    assert values.shape == (B, N, 3)
    normed.attention.value.weight.data *= 7  # the scale of the values does not reach the output
    assert torch.allclose(normed(coords, tokens), values, atol=1e-3)
    with pytest.raises(ValueError, match=r"min_frequency is 3\.0 and max_frequency 2\.0: it must be above 0"):
        _network(min_frequency=3.0)
