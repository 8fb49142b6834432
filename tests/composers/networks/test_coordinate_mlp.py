"""The coordinate network against a loop over instances, layers and columns, and what it promises about sharing."""

from itertools import chain, combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from composers.networks import FourierFeatures, IdentityEncoding

B, N = 3, 5
EVERY_CHOICE = list(chain.from_iterable(combinations(range(4), count) for count in range(5)))  # of four layers


@pytest.fixture(params=["shared", "per_instance"])
def coords(request):
    """Return coordinates of both kinds."""
    return torch.rand(N, 2) * 2 - 1 if request.param == "shared" else torch.rand(B, N, 2) * 2 - 1


def _assert_equal(found, wanted):
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("modulated", EVERY_CHOICE, ids=str)
def test_values_equal_a_loop_for_every_choice_of_modulated_layers(
    make_inr, make_modulations, naive_inr, coords, modulated
):
    inr = make_inr(modulated_layers=modulated)
    modulations = make_modulations(inr, B)
    num_instances = B if modulated or coords.dim() == 3 else 1
    values = inr(coords, modulations)
    assert values.shape == (num_instances, N, 3)
    _assert_equal(values, naive_inr(inr, coords, modulations, num_instances))


@pytest.mark.parametrize("biased", [(0,), (2,), (3,), (0, 3)], ids=str)
def test_biases_are_given_or_its_own(make_inr, make_modulations, naive_inr, coords, biased):
    inr = make_inr(modulated_layers=(0, 2, 3))
    modulations = make_modulations(inr, B, biased)
    _assert_equal(inr(coords, modulations), naive_inr(inr, coords, modulations, B))


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
def test_settings_do_what_they_say(make_inr, make_modulations, naive_inr, coords, changes):
    inr = make_inr(**changes)
    modulations = make_modulations(inr, B)
    _assert_equal(inr(coords, modulations), naive_inr(inr, coords, modulations, B))


def test_normalised_weights_have_no_scale(make_inr, make_modulations, coords):
    inr = make_inr(modulated_layers=(1, 3))
    modulations = make_modulations(inr, B)
    scaled = {
        layer: (weight * torch.rand(1, 1, weight.shape[2]).add(0.1), bias)
        for layer, (weight, bias) in modulations.items()
    }
    torch.testing.assert_close(inr(coords, scaled), inr(coords, modulations), atol=1e-5, rtol=0)
    plain = make_inr(modulated_layers=(1, 3), normalize_weights=False)
    assert not torch.allclose(plain(coords, scaled), plain(coords, modulations), atol=1e-2)


@pytest.mark.parametrize("modulated", [(), (0,), (1,), (3,), (1, 2), "all"], ids=str)
def test_shared_coordinates_equal_repeated_ones_with_their_gradients(make_inr, make_modulations, modulated):
    inr = make_inr(modulated_layers=modulated)
    shared = torch.rand(N, 2) * 2 - 1
    modulations = make_modulations(inr, B, biased=inr.modulated_layers[-1:])
    weighting = torch.randn(B, N, 3)
    results = []
    for coords in (shared, shared.expand(B, N, 2).contiguous()):
        given_tensors = {
            layer: (weight.clone().requires_grad_(), None if bias is None else bias.clone().requires_grad_())
            for layer, (weight, bias) in modulations.items()
        }
        leaves = [tensor for pair in given_tensors.values() for tensor in pair if tensor is not None]
        used = [bias for layer, bias in inr.biases.items() if int(layer) not in inr.modulated_layers[-1:]]
        leaves += [*inr.weights.values(), *used]
        values = inr(coords, given_tensors).expand(B, N, 3)
        results.append([values, *torch.autograd.grad((values * weighting).sum(), leaves)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_a_loop_in_float64(make_inr, make_modulations, coords):
    inr = make_inr(modulated_layers=(1, 3))
    modulations = make_modulations(inr, B, biased=(3,))
    weighting = torch.randn(B, N, 3)
    leaves = [coords, modulations[1][0], *modulations[3], *inr.weights.values(), *(inr.biases[i] for i in "012")]
    for leaf in leaves:
        leaf.requires_grad_()
    found = torch.autograd.grad((inr(coords, modulations) * weighting).sum(), leaves)

    values = []
    for instance in range(B):
        places = (coords[instance] if coords.dim() == 3 else coords).double()
        phases = torch.stack([x * f * torch.pi for x in places.unbind(1) for f in (1, 4)], dim=1)
        hidden = torch.cat((phases.cos(), phases.sin()), dim=1)
        for layer in range(4):
            weight, bias = modulations.get(layer, (None, None))
            weight = inr.weights[str(layer)] if weight is None else weight[instance]
            bias = inr.biases[str(layer)] if bias is None else bias[instance]
            hidden = hidden @ (weight / weight.square().sum(0).sqrt()).double() + bias.double()
            hidden = hidden.clamp(min=0) if layer < 3 else hidden
        values.append(hidden + 0.5)
    wanted = torch.autograd.grad((torch.stack(values) * weighting).sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@given(st.permutations(range(B)), st.permutations(range(N)), st.sampled_from([(1,), (0, 2), (3,)]), st.booleans())
def test_permuting_permutes_and_nothing_else(make_inr, make_modulations, instances, places, modulated, shared):
    inr = make_inr(modulated_layers=modulated)
    modulations = make_modulations(inr, B, biased=modulated[:1])
    coords = torch.rand(N, 2) if shared else torch.rand(B, N, 2)
    moved = {
        layer: (weight[instances], None if bias is None else bias[instances])
        for layer, (weight, bias) in modulations.items()
    }
    moved_coords = coords[places] if shared else coords[instances][:, places]
    wanted = inr(coords, modulations)[instances][:, places]
    torch.testing.assert_close(inr(moved_coords, moved), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("modulated", [(0,), (1,), (1, 3)], ids=str)
def test_no_instance_sees_another(make_inr, make_modulations, modulated):
    inr = make_inr(modulated_layers=modulated)
    modulations = make_modulations(inr, B, biased=modulated)
    coords = torch.rand(B, N, 2).requires_grad_()
    leaves = [coords] + [part.requires_grad_() for pair in modulations.values() for part in pair]
    values = inr(coords, modulations)
    for instance in range(B):
        for gradient in torch.autograd.grad(values[instance].square().sum(), leaves, retain_graph=True):
            others = [other for other in range(B) if other != instance]
            assert not gradient[others].any()
            assert gradient[instance].any()


def test_no_coordinate_sees_another(make_inr, make_modulations):
    inr = make_inr()
    coords = torch.rand(B, N, 2).requires_grad_()
    values = inr(coords, make_modulations(inr, B))
    (gradient,) = torch.autograd.grad(values[:, 2].square().sum(), coords)
    assert not gradient[:, [0, 1, 3, 4]].any()
    assert gradient[:, 2].any()


def _expected_flops(inr, shared, num_instances, num_coords):
    """Return two operations for every row, input and output; rows are shared before the first modulated layer."""
    flops = 0
    for layer, (fan_in, fan_out) in enumerate(inr.layer_sizes):
        alone = shared and layer < min(inr.modulated_layers)
        flops += 2 * num_coords * (1 if alone else num_instances) * fan_in * fan_out
    return flops


@pytest.mark.parametrize("modulated", [(0,), (1,), (2,), (3,), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_everything_before_the_first_modulated_layer_runs_once(make_inr, make_modulations, modulated, shared):
    inr = make_inr(modulated_layers=modulated)
    encoded = []
    inr.encoding.register_forward_hook(lambda module, arguments, output: encoded.append(output.shape[:-1].numel()))
    coords = torch.rand(N, 2) if shared else torch.rand(4, N, 2)
    with FlopCounterMode(display=False) as counter:
        inr(coords, make_modulations(inr, 4))
    assert encoded == [N if shared else 4 * N]
    assert counter.get_total_flops() == _expected_flops(inr, shared, 4, N)


def test_shared_audio_coordinates_save_most_of_the_work(make_inr, make_modulations):
    inr = make_inr(coord_dim=1, value_dim=1, hidden_dim=32, num_layers=5, encoding=FourierFeatures(256, 1024))
    flops = {}
    for coords in (torch.rand(50, 1), torch.rand(16, 50, 1)):
        with FlopCounterMode(display=False) as counter:
            inr(coords, make_modulations(inr, 16))
        flops[coords.dim()] = counter.get_total_flops()
    assert flops[2] < 0.25 * flops[3]


def test_it_owns_no_weight_that_a_composer_gives(make_inr):
    inr = make_inr(modulated_layers=(3, 1, 1))
    assert inr.modulated_layers == (1, 3)
    assert set(inr.weights) == {"0", "2"}
    assert set(inr.biases) == {"0", "1", "2", "3"}
    assert not make_inr(modulated_layers="all").weights
    assert make_inr(modulated_layers="all").modulated_layers == (0, 1, 2, 3)


def test_every_parameter_is_read(make_inr, make_modulations):
    inr = make_inr(modulated_layers=(1,))
    inr(torch.rand(N, 2), make_modulations(inr, B)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in inr.parameters())


def test_fields_have_no_hidden_state(make_inr, make_modulations):
    inr = make_inr()
    first, second = make_modulations(inr, B), make_modulations(inr, 2)
    coords = torch.rand(N, 2)
    field, other = inr.bind(first), inr.bind(second)
    wanted = inr(coords, first)
    other(coords)
    assert torch.equal(field(coords), wanted)


def test_the_last_layer_is_float32_under_autocast(make_inr, make_modulations):
    inr = make_inr(hidden_dim=64)
    modulations = make_modulations(inr, B)
    hidden = []
    inr.activation.register_forward_hook(lambda module, arguments, output: hidden.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        values = inr(torch.rand(N, 2), modulations)
    assert hidden[-1].dtype == torch.bfloat16  # the others do run in low precision
    assert values.dtype == torch.float32
    weight = inr.weights["3"].detach()
    wanted = hidden[-1].double() @ (weight / weight.norm(dim=0)).double() + inr.biases["3"].detach().double() + 0.5
    _assert_equal(values, wanted)


def test_a_modulated_last_layer_is_float32_under_autocast(make_inr, make_modulations):
    inr = make_inr(hidden_dim=64, modulated_layers=(3,))
    modulations = make_modulations(inr, B, dtype=torch.bfloat16)  # what a hypernetwork makes under autocast
    hidden = []
    inr.activation.register_forward_hook(lambda module, arguments, output: hidden.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        values = inr(torch.rand(N, 2), modulations)
    weight = modulations[3][0].double()
    wanted = hidden[-1].double() @ (weight / weight.norm(dim=1, keepdim=True)) + inr.biases["3"].double() + 0.5
    _assert_equal(values, wanted.detach())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coord_dim": None}, "coord_dim is missing"),
        ({"value_dim": 0}, "value_dim is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_dim": 0}, "hidden_dim is 0"),
        ({"hidden_dim": [8, 8]}, r"hidden_dim is \[8, 8\]; with num_layers 4 .* 3 of them"),
        ({"hidden_dim": [8, -1, 8]}, r"hidden_dim is \[8, -1, 8\]"),
        ({"modulated_layers": (4,)}, r"modulated_layers is \[4\]; with 4 layers it may hold 0 to 3"),
        ({"modulated_layers": (-1,)}, r"modulated_layers is \[-1\]"),
        ({"modulated_layers": "every"}, "modulated_layers is"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(make_inr, changes, message):
    with pytest.raises(ValueError, match=message):
        make_inr(**changes)


def test_modulations_and_coordinates_that_do_not_fit_are_refused(make_inr, make_modulations):
    inr, other = make_inr(modulated_layers=(1,)), make_inr(modulated_layers=(1, 2))
    with pytest.raises(ValueError, match=r"layers \[1, 2\], this network takes them for \[1\]"):
        inr(torch.rand(N, 2), make_modulations(other, B))
    with pytest.raises(ValueError, match=r"layers \[1\], this network takes them for \[1, 2\]"):
        other(torch.rand(N, 2), make_modulations(inr, B))
    with pytest.raises(ValueError, match="coords have 3 dimensions, this network takes 2"):
        inr(torch.rand(N, 3), make_modulations(inr, B))


# Networks of which only biases are modulated


def _naive_biased(inr, coords, modulations, num_instances):
    """Return the values ``(B, N, C)`` of a network with modulated biases by loops over instances, layers and columns."""
    values = []
    for instance in range(num_instances):
        hidden = inr.encoding(coords[instance] if coords.dim() == 3 else coords).detach().double()
        for layer in range(inr.num_layers):
            weight, bias = inr.weights[str(layer)].detach().double(), inr.biases[str(layer)].detach().double()
            if layer in modulations and modulations[layer][1] is not None:
                bias = modulations[layer][1][instance].double()
            columns = []
            for column, shift in zip(weight.unbind(1), bias, strict=True):
                length = column.square().sum().sqrt() if inr.normalize_weights else 1
                columns.append(hidden @ (column / length) + shift)
            hidden = torch.stack(columns, dim=1)
            if layer < inr.num_layers - 1:
                hidden = hidden.clamp(min=0)
        values.append(hidden + inr.output_offset)
    return torch.stack(values)


def _shifts(inr, num_instances):
    """Return random biases for every modulated layer."""
    return {layer: (None, torch.randn(num_instances, inr.layer_sizes[layer][1])) for layer in inr.modulated_layers}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("modulated", ["hidden", "all", (0,), (2,), (3,), (1, 3)], ids=str)
def test_modulated_biases_equal_a_loop(make_inr, coords, modulated, normalize):
    inr = make_inr(modulates="biases", modulated_layers=modulated, normalize_weights=normalize)
    modulations = _shifts(inr, B)
    values = inr(coords, modulations)
    assert values.shape == (B, N, 3)
    _assert_equal(values, _naive_biased(inr, coords, modulations, B))
    if coords.dim() == 2:
        torch.testing.assert_close(inr(coords.expand(B, N, 2), modulations), values, atol=1e-5, rtol=0)


def test_one_of_two_modulated_biases_may_be_its_own(make_inr, coords):
    inr = make_inr(modulates="biases", modulated_layers=(1, 2))
    modulations = _shifts(inr, B) | {1: (None, None)}
    _assert_equal(inr(coords, modulations), _naive_biased(inr, coords, modulations, B))


def test_modulated_biases_leave_it_all_its_weights(make_inr):
    inr = make_inr(modulates="biases", modulated_layers="hidden")
    assert inr.modulated_layers == (0, 1, 2)
    assert set(inr.weights) == set(inr.biases) == {"0", "1", "2", "3"}
    assert set(make_inr(modulated_layers="hidden").weights) == {"3"}
    assert make_inr(modulated_layers="hidden", num_layers=1).modulated_layers == ()


def test_gradients_of_modulated_biases_stay_with_their_instance(make_inr, coords):
    inr = make_inr(modulates="biases", modulated_layers="hidden")
    modulations = _shifts(inr, B)
    leaves = [bias.requires_grad_() for _, bias in modulations.values()]
    values = inr(coords, modulations)
    for instance in range(B):
        for gradient in torch.autograd.grad(values[instance].square().sum(), leaves, retain_graph=True):
            assert gradient[instance].any()
            assert not gradient[[other for other in range(B) if other != instance]].any()


def test_modulated_biases_share_what_comes_before_them(make_inr):
    inr = make_inr(modulates="biases", modulated_layers=(2,))
    with FlopCounterMode(display=False) as counter:
        inr(torch.rand(N, 2), _shifts(inr, 4))
    shared, own = inr.layer_sizes[:3], inr.layer_sizes[3:]  # the product of the modulated layer itself is shared too
    assert counter.get_total_flops() == sum(2 * N * i * o for i, o in shared) + sum(8 * N * i * o for i, o in own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modulates": "scales"}, "modulates is scales; allowed are weights and biases"),
        ({"modulated_layers": "hiden"}, "modulated_layers is hiden; by name, all and hidden are allowed"),
        ({"modulated_layers": (4,)}, "it may hold 0 to 3, or be all or hidden"),
    ],
    ids=str,
)
def test_names_that_mean_nothing_are_refused(make_inr, changes, message):
    with pytest.raises(ValueError, match=message):
        make_inr(**changes)


def test_modulated_biases_for_other_layers_are_refused(make_inr):
    inr, other = make_inr(modulates="biases", modulated_layers="hidden"), make_inr(modulates="biases")
    with pytest.raises(ValueError, match=r"layers \[1\], this network takes them for \[0, 1, 2\]"):
        inr(torch.rand(N, 2), _shifts(other, B))
