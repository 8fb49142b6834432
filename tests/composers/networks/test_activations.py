"""Activations against their formulas, and the initialisation of their networks."""

import math

import pytest
import torch
from torch import nn

from composers.networks import FINER, WIRE, CoordinateMLP, Gaussian, GeometricReLU, IdentityEncoding, ReLU, Sine

POINTS = [-2.5, -1.0, -0.3, -0.01, 0.0, 0.02, 0.4, 1.0, 3.1]
FORMULAS = [
    (ReLU(), lambda h: max(h, 0.0)),
    (GeometricReLU(), lambda h: max(h, 0.0)),
    (Sine(30.0), lambda h: math.sin(30 * h)),
    (Sine(200.0), lambda h: math.sin(200 * h)),
    (FINER(5.0), lambda h: math.sin(5 * (abs(h) + 1) * h)),
    (Gaussian(0.5), lambda h: math.exp(-(h**2) / (2 * 0.5**2))),
    (WIRE(10.0, 2.0), lambda h: math.cos(10 * h) * math.exp(-((2 * h) ** 2))),
]


def _name(value):
    return type(value).__name__ if isinstance(value, nn.Module) else ""


@pytest.mark.parametrize(("activation", "formula"), FORMULAS, ids=_name)
def test_values_equal_the_formula(activation, formula):
    actual = activation(torch.tensor(POINTS, dtype=torch.float64))
    expected = torch.tensor([formula(h) for h in POINTS], dtype=torch.float64)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("activation", [Sine(3.0), Gaussian(0.5), WIRE(4.0, 2.0)], ids=_name)
def test_gradients_of_smooth_activations(activation):
    hidden = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(activation, hidden)
    assert torch.autograd.gradgradcheck(activation, hidden)


def test_gradient_of_relu_away_from_zero():
    hidden = torch.tensor([-1.0, -0.1, 0.1, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ReLU(), hidden)


def test_gradient_of_finer_treats_its_factor_as_constant():
    hidden = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    FINER(5.0)(hidden).sum().backward()
    factors = [5 * (abs(h) + 1) for h in POINTS]
    expected = [factor * math.cos(factor * h) for factor, h in zip(factors, POINTS, strict=True)]
    torch.testing.assert_close(hidden.grad, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def _assert_uniform(values, bound):
    """Check that values are distributed uniformly in ``[-bound, bound]``."""
    assert values.abs().max() <= bound
    assert values.max() > 0.95 * bound
    assert values.min() < -0.95 * bound
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("activation", [ReLU(), Gaussian(), WIRE()], ids=_name)
def test_default_initialisation_is_kaiming_uniform_of_the_transposed_matrix(activation):
    weight = activation.init_weight_(torch.empty(50, 20), layer=1)
    torch.manual_seed(0)
    torch.testing.assert_close(weight, nn.init.kaiming_uniform_(torch.empty(50, 20), a=math.sqrt(5)))
    _assert_uniform(weight, 1 / math.sqrt(20))
    assert not activation.init_bias_(torch.empty(20), 50, layer=1).any()


@pytest.mark.parametrize(("size", "norm"), [((256, 256), 0.58), ((256, 1), 9.2), ((256, 3), 5.3), ((4096, 256), 2.3)])
def test_default_initialisation_has_the_column_norms_of_the_released_code(size, norm):
    weight = ReLU().init_weight_(torch.empty(size), layer=0)
    assert weight.norm(dim=0).mean().item() == pytest.approx(norm, rel=0.06)


@pytest.mark.parametrize("activation", [Sine(30.0), FINER(30.0)], ids=_name)
@pytest.mark.parametrize("layer", [0, 1, 4])
def test_initial_weights_of_periodic_networks_are_those_of_siren(activation, layer):
    fan_in = 40
    bound = 1 / fan_in if layer == 0 else math.sqrt(6 / fan_in) / 30
    _assert_uniform(activation.init_weight_(torch.empty(fan_in, 500), layer), bound)


@pytest.mark.parametrize(
    ("activation", "layer", "bound"),
    [
        (Sine(), 0, 1 / math.sqrt(40)),
        (Sine(), 2, 1 / math.sqrt(40)),
        (FINER(first_bias_scale=5.0), 0, 5.0),
        (FINER(first_bias_scale=5.0), 2, 1 / math.sqrt(40)),
    ],
)
def test_initial_biases_of_periodic_networks(activation, layer, bound):
    _assert_uniform(activation.init_bias_(torch.empty(2000), 40, layer), bound)


def test_hidden_phases_of_a_siren_have_unit_standard_deviation():
    weight = Sine(30.0).init_weight_(torch.empty(256, 256), layer=1)
    incoming = torch.sin(torch.linspace(0, 700, 2000).unsqueeze(1) * torch.rand(256).add(0.5))
    assert (30 * incoming @ weight).std().item() == pytest.approx(1.0, rel=0.15)  # section 3.2 of SIREN


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sine(0.0), "omega is 0.0"),
        (lambda: FINER(-1.0), "omega is -1.0"),
        (lambda: FINER(first_bias_scale=0.0), "first_bias_scale is 0.0"),
        (lambda: Gaussian(0.0), "sigma is 0.0"),
        (lambda: WIRE(omega=0.0), "omega is 0.0"),
        (lambda: WIRE(scale=-2.0), "scale -2.0"),
    ],
)
def test_arguments_out_of_range_raise_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_geometric_initialisation_is_normal_with_a_constant_last_layer():
    network = CoordinateMLP(
        3, 2, [300, 200], 3, (), encoding=IdentityEncoding(), activation=GeometricReLU(), normalize_weights=False
    )
    for layer, fan_out in ((0, 300), (1, 200)):
        weight = network.weights[str(layer)]
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        assert weight.mean().abs().item() < 0.2 * math.sqrt(2 / fan_out)
        assert weight.abs().max() > 2.5 * math.sqrt(2 / fan_out)  # normal, not uniform
    assert torch.equal(network.weights["2"], torch.full((200, 2), math.sqrt(math.pi / 200)))
    assert not any(bias.any() for bias in network.biases.values())


def test_other_activations_initialise_the_last_layer_as_the_others():
    torch.manual_seed(0)
    last = Sine(3.0).init_last_weight_(torch.empty(5, 4), 2)
    torch.manual_seed(0)
    assert torch.equal(last, Sine(3.0).init_weight_(torch.empty(5, 4), 2))
