"""Shifts of biases by one latent vector, against a loop over the formula."""

import math

import pytest
import torch

from composers.latents import Layout, Shifts


def _connect(network, latent_dim=5):
    """Return a connected `Shifts` and random latents of two instances."""
    parametrization = Shifts(latent_dim)
    parametrization.connect(network)
    return parametrization, {name: torch.randn(2, *spec.shape) for name, spec in parametrization.latents.items()}


@torch.no_grad()
@pytest.mark.parametrize("modulated_layers", [(1,), (0, 2), "hidden", "all"], ids=str)
def test_shifts_are_the_latent_times_a_matrix(make_network, modulated_layers):
    network = make_network(modulates="shifts", modulated_layers=modulated_layers, hidden_dim=[8, 4, 12])
    parametrization, latents = _connect(network)
    assert {name: spec.shape for name, spec in parametrization.latents.items()} == {"latent": (5,)}
    shifts = parametrization.compose(latents, Layout())
    assert list(shifts) == [f"shift.{layer}" for layer in network.modulated_layers]
    matrix, latent, first = parametrization.shifts.tolist(), latents["latent"].tolist(), 0
    for layer in network.modulated_layers:
        width = network.layer_sizes[layer][1]
        expected = [
            [sum(latent[b][e] * matrix[e][first + o] for e in range(5)) for o in range(width)] for b in range(2)
        ]
        torch.testing.assert_close(shifts[f"shift.{layer}"], torch.tensor(expected), atol=1e-5, rtol=0)
        first += width
    assert first == len(matrix[0])


@torch.no_grad()
def test_shifts_are_added_to_the_biases(make_network, naive_network):
    network = make_network(modulates="shifts", modulated_layers="hidden")
    parametrization, latents = _connect(network)
    shifts, coords = parametrization.compose(latents, Layout()), torch.rand(6, 2)
    expected = naive_network(network, coords, shifts, 2)
    torch.testing.assert_close(network(coords, shifts).double(), expected, atol=2e-5, rtol=0)
    zero = parametrization.compose({"latent": torch.zeros(1, 5)}, Layout())
    assert not any(shift.any() for shift in zero.values())


def test_the_matrix_is_initialised_with_its_documented_standard_deviation(make_network):
    parametrization, _ = _connect(make_network(hidden_dim=64, modulates="shifts", modulated_layers="hidden"), 100)
    assert parametrization.shifts.shape == (100, 3 * 64)
    assert parametrization.shifts.std().item() == pytest.approx(1 / math.sqrt(100), rel=0.05)
    assert not parametrization.latents["latent"].initial().any()


def test_steps_are_not_scaled(make_network):
    parametrization, latents = _connect(make_network(modulates="shifts"))
    assert parametrization.step_scales(latents)["latent"].item() == 1


@pytest.mark.parametrize("latent_dim", [0, -1])
def test_latent_vectors_without_entries_are_rejected(latent_dim):
    with pytest.raises(ValueError, match=f"latent_dim is {latent_dim}; it must be at least 1"):
        Shifts(latent_dim)


@pytest.mark.parametrize(
    ("network", "modulations"),
    [
        ({"modulated_layers": ()}, "nothing"),
        ({"modulates": "weights"}, "weight.1"),
        ({"modulates": "biases"}, "bias.1"),
    ],
    ids=str,
)
def test_networks_with_other_modulations_are_rejected(make_network, network, modulations):
    message = f"Shifts composes shifts of biases; this CoordinateMLP takes {modulations}: set its modulates to shifts"
    with pytest.raises(ValueError, match=message):
        Shifts().connect(make_network(**network))
