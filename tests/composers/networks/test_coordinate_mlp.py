"""`CoordinateMLP` against loops over instances, layers and columns, and what it computes once per batch."""

from itertools import chain, combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from composers.networks import FourierFeatures, IdentityEncoding, Sine, coordinate_mlp

B, N = 3, 5
LAYER_SUBSETS = list(chain.from_iterable(combinations(range(4), count) for count in range(5)))  # of four layers


@pytest.fixture(params=["shared", "per_instance"])
def coords(request):
    """Return coordinates of both kinds."""
    return torch.rand(N, 2) * 2 - 1 if request.param == "shared" else torch.rand(B, N, 2) * 2 - 1


def _assert_equal(actual, expected):
    torch.testing.assert_close(actual.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("modulated", LAYER_SUBSETS, ids=str)
def test_values_equal_a_loop_for_every_subset_of_modulated_layers(
    make_network, make_modulations, naive_network, coords, modulated
):
    network = make_network(modulated_layers=modulated)
    modulations = make_modulations(network, B)
    num_instances = B if modulated or coords.dim() == 3 else 1
    values = network(coords, modulations)
    assert values.shape == (num_instances, N, 3)
    _assert_equal(values, naive_network(network, coords, modulations, num_instances))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("modulates", ["biases", "both", "shifts"])
@pytest.mark.parametrize("modulated", ["hidden", "all", (0,), (2,), (3,), (1, 3)], ids=str)
def test_modulated_biases_and_shifts_equal_a_loop(
    make_network, make_modulations, naive_network, coords, modulated, modulates, normalize
):
    network = make_network(modulates=modulates, modulated_layers=modulated, normalize_weights=normalize)
    modulations = make_modulations(network, B)
    values = network(coords, modulations)
    assert values.shape == (B, N, 3)
    _assert_equal(values, naive_network(network, coords, modulations, B))


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_weights": False},
        {"output_offset": 0.0},
        {"output_offset": -2.0},
        {"hidden_dim": [7, 5, 9]},
        {"hidden_dim": [6, 6, 11], "modulated_layers": "all"},
        {"num_layers": 1, "modulated_layers": (0,)},
        {"num_layers": 2, "hidden_dim": [9]},
        {"encoding": IdentityEncoding()},
        {"encoding": FourierFeatures(3, 8, use_pi=False)},
        {"value_dim": 1},
    ],
    ids=str,
)
def test_values_equal_a_loop_for_all_settings(make_network, make_modulations, naive_network, coords, changes):
    network = make_network(**changes)
    modulations = make_modulations(network, B)
    _assert_equal(network(coords, modulations), naive_network(network, coords, modulations, B))


def test_scale_of_normalised_weights_has_no_effect(make_network, make_modulations, coords):
    network = make_network(modulated_layers=(1, 3))
    modulations = make_modulations(network, B)
    scaled = {name: weight * torch.rand(1, 1, weight.shape[2]).add(0.1) for name, weight in modulations.items()}
    torch.testing.assert_close(network(coords, scaled), network(coords, modulations), atol=1e-5, rtol=0)
    plain = make_network(modulated_layers=(1, 3), normalize_weights=False)
    assert not torch.allclose(plain(coords, scaled), plain(coords, modulations), atol=1e-2)


@pytest.mark.parametrize(
    ("modulates", "slots"),
    [
        ("weights", {"weight.1": ((8, 8), True), "weight.3": ((8, 3), True)}),
        ("biases", {"bias.1": ((8,), False), "bias.3": ((3,), False)}),
        (
            "both",
            {
                "weight.1": ((8, 8), True),
                "bias.1": ((8,), False),
                "weight.3": ((8, 3), True),
                "bias.3": ((3,), False),
            },
        ),
        ("shifts", {"shift.1": ((8,), False), "shift.3": ((3,), False)}),
    ],
)
def test_slots_have_shapes_and_initial_values(make_network, modulates, slots):
    network = make_network(modulated_layers=(3, 1), modulates=modulates)
    assert {name: (spec.shape, spec.normalized) for name, spec in network.slots.items()} == slots
    assert all(spec.initial().shape == spec.shape for spec in network.slots.values())
    plain = make_network(modulated_layers=(3, 1), modulates=modulates, normalize_weights=False)
    assert not any(spec.normalized for spec in plain.slots.values())


def test_shifts_start_at_zero_and_weights_as_the_activation_requires(make_network):
    shifts = make_network(modulates="shifts").slots["shift.1"]
    assert torch.equal(shifts.initial(), torch.zeros(8))
    siren = make_network(activation=Sine(30.0), hidden_dim=500, modulates="both")
    weight, bias = siren.slots["weight.1"].initial(), siren.slots["bias.1"].initial()
    assert weight.abs().max().item() == pytest.approx((6 / 500) ** 0.5 / 30, rel=0.01)
    assert bias.abs().max().item() == pytest.approx(500**-0.5, rel=0.05)
    assert not torch.equal(weight, siren.slots["weight.1"].initial())


@pytest.mark.parametrize(
    ("modulates", "weights", "biases"),
    [("weights", "02", "0123"), ("biases", "0123", "02"), ("both", "02", "02"), ("shifts", "0123", "0123")],
)
def test_network_owns_no_parameter_that_modulations_replace(make_network, modulates, weights, biases):
    network = make_network(modulated_layers=(3, 1, 1), modulates=modulates)
    assert network.modulated_layers == (1, 3)
    assert ("".join(network.weights), "".join(network.biases)) == (weights, biases)


def test_layers_can_be_selected_by_name(make_network):
    assert make_network(modulated_layers="all").modulated_layers == (0, 1, 2, 3)
    assert make_network(modulated_layers="hidden").modulated_layers == (0, 1, 2)
    assert make_network(modulated_layers="hidden", num_layers=1).modulated_layers == ()


@pytest.mark.parametrize("modulates", ["weights", "both", "shifts"])
@pytest.mark.parametrize("modulated", [(), (0,), (1,), (3,), (1, 2), "all"], ids=str)
def test_shared_coordinates_equal_repeated_ones_with_their_gradients(
    make_network, make_modulations, modulated, modulates
):
    network = make_network(modulated_layers=modulated, modulates=modulates)
    shared = torch.rand(N, 2) * 2 - 1
    modulations = {name: part.requires_grad_() for name, part in make_modulations(network, B).items()}
    weighting = torch.randn(B, N, 3)
    leaves = [*modulations.values(), *network.parameters()]
    results = []
    for coords in (shared, shared.expand(B, N, 2).contiguous()):
        values = network(coords, modulations).expand(B, N, 3)
        results.append([values, *torch.autograd.grad((values * weighting).sum(), leaves)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_a_loop_in_float64(make_network, make_modulations, coords):
    network = make_network(modulated_layers=(1, 3), modulates="both")
    modulations = make_modulations(network, B)
    weighting = torch.randn(B, N, 3)
    leaves = [coords, *modulations.values(), *network.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    actual_gradients = torch.autograd.grad((network(coords, modulations) * weighting).sum(), leaves)

    values = []
    for instance in range(B):
        instance_coords = (coords[instance] if coords.dim() == 3 else coords).double()
        phases = torch.stack([axis * f * torch.pi for axis in instance_coords.unbind(1) for f in (1, 4)], dim=1)
        hidden = torch.cat((phases.cos(), phases.sin()), dim=1)
        for layer in range(4):
            modulated = layer in (1, 3)
            weight = modulations[f"weight.{layer}"][instance] if modulated else network.weights[str(layer)]
            bias = modulations[f"bias.{layer}"][instance] if modulated else network.biases[str(layer)]
            hidden = hidden @ (weight / weight.square().sum(0).sqrt()).double() + bias.double()
            hidden = hidden.clamp(min=0) if layer < 3 else hidden
        values.append(hidden + 0.5)
    expected_gradients = torch.autograd.grad((torch.stack(values) * weighting).sum(), leaves)
    for actual, expected in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("modulates", ["weights", "both", "shifts"])
@pytest.mark.parametrize("modulated", [(), "all", (1,)], ids=str)
def test_parts_have_the_values_and_first_and_second_gradients_of_the_whole(
    make_network, make_modulations, monkeypatch, modulated, modulates, normalize
):
    network = make_network(modulates=modulates, modulated_layers=modulated, normalize_weights=normalize).double()
    modulations = {
        name: value.detach().double().requires_grad_() for name, value in make_modulations(network, B).items()
    }
    coords = (2 * torch.rand(B, N, 2).double() - 1).requires_grad_()
    inputs = [coords, *network.parameters(), *modulations.values()]
    sizes = []
    network.encoding.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[:2])))

    def derivatives():
        values = network(coords, modulations)
        gradients = torch.autograd.grad(values.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), inputs)
        return values, gradients, second

    expected = derivatives()
    monkeypatch.setattr(coordinate_mlp, "_CACHED_ROWS", 2)
    actual = derivatives()
    assert sizes == [(B, N)] + [(1, 2), (1, 2), (1, 1)] * B
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@given(
    st.permutations(range(B)),
    st.permutations(range(N)),
    st.sampled_from([(1,), (0, 2), (3,)]),
    st.sampled_from(["weights", "both", "shifts"]),
    st.booleans(),
)
def test_permuting_instances_and_coordinates_permutes_values(
    make_network, make_modulations, instances, order, modulated, modulates, shared
):
    network = make_network(modulated_layers=modulated, modulates=modulates)
    modulations = make_modulations(network, B)
    coords = torch.rand(N, 2) if shared else torch.rand(B, N, 2)
    permuted = {name: part[instances] for name, part in modulations.items()}
    permuted_coords = coords[order] if shared else coords[instances][:, order]
    expected = network(coords, modulations)[instances][:, order]
    torch.testing.assert_close(network(permuted_coords, permuted), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("modulates", ["weights", "both", "shifts"])
@pytest.mark.parametrize("modulated", [(0,), (1,), (1, 3)], ids=str)
def test_values_depend_on_their_own_instance_only(make_network, make_modulations, modulated, modulates):
    network = make_network(modulated_layers=modulated, modulates=modulates)
    modulations = make_modulations(network, B)
    coords = torch.rand(B, N, 2).requires_grad_()
    leaves = [coords, *(part.requires_grad_() for part in modulations.values())]
    values = network(coords, modulations)
    for instance in range(B):
        for gradient in torch.autograd.grad(values[instance].square().sum(), leaves, retain_graph=True):
            others = [other for other in range(B) if other != instance]
            assert not gradient[others].any()
            assert gradient[instance].any()


def test_values_depend_on_their_own_coordinate_only(make_network, make_modulations):
    network = make_network()
    coords = torch.rand(B, N, 2).requires_grad_()
    values = network(coords, make_modulations(network, B))
    (gradient,) = torch.autograd.grad(values[:, 2].square().sum(), coords)
    assert not gradient[:, [0, 1, 3, 4]].any()
    assert gradient[:, 2].any()


def _expected_flops(network, shared, num_instances, num_coords):
    """Return two operations for every row, input and output; rows are shared before the first modulated layer."""
    flops = 0
    for layer, (fan_in, fan_out) in enumerate(network.layer_sizes):
        once = shared and layer < min(network.modulated_layers)
        flops += 2 * num_coords * (1 if once else num_instances) * fan_in * fan_out
    return flops


@pytest.mark.parametrize("modulated", [(0,), (1,), (2,), (3,), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_layers_before_the_first_modulated_one_run_once_per_batch(make_network, make_modulations, modulated, shared):
    network = make_network(modulated_layers=modulated)
    encoded = []
    network.encoding.register_forward_hook(lambda module, arguments, output: encoded.append(output.shape[:-1].numel()))
    coords = torch.rand(N, 2) if shared else torch.rand(4, N, 2)
    with FlopCounterMode(display=False) as counter:
        network(coords, make_modulations(network, 4))
    assert encoded == [N if shared else 4 * N]
    assert counter.get_total_flops() == _expected_flops(network, shared, 4, N)


@pytest.mark.parametrize("modulates", ["biases", "shifts"])
def test_product_of_a_layer_with_modulated_bias_runs_once_per_batch(make_network, make_modulations, modulates):
    network = make_network(modulates=modulates, modulated_layers=(2,))
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(N, 2), make_modulations(network, 4))
    expected = sum(
        2 * N * (1 if layer <= 2 else 4) * fan_in * fan_out
        for layer, (fan_in, fan_out) in enumerate(network.layer_sizes)
    )
    assert counter.get_total_flops() == expected


def test_shared_audio_coordinates_save_most_of_the_work(make_network, make_modulations):
    network = make_network(coord_dim=1, value_dim=1, hidden_dim=32, num_layers=5, encoding=FourierFeatures(256, 1024))
    flops = {}
    for coords in (torch.rand(50, 1), torch.rand(16, 50, 1)):
        with FlopCounterMode(display=False) as counter:
            network(coords, make_modulations(network, 16))
        flops[coords.dim()] = counter.get_total_flops()
    assert flops[2] < 0.25 * flops[3]


@pytest.mark.parametrize("modulates", ["weights", "biases", "both", "shifts"])
def test_every_parameter_has_a_gradient(make_network, make_modulations, modulates):
    network = make_network(modulated_layers=(1,), modulates=modulates)
    network(torch.rand(N, 2), make_modulations(network, B)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_fields_are_independent(make_network, make_modulations):
    network = make_network()
    first, second = make_modulations(network, B), make_modulations(network, 2)
    coords = torch.rand(N, 2)
    field, other = network.bind(first), network.bind(second)
    expected = network(coords, first)
    other(coords)
    assert torch.equal(field(coords), expected)


def test_activations_and_values_without_units_lead_to_the_values_of_a_loop(
    make_network, make_modulations, naive_network, coords
):
    network = make_network()
    modulations = make_modulations(network, 1)
    instance_coords = coords if coords.dim() == 2 else coords[0]
    layers = network.activations(modulations, instance_coords)
    assert [tuple(layers[layer].shape) for layer in range(3)] == [(N, 8), (1, N, 8), (1, N, 8)]
    normalized = (network.weights["3"] / network.weights["3"].norm(dim=0)).detach().double()
    last = layers[2].detach().double() @ normalized + network.biases["3"].detach().double() + 0.5
    torch.testing.assert_close(last, naive_network(network, instance_coords, modulations, 1), atol=2e-5, rtol=0)
    units = torch.tensor([0, 5])
    values = network.values_without(modulations, instance_coords, 2, units)
    for unit, actual in zip(units, values, strict=True):
        contribution = layers[2][0, :, unit, None].detach().double() * normalized[unit]
        torch.testing.assert_close(actual.detach().double(), last[0] - contribution, atol=1e-5, rtol=0)


@pytest.mark.parametrize("modulates", ["weights", "both", "shifts"])
@pytest.mark.parametrize("normalize", [True, False])
def test_free_network_has_the_same_field_and_all_weights_as_latents(
    make_network, make_modulations, naive_network, coords, modulates, normalize
):
    network = make_network(modulated_layers=(1, 2), modulates=modulates, normalize_weights=normalize)
    modulations = make_modulations(network, B)
    free = network.free(modulations)
    shapes = {f"weight.{layer}": (B, *sizes) for layer, sizes in enumerate(network.layer_sizes)}
    shapes |= {f"bias.{layer}": (B, fan_out) for layer, (_, fan_out) in enumerate(network.layer_sizes)}
    assert {name: tuple(latent.shape) for name, latent in free.latents.items()} == shapes
    _assert_equal(free.field(free.latents)(coords), naive_network(network, coords, modulations, B))


def test_free_network_without_modulated_layers_raises_an_error(make_network):
    with pytest.raises(ValueError, match="has no modulated_layers"):
        make_network(modulated_layers=()).free({})


def test_last_layer_is_float32_under_autocast(make_network, make_modulations):
    network = make_network(hidden_dim=64)
    modulations = make_modulations(network, B)
    hidden = []
    network.activation.register_forward_hook(lambda module, arguments, output: hidden.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        values = network(torch.rand(N, 2), modulations)
    assert hidden[-1].dtype == torch.bfloat16  # hidden layers run in low precision
    assert values.dtype == torch.float32
    weight = network.weights["3"].detach()
    normalized = (weight / weight.norm(dim=0)).double()
    _assert_equal(values, hidden[-1].double() @ normalized + network.biases["3"].detach().double() + 0.5)


def test_modulated_last_layer_is_float32_under_autocast(make_network, make_modulations):
    network = make_network(hidden_dim=64, modulated_layers=(3,))
    modulations = make_modulations(network, B, dtype=torch.bfloat16)  # as a hypernetwork predicts under autocast
    hidden = []
    network.activation.register_forward_hook(lambda module, arguments, output: hidden.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        values = network(torch.rand(N, 2), modulations)
    weight = modulations["weight.3"].double()
    normalized = weight / weight.norm(dim=1, keepdim=True)
    _assert_equal(values, hidden[-1].double() @ normalized + network.biases["3"].detach().double() + 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coord_dim": None}, "coord_dim is missing"),
        ({"value_dim": 0}, "value_dim is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_dim": 0}, "hidden_dim is 0"),
        ({"hidden_dim": [8, 8]}, r"hidden_dim is \[8, 8\]; with num_layers 4 .* 3 of them"),
        ({"hidden_dim": [8, -1, 8]}, r"hidden_dim is \[8, -1, 8\]"),
        (
            {"modulated_layers": (4,)},
            r"modulated_layers is \[4\]; with 4 layers it may hold 0 to 3, or be all or hidden",
        ),
        ({"modulated_layers": (-1,)}, r"modulated_layers is \[-1\]"),
        ({"modulated_layers": "every"}, "modulated_layers is every; by name, all and hidden are allowed"),
        ({"modulates": "scales"}, "modulates is scales; allowed are weights, biases, both, shifts"),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise_an_error(make_network, changes, message):
    with pytest.raises(ValueError, match=message):
        make_network(**changes)


def test_modulations_and_coordinates_that_do_not_fit_raise_an_error(make_network, make_modulations):
    network, other = make_network(modulated_layers=(1,)), make_network(modulated_layers=(1, 2))
    with pytest.raises(ValueError, match=r"\['weight.1', 'weight.2'\]; this network takes \['weight.1'\]"):
        network(torch.rand(N, 2), make_modulations(other, B))
    with pytest.raises(ValueError, match=r"\['weight.1'\]; this network takes \['weight.1', 'weight.2'\]"):
        other(torch.rand(N, 2), make_modulations(network, B))
    biased = make_network(modulated_layers=(1,), modulates="biases")
    with pytest.raises(ValueError, match=r"\['weight.1'\]; this network takes \['bias.1'\].*modulates biases"):
        biased(torch.rand(N, 2), make_modulations(network, B))
    with pytest.raises(ValueError, match="coords have 3 dimensions, this network takes 2"):
        network(torch.rand(N, 3), make_modulations(network, B))
