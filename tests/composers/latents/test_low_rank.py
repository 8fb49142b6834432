"""Low-rank weights against loops over the formula, and rejected ranks."""

import math

import pytest
import torch

from composers.latents import Layout, LowRank
from composers.networks import CoordinateMLP

NETWORKS = [
    {},
    {"modulated_layers": (0,)},
    {"modulated_layers": (3,)},
    {"modulated_layers": (1, 2)},
    {"modulated_layers": "all"},
    {"hidden_dim": [8, 4, 12], "modulated_layers": (1, 2)},
    {"normalize_weights": False},
]


def _connect(network, **arguments):
    """Return a connected `LowRank` and random latents of two instances."""
    parametrization = LowRank(**arguments)
    parametrization.connect(network)
    return parametrization, {name: torch.randn(2, *spec.shape) for name, spec in parametrization.latents.items()}


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("arguments", [{}, {"rank": 3}, {"rank": 12}, {"rank": 3, "base_weight": True}], ids=str)
def test_weights_are_patterns_times_basis(make_network, network, arguments):
    network = make_network(**network)
    parametrization, latents = _connect(network, **arguments)
    weights = parametrization.compose(latents, Layout())
    assert list(weights) == list(network.slots) == [f"weight.{layer}" for layer in network.modulated_layers]
    for layer in network.modulated_layers:
        fan_in, fan_out = network.layer_sizes[layer]
        rank = arguments.get("rank", fan_out)
        assert parametrization.latents[f"patterns.{layer}"].shape == (fan_in, rank)
        patterns, basis = latents[f"patterns.{layer}"].tolist(), parametrization.bases[str(layer)].tolist()
        base = parametrization.base_weights[str(layer)].tolist() if "base_weight" in arguments else None
        expected = [
            [
                [
                    sum(patterns[b][i][r] * basis[r][o] for r in range(rank)) + (base[i][o] if base else 0)
                    for o in range(fan_out)
                ]
                for i in range(fan_in)
            ]
            for b in range(2)
        ]
        torch.testing.assert_close(weights[f"weight.{layer}"], torch.tensor(expected), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("base_weight", [False, True])
def test_without_factors_latents_are_the_weights(make_network, base_weight):
    parametrization, latents = _connect(make_network(), factorized=False, base_weight=base_weight)
    assert not parametrization.bases
    base = parametrization.base_weights["1"] if base_weight else torch.zeros(8, 8)
    weights = parametrization.compose(latents, Layout())
    torch.testing.assert_close(weights, {"weight.1": latents["patterns.1"] + base})


def test_bases_are_initialised_with_the_published_standard_deviation():
    parametrization, _ = _connect(CoordinateMLP(2, 3, modulated_layers=(1,)), rank=64)
    assert parametrization.bases["1"].shape == (64, 256)
    assert parametrization.bases["1"].std().item() == pytest.approx(1 / math.sqrt(64 * 256), rel=0.05)


def test_initial_patterns_are_normal_or_zero_beside_a_base_weight(make_network):
    network = make_network(hidden_dim=64)
    initial = {}
    for base_weight in (False, True):
        parametrization, _ = _connect(network, base_weight=base_weight)
        initial[base_weight] = parametrization.latents["patterns.1"].initial()
    assert initial[False].std().item() == pytest.approx(1, abs=0.05)
    assert not initial[True].any()


@pytest.mark.parametrize("base_weight", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_steps_scale_with_the_squared_norm_where_only_the_direction_counts(make_network, normalize, base_weight):
    network = make_network(normalize_weights=normalize, modulated_layers=(0, 1))
    parametrization, latents = _connect(network, rank=3, base_weight=base_weight)
    scales = parametrization.step_scales(latents)
    assert scales.keys() == latents.keys()
    for name, latent in latents.items():
        for instance in range(2):
            norm = sum(entry**2 for entry in latent[instance].flatten().tolist())
            expected = norm if normalize and not base_weight else 1.0
            assert scales[name].expand(2, 1, 1)[instance].item() == pytest.approx(expected, rel=1e-5)


def test_the_field_does_not_depend_on_the_norm_of_normalised_patterns(make_network):
    network = make_network()
    parametrization, latents = _connect(network, rank=3)
    scaled = {name: 7 * latent for name, latent in latents.items()}
    coords = torch.rand(9, 2)
    values, others = (network(coords, parametrization.compose(each, Layout())) for each in (latents, scaled))
    torch.testing.assert_close(values, others, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0 with factorized True; it must be at least 1, or null"),
        ({"rank": -2}, "rank is -2"),
        ({"rank": 4, "factorized": False}, "rank is 4 with factorized False"),
    ],
    ids=str,
)
def test_ranks_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        LowRank(**arguments)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"modulated_layers": ()}, "LowRank composes weights; this CoordinateMLP takes no modulations by name"),
        ({"modulates": "shifts"}, "takes shift.1: set its modulates to weights and name its modulated_layers"),
        ({"modulates": "biases"}, "takes bias.1: set its modulates to weights"),
        ({"modulates": "both"}, "takes weight.1, bias.1: set its modulates to weights"),
    ],
    ids=str,
)
def test_networks_with_other_modulations_are_rejected(make_network, network, message):
    with pytest.raises(ValueError, match=message):
        LowRank().connect(make_network(**network))
