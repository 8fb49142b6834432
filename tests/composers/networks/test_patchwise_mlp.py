"""The network of patches: against a naive loop over coordinates, in any precision, and its linear initialisation."""

import itertools
import math

import pytest
import torch
from naive_routes import naive_weight

from composers.networks import PatchModulations, PatchwiseMLP
from datamodules.domain import Grid

EXTENTS = {1: (11,), 2: (8, 7), 3: (4, 5, 4)}
SIZES = {1: (4,), 2: (4, 3), 3: (2, 3, 2)}
CHANNELS = 2


def _network(axes, overlap, **arguments):
    """Return a network with random parameters."""
    torch.manual_seed(0)
    arguments = {"patch_size": SIZES[axes], "hidden_dim": 6, "rank": 3, "overlap": overlap, **arguments}
    network = PatchwiseMLP(axes, CHANNELS, **arguments)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network


def _modulations(network, extent, instances=2):
    """Return random patterns for the patches of a signal."""
    grid = tuple(math.ceil(size / patch) for size, patch in zip(extent, network.patch_size, strict=True))
    width, rank = network.patches.pattern_shape
    tokens = torch.randn(instances, math.prod(grid), width * rank)
    return PatchModulations(tokens, lambda tokens: tokens.unflatten(-1, (width, rank)), grid, extent)


def _coords(axes, *leading):
    """Return random coordinates, some beyond the signal."""
    return torch.rand(*leading, axes) * 2.2 - 1.1


def _naive_value(network, patterns, local):
    """Return the value ``(C,)`` of the network of a patch at a local coordinate in [-1, 1]."""
    reaches = [1 + 2 * min(network.overlap, 1 / 2 / size) for size in network.patch_size]
    counts = network.encoding.num_frequencies
    features = torch.tensor(
        [
            math.prod(
                math.cos(math.pi * k * (x / reach + 1) / 2) for k, x, reach in zip(orders, local, reaches, strict=True)
            )
            for orders in itertools.product(*map(range, counts))
        ],
        dtype=patterns.dtype,
    )
    hidden = (network.first.weight @ features + network.first.bias).relu()
    hidden = (hidden @ patterns @ network.basis + network.bias).relu()
    last = network.last
    return last.weight / last.factor @ hidden + last.bias / last.factor + network.output_offset


def _naive(network, modulations, instance, coord):
    """Return the value ``(C,)`` at a coordinate as the weighted sum over all patches."""
    total = torch.zeros(network.value_dim, dtype=modulations.tokens.dtype)
    axes = list(zip(coord.tolist(), modulations.extent, network.patch_size, strict=True))
    positions = [(x + 1) / 2 * extent / patch for x, extent, patch in axes]
    for number, index in enumerate(itertools.product(*map(range, modulations.grid))):
        weight = math.prod(
            naive_weight(position, patch, count, network.overlap)
            for position, patch, count in zip(positions, index, modulations.grid, strict=True)
        )
        if weight:
            patterns = modulations.patterns(torch.tensor([number]))[instance, 0]
            local = [2 * (position - patch) - 1 for position, patch in zip(positions, index, strict=True)]
            total = total + weight * _naive_value(network, patterns, local)
    return total


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per instance"])
@pytest.mark.parametrize("overlap", [0.0, 0.125, 0.5])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_values_are_those_of_a_naive_loop(axes, overlap, shared):
    network = _network(axes, overlap).double()
    modulations = _modulations(network, EXTENTS[axes])
    modulations = modulations._replace(tokens=modulations.tokens.double())
    coords = (_coords(axes, 9) if shared else _coords(axes, 2, 9)).double()
    actual = network(coords, modulations)
    for instance, number in itertools.product(range(2), range(9)):
        coord = coords[number] if shared else coords[instance, number]
        torch.testing.assert_close(actual[instance, number], _naive(network, modulations, instance, coord))


@torch.no_grad()
@pytest.mark.parametrize("overlap", [0.0, 0.125, 0.5])
def test_gathered_values_equal_grouped_ones(overlap, monkeypatch):
    network = _network(2, overlap)
    modulations = _modulations(network, EXTENTS[2])
    for coords in (_coords(2, 40), _coords(2, 2, 40)):
        grouped = network(coords, modulations)
        with monkeypatch.context() as patch:
            patch.setattr("composers.networks.patchwise_mlp.fixed_shapes", lambda: True)
            patch.setattr("composers.networks.routing.fixed_shapes", lambda: True)
            torch.testing.assert_close(network(coords, modulations), grouped, atol=1e-5, rtol=1e-4)


class _OfPatches(torch.nn.Module):
    """A network with fixed patterns, for export."""

    def __init__(self, network, modulations):
        super().__init__()
        self.network, self.modulations = network, modulations

    def forward(self, coords):
        return self.network(coords, self.modulations)


@torch.no_grad()
def test_an_exported_program_takes_any_number_of_coordinates():
    network = _network(2, 0.25)
    module = _OfPatches(network, _modulations(network, EXTENTS[2]))
    dynamic = ({0: torch.export.Dim("coords", min=2)},)
    program = torch.export.export(module, (_coords(2, 5),), dynamic_shapes=dynamic).module()
    coords = _coords(2, 17)
    torch.testing.assert_close(program(coords), module(coords), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_passes_of_bounded_memory_equal_one_pass(monkeypatch):
    network = _network(2, 0.125)
    modulations, coords = _modulations(network, (40, 21)), _coords(2, 500)
    expected = network(coords, modulations)
    monkeypatch.setattr("composers.networks.patchwise_mlp._MAX_HELD", 1)
    torch.testing.assert_close(network(coords, modulations), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_no_coordinates_give_no_values():
    network = _network(2, 0.125)
    assert network(torch.empty(0, 2), _modulations(network, (8, 8))).shape == (2, 0, CHANNELS)


@torch.no_grad()
@pytest.mark.parametrize("overlap", [0.0625, 0.25, 0.5])
def test_the_field_is_continuous_across_borders(overlap):
    network = _network(2, overlap).double()
    modulations = _modulations(network, (8, 6))
    modulations = modulations._replace(tokens=modulations.tokens.double())
    borders = torch.tensor([[0.0, 0.3], [0.3, 0.0], [0.0, 0.0]], dtype=torch.float64)
    before, after = (network(borders + shift, modulations) for shift in (-1e-7, 1e-7))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)


def test_first_and_second_derivatives_are_those_of_finite_differences():
    network = _network(1, 0.25).double()
    modulations = _modulations(network, (11,))
    tokens = modulations.tokens.double().requires_grad_()
    coords = _coords(1, 4).double().requires_grad_()

    def values(tokens, coords):
        return network(coords, modulations._replace(tokens=tokens))

    assert torch.autograd.gradcheck(values, (tokens, coords), fast_mode=True)
    assert torch.autograd.gradgradcheck(values, (tokens, coords), fast_mode=True)


@torch.no_grad()
def test_autocast_keeps_routes_and_values_in_float32():
    network = _network(2, 0.125)
    modulations, coords = _modulations(network, (8, 7)), _coords(2, 30)
    exact = network(coords, modulations)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(coords, modulations)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@torch.no_grad()
def test_a_network_in_bfloat16_computes_with_exact_coordinates():
    network = _network(2, 0.125)
    modulations, coords = _modulations(network, (8, 7)), _coords(2, 30)
    exact = network(coords, modulations)
    network.bfloat16()
    rounded = network(coords, modulations._replace(tokens=modulations.tokens.bfloat16()))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@torch.no_grad()
def test_coordinates_of_any_ranges_are_those_of_the_same_places():
    network, other = _network(2, 0.25), _network(2, 0.25, ranges=[[-3, 3], [0, 10]])
    other.load_state_dict(network.state_dict())
    modulations, coords = _modulations(network, (8, 6)), _coords(2, 30)
    places = torch.stack((3 * coords[:, 0], 5 * (coords[:, 1] + 1)), dim=1)
    torch.testing.assert_close(other(places, modulations), network(coords, modulations), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("overlap", [0.0, 0.0625, 0.125, 0.3, 0.5])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_linear_patterns_yield_one_at_one_value(axes, overlap):
    torch.manual_seed(0)
    network = PatchwiseMLP(axes, CHANNELS, SIZES[axes], hidden_dim=8, rank=3, overlap=overlap, output_offset=0.0)
    patches = network.patches
    patterns = network.linear_patterns()
    assert patterns.shape == (patches.num_values, *patches.pattern_shape)
    modulations = PatchModulations(patterns[:, None], lambda tokens: tokens, (1,) * axes, SIZES[axes])
    values = network(Grid.unit(axes).coords(SIZES[axes]), modulations)  # one patch in the role of an instance
    identity = torch.eye(patches.num_values).unflatten(1, (CHANNELS, -1)).mT
    torch.testing.assert_close(values, identity, atol=2e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("overlap", [0.0625, 0.25, 0.5])
def test_linear_patterns_of_long_patches_are_well_conditioned(overlap):
    network = PatchwiseMLP(1, 1, 200, hidden_dim=8, rank=1, overlap=overlap)
    assert network.linear_patterns().abs().max() < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coord_dim": None}, "coord_dim and value_dim are missing"),
        ({"patch_size": 0}, "patch_size is 0 and the signal has 2 axes"),
        ({"patch_size": [8]}, r"patch_size is \[8\] and the signal has 2 axes"),
        ({"hidden_dim": 5}, "hidden_dim is 5 and rank 16; with 3 channels they must be at least 6 and 3"),
        ({"rank": 2}, "rank 2"),
        ({"overlap": 0.6}, r"overlap is 0\.6; it must lie in \[0, 0\.5\]"),
        ({"ranges": [[-1, 1]] * 3}, "give a lower and an upper bound for every dimension"),
        ({"ranges": [[-1, 1], [1, 0]]}, "give a lower and an upper bound for every dimension"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchwiseMLP(**{"coord_dim": 2, "value_dim": 3, **arguments})


def test_coordinates_that_do_not_fit_are_rejected():
    network = _network(2, 0.0)
    modulations = _modulations(network, (8, 6))
    with pytest.raises(ValueError, match=r"coords have 1 dimensions and the grid of patches 2; this network takes 2"):
        network(torch.zeros(5, 1), modulations)
    with pytest.raises(ValueError, match="coords are those of 3 instances, and the modulations of 2"):
        network(torch.zeros(3, 5, 2), modulations)


def test_layers_are_not_exposed():
    network = _network(2, 0.0)
    modulations = _modulations(network, (8, 6))
    for refused in (
        lambda: network.activations(modulations, torch.zeros(1, 2)),
        lambda: network.values_without(modulations, torch.zeros(1, 2), 0, torch.tensor([0])),
        lambda: network.free(modulations),
    ):
        with pytest.raises(ValueError, match="PatchwiseMLP"):
            refused()
