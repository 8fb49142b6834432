"""Scales of columns against a loop over the formula, and rejected numbers of groups."""

import pytest
import torch

from composers.latents import ColumnScales, Layout

NETWORKS = [
    {},
    {"modulated_layers": (0,)},
    {"modulated_layers": (3,)},
    {"modulated_layers": (1, 2)},
    {"modulated_layers": "all"},
    {"hidden_dim": [8, 4, 12], "modulated_layers": (1, 2)},
    {"normalize_weights": False},
]


def _connect(network, num_groups):
    """Return a connected `ColumnScales` and random latents of two instances."""
    parametrization = ColumnScales(num_groups)
    parametrization.connect(network)
    return parametrization, {name: torch.randn(2, *spec.shape) for name, spec in parametrization.latents.items()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("num_groups", "network"),
    [
        *((num_groups, network) for num_groups in (1, 64) for network in NETWORKS),
        (4, {"modulated_layers": "all"}),
        (2, {"modulated_layers": (0, 1)}),
        (4, {"hidden_dim": [8, 4, 12], "modulated_layers": (0, 1, 2)}),
        (3, {"hidden_dim": [6, 3, 12], "modulated_layers": "all"}),
    ],
    ids=str,
)
def test_columns_are_assigned_to_groups_in_turn(make_network, num_groups, network):
    network = make_network(**network)
    parametrization, latents = _connect(network, num_groups)
    weights = parametrization.compose(latents, Layout())
    assert list(weights) == [f"weight.{layer}" for layer in network.modulated_layers]
    for layer in network.modulated_layers:
        fan_in, fan_out = network.layer_sizes[layer]
        groups = min(num_groups, fan_out)
        assert parametrization.latents[f"scales.{layer}"].shape == (fan_in, groups)
        scales, base = latents[f"scales.{layer}"].tolist(), parametrization.base_weights[str(layer)].tolist()
        expected = [
            [[base[i][j] * scales[b][i][j % groups] for j in range(fan_out)] for i in range(fan_in)] for b in range(2)
        ]
        torch.testing.assert_close(weights[f"weight.{layer}"], torch.tensor(expected), atol=1e-6, rtol=0)


def test_initial_scales_give_the_base_weights(make_network):
    parametrization, _ = _connect(make_network(modulated_layers="all"), 4)
    initial = {name: spec.initial()[None] for name, spec in parametrization.latents.items()}
    for name, weight in parametrization.compose(initial, Layout()).items():
        assert torch.equal(weight[0], parametrization.base_weights[name.removeprefix("weight.")])


@pytest.mark.parametrize("normalize", [False, True])
def test_steps_scale_with_the_squared_norm_where_weights_are_normalised(make_network, normalize):
    parametrization, latents = _connect(make_network(normalize_weights=normalize), 4)
    scale = parametrization.step_scales(latents)["scales.1"].expand(2, 1, 1)
    expected = [sum(x**2 for x in scales) if normalize else 1.0 for scales in latents["scales.1"].flatten(1).tolist()]
    assert scale.flatten().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("num_groups", "message"),
    [
        (0, "num_groups 0 does not divide"),
        (-3, "num_groups -3"),
        (5, "num_groups 5 does not divide the 8 outputs of layer 0: choose a divisor"),
        (2, "num_groups 2 does not divide the 3 outputs of layer 3"),
    ],
)
def test_numbers_of_groups_that_are_no_divisors_are_rejected(make_network, num_groups, message):
    with pytest.raises(ValueError, match=message):
        ColumnScales(num_groups).connect(make_network(modulated_layers="all"))


@pytest.mark.parametrize("network", [{"modulated_layers": ()}, {"modulates": "shifts"}, {"modulates": "both"}], ids=str)
def test_networks_with_other_modulations_are_rejected(make_network, network):
    with pytest.raises(
        ValueError, match=r"ColumnScales composes weights; this CoordinateMLP takes .*: set its modulates"
    ):
        ColumnScales().connect(make_network(**network))
