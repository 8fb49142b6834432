"""The local MLP: against loops over coordinates and cells, its symmetries, in any precision, and rejected arguments."""

import naive_liif
import numpy as np
import pytest
import torch

from composers.networks import LocalMLP, local_mlp
from datamodules.domain import CellGrid

E, SIZE = 6, (5, 7)
LTE = {"num_hidden": 3, "features": "fourier", "skip": "bilinear", "clip_cells": True, "max_scale": 4.0}
VARIANTS = [
    {},
    {"unfold": False},
    {"use_cell": False},
    {"ensemble": False},
    {"unfold": False, "use_cell": False, "ensemble": False},
    {"num_hidden": 1},
    {"skip": "bilinear"},
    {"skip": "bilinear", "ensemble": False},
    {"clip_cells": True, "max_scale": 4.0},
    LTE,
    LTE | {"use_cell": False, "clip_cells": False},
]


def _network(**arguments):
    """Return a small network with random parameters."""
    torch.manual_seed(0)
    sizes = {"coord_dim": 4, "value_dim": 3, "feature_dim": E, "hidden_dim": 16, "num_hidden": 3}
    network = LocalMLP(**sizes | arguments)
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if name.endswith("bias") else parameter[0].numel() ** -0.5)
    return network


def _modulations(instances=2, size=SIZE, channels=3):
    """Return random maps, and images for networks with a skip connection."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(instances, E, *size, generator=generator)
    return {"map": features, "image": torch.rand(instances, channels, *size, generator=generator)}


def _coords(factors=(3, 1.6), size=SIZE, number=40):
    """Return coordinates of a grid, and scattered ones with sizes between those at scales 2 and 10, of other shapes."""
    shape = [round(extent * factor) for extent, factor in zip(size, factors, strict=True)]
    generator = torch.Generator().manual_seed(2)
    scattered = torch.rand(number, 4, generator=generator)
    steps = 2 / torch.tensor(size)
    scattered = torch.cat((2 * scattered[:, :2] - 1, steps * (0.1 + 0.4 * scattered[:, 2:])), dim=1)
    last = 1 - 1 / torch.tensor(size)
    coords = torch.cat((CellGrid.unit(2).coords(shape), scattered))
    return coords[(coords[:, :2] - last).abs().min(1).values > 1e-4]  # where the released formula is defined


def _naive(network, modulations, coords):
    """Return the values ``(B, N, C)`` by loops over instances and coordinates."""
    weights = {name: parameter.detach().double().numpy() for name, parameter in network.named_parameters()}
    layers = ["first.linear", *(f"hidden.{layer}" for layer in range(len(network.hidden))), "last"]
    renamed = {
        f"imnet.layers.{2 * number}.{kind}": weights[f"{layer}.{kind}"]
        for number, layer in enumerate(layers)
        for kind in ("weight", "bias")
    }
    places, cells = (part.double().numpy() for part in coords.split(2, dim=-1))
    values = []
    for features, image in zip(modulations["map"].double().numpy(), modulations["image"].double().numpy(), strict=True):
        if "first.phases.weight" in weights:
            names = {"coef": "first.amplitudes", "freq": "first.frequencies", "phase": "first.phases"}
            renamed |= {
                name.replace(ours, theirs): weights[name]
                for theirs, ours in names.items()
                for name in weights
                if ours in name
            }
            values.append(naive_liif.lte(features, image, renamed, places, cells, network.max_scale))
            continue
        if network.clip_cells:
            cells = np.maximum(cells, 2 / np.array(features.shape[1:]) / network.max_scale)
        switches = {
            "unfold": network.first.kernel_size == 3,
            "use_cell": network.use_cell,
            "ensemble": network.ensemble,
        }
        predicted = naive_liif.liif(features, renamed, places, cells, **switches)
        if network.skip:
            predicted += np.stack([naive_liif.bilinear(2 * image - 1, place) for place in places]) / 2
        values.append(predicted)
    return torch.from_numpy(np.stack(values)).float()


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS[:-1], ids=str)
def test_values_are_those_of_a_loop(variant):
    network, modulations, coords = _network(**variant), _modulations(), _coords()
    values = network(coords, modulations)
    torch.testing.assert_close(values, _naive(network, modulations, coords), atol=1e-5, rtol=0)
    assert values.std(1).min() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("variant", [{}, LTE], ids=["LIIF", "LTE"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (8, 8)], ids=str)
def test_maps_may_have_any_size(size, variant):
    network, modulations = _network(**variant), _modulations(size=size)
    coords = _coords((2, 2), size)
    torch.testing.assert_close(network(coords, modulations), _naive(network, modulations, coords), atol=1e-5, rtol=0)


def test_published_sizes():
    sizes = {"LIIF": {}, "LTE": LTE}
    counts = {
        name: sum(parameter.numel() for parameter in LocalMLP(4, 3, **arguments).parameters())
        for name, arguments in sizes.items()
    }
    assert counts == {"LIIF": 346_883, "LTE": 493_827}


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_shared_coordinates_equal_those_of_each_instance(variant):
    network, modulations, coords = _network(**variant), _modulations(), _coords()
    values = network(coords, modulations)
    torch.testing.assert_close(network(coords.expand(2, -1, -1), modulations), values, atol=1e-6, rtol=0)
    swapped = network(torch.stack((coords.flip(0), coords)), modulations)
    torch.testing.assert_close(swapped[0].flip(0), values[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(swapped[1], values[1], atol=1e-6, rtol=0)
    assert torch.equal(network.bind(modulations)(coords), values)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_passes_of_bounded_memory_equal_one_pass(variant, monkeypatch):
    network, modulations, coords = _network(**variant), _modulations(), _coords()
    expected = network(coords, modulations), network(coords.expand(2, -1, -1), modulations)
    monkeypatch.setattr(local_mlp, "_MAX_HELD", {"cpu": 7 * 2 * network.floats_per_coord})
    passes = []
    inner = network._values
    monkeypatch.setattr(network, "_values", lambda coords, maps: passes.append(coords.shape[-2]) or inner(coords, maps))
    for query, values in zip((coords, coords.expand(2, -1, -1)), expected, strict=True):
        torch.testing.assert_close(network(query, modulations), values, atol=1e-6, rtol=0)
    assert max(passes) == 7


@torch.no_grad()
def test_no_coordinates_give_no_values():
    assert _network()(torch.zeros(0, 4), _modulations()).shape == (2, 0, 3)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_images_may_be_grey(channels):
    network, modulations = _network(value_dim=channels, skip="bilinear"), _modulations(channels=channels)
    coords = _coords()
    values = network(coords, modulations)
    assert values.shape == (2, len(coords), channels)
    torch.testing.assert_close(values, _naive(network, modulations, coords), atol=1e-5, rtol=0)


# Properties


@torch.no_grad()
@pytest.mark.parametrize("variant", [{}, {"ensemble": False}, {"skip": "bilinear"}, LTE], ids=str)
def test_translating_the_map_by_whole_cells_translates_the_values(variant):
    network, wide = _network(**variant), _modulations(size=(12, 14))
    shifted = {name: part[:, :, 2:10, 3:11] for name, part in wide.items()}
    shape, factors = (8, 8), (3, 2)
    coords = CellGrid.unit(2).coords([n * factor for n, factor in zip((12, 14), factors, strict=True)])
    large = network(coords, wide).unflatten(1, (12 * 3, 14 * 2))[:, 2 * 3 : 10 * 3, 3 * 2 : 11 * 2]
    coords = CellGrid.unit(2).coords([n * factor for n, factor in zip(shape, factors, strict=True)])
    small = network(coords, shifted).unflatten(1, (8 * 3, 8 * 2))
    border = 2  # cells that see beyond the smaller map
    inner = (slice(None), slice(border * 3, -border * 3), slice(border * 2, -border * 2))
    torch.testing.assert_close(small[inner], large[inner], atol=2e-5, rtol=0)


def _largest_step(network, modulations, step=1e-4):
    """Return the largest change of values over small steps across the borders and centres of cells."""
    places = torch.arange(-1, 1 + 1e-6, 1 / SIZE[1])[:, None].repeat(1, 2)
    places = torch.cat(
        [torch.stack((places[:, 0], torch.full((len(places),), row)), dim=1) for row in (-0.99, 0.13, 0.6)]
    )
    jumps = []
    for axes in ([0, 1], [1, 0]):
        sides = [
            torch.cat(
                (places[:, axes] + sign * places.new_tensor([step, 0])[axes] / 2, torch.full_like(places, 0.1)), dim=1
            )
            for sign in (-1, 1)
        ]
        jumps.append((network(sides[0], modulations) - network(sides[1], modulations)).abs().max().item())
    return max(jumps)


@torch.no_grad()
@pytest.mark.parametrize("variant", [{}, {"skip": "bilinear"}, LTE], ids=str)
def test_the_ensemble_is_continuous_across_cells(variant):
    modulations = _modulations()
    assert _largest_step(_network(**variant), modulations) < 0.01
    assert _largest_step(_network(**variant | {"ensemble": False}), modulations) > 0.05  # a jump


@torch.no_grad()
@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored_weights_and_maps_give_mirrored_values(axis):
    network, mirrored, modulations, coords = _network(), _network(), _modulations(), _coords()
    weight = mirrored.first.linear.weight
    kernels = weight[:, : 9 * E].unflatten(1, (E, 3, 3)).flip(2 + axis).flatten(1)
    weight[:, : 9 * E] = kernels
    weight[:, 9 * E + axis] *= -1  # of the offset along this axis
    flipped = {name: part.flip(2 + axis) for name, part in modulations.items()}
    reflection = torch.ones(4)
    reflection[axis] = -1
    torch.testing.assert_close(mirrored(coords * reflection, flipped), network(coords, modulations), atol=1e-5, rtol=0)


@torch.no_grad()
def test_query_sizes_below_those_of_training_are_limited():
    """The limit is that of the largest scale in training, along each axis by itself."""
    network, modulations, coords = _network(clip_cells=True, max_scale=4.0), _modulations(), _coords()
    unlimited = _network()
    at_four = coords.clone()
    at_four[:, 2:] = torch.maximum(coords[:, 2:], 2 / torch.tensor(SIZE) / 4)
    assert (at_four != coords).any()
    assert torch.equal(network(coords, modulations), unlimited(at_four, modulations))


@torch.no_grad()
def test_before_training_a_skip_connection_yields_the_interpolation():
    modulations, coords = _modulations(), _coords()
    network = LocalMLP(4, 3, E, 16, skip="bilinear")
    expected = [
        np.stack([naive_liif.bilinear(image, place) for place in coords[:, :2].double().numpy()])
        for image in modulations["image"].double().numpy()
    ]
    torch.testing.assert_close(
        network(coords, modulations), torch.from_numpy(np.stack(expected)).float(), atol=1e-5, rtol=0
    )


def test_gradients_are_those_of_finite_differences():
    network = _network(skip="bilinear").double()
    modulations = {name: part.double().requires_grad_() for name, part in _modulations(1).items()}
    coords = _coords(number=4).double()[-6:]

    def values(features, image):
        return network(coords, {"map": features, "image": image})

    assert torch.autograd.gradcheck(values, (modulations["map"], modulations["image"]), fast_mode=True)


# Precision


@torch.no_grad()
@pytest.mark.parametrize("variant", [{}, {"skip": "bilinear"}, LTE], ids=str)
def test_autocast_reads_the_same_cells(variant, monkeypatch):
    network, modulations = _network(**variant), _modulations(size=(60, 80))
    coords, cells, around = _coords((3, 4), (60, 80)), [], local_mlp.cells_around
    monkeypatch.setattr(local_mlp, "cells_around", lambda *args: cells.append(around(*args)) or cells[-1])
    exact = network(coords, modulations)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(coords, modulations)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    half = len(cells) // 2  # the passes of one call
    for first, second in zip(cells[:half], cells[half:], strict=True):
        assert all(torch.equal(*parts) for parts in zip(first, second, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("variant", [{}, LTE], ids=str)
def test_a_network_in_bfloat16_reads_the_same_cells(variant):
    network, modulations, coords = _network(**variant), _modulations(), _coords()
    exact = network(coords, modulations)
    network.bfloat16()
    rounded = network(coords, {name: part.bfloat16() for name, part in modulations.items()})
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("variant", [{}, LTE], ids=["LIIF", "LTE"])
def test_a_compiled_program_takes_any_number_of_coordinates(variant):
    network, modulations = _network(**variant).eval(), _modulations()

    class Values(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, coords, features, image):
            return self.network(coords, {"map": features, "image": image})

    arguments = (_coords(number=5)[:9], modulations["map"], modulations["image"])
    number = torch.export.Dim("N")
    with torch.no_grad():
        program = torch.export.export(
            Values(), arguments, dynamic_shapes={"coords": {0: number}, "features": None, "image": None}
        )
        for count in (1, 30):
            coords = _coords()[:count]
            actual = program.module()(coords, modulations["map"], modulations["image"])
            torch.testing.assert_close(actual, network(coords, modulations), atol=1e-6, rtol=0)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coord_dim": None}, "coord_dim and value_dim are missing: the command line sets them"),
        ({"value_dim": None}, "coord_dim and value_dim are missing"),
        ({"coord_dim": 2}, r"coord_dim is 2; LocalMLP reads .* coord_dim 4 .* set use_cell to false"),
        ({"coord_dim": 3, "use_cell": False}, "coord_dim is 3"),
        ({"feature_dim": 0}, "feature_dim is 0, hidden_dim 16, num_hidden 4: all must be at least 1"),
        ({"num_hidden": 0}, "num_hidden 0"),
        ({"hidden_dim": 15, "features": "fourier"}, "hidden_dim 15.*must be even with fourier features"),
        ({"clip_cells": True}, "clip_cells limits query sizes to those at max_scale, which is None"),
        ({"clip_cells": True, "max_scale": 0.5}, r"max_scale, which is 0\.5"),
        ({"clip_cells": True, "max_scale": 4.0, "use_cell": False}, "and use_cell"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalMLP(**{"coord_dim": 4, "value_dim": 3, "hidden_dim": 16} | arguments)


@torch.no_grad()
def test_positions_suffice_without_query_sizes():
    network, both = _network(coord_dim=2, use_cell=False), _network(use_cell=False)
    modulations, coords = _modulations(), _coords()
    assert torch.equal(network(coords[:, :2], modulations), both(coords, modulations))


def test_inputs_that_do_not_fit_are_rejected():
    network, modulations = _network(), _modulations()
    with pytest.raises(
        ValueError, match=r"coords have the shape \(5, 2\); this network takes \(N, 4\), or \(2, N, 4\)"
    ):
        network(torch.zeros(5, 2), modulations)
    with pytest.raises(ValueError, match=r"coords have the shape \(3, 5, 4\)"):
        network(torch.zeros(3, 5, 4), modulations)
    skip = _network(skip="bilinear")
    with pytest.raises(ValueError, match=r"The map has \(5, 7\) cells and the image \(5, 6\) pixels"):
        skip(torch.zeros(5, 4), modulations | {"image": modulations["image"][..., :-1]})


@pytest.mark.parametrize("features", ["unfolded", "fourier"])
@pytest.mark.parametrize("skip", ["none", "bilinear"])
def test_latents_have_the_size_of_the_map(features, skip):
    slots = _network(features=features, skip=skip).slots
    shapes = {name: spec.shape for name, spec in slots.items()}
    assert shapes == {"map": (E, -1, -1)} | ({"image": (3, -1, -1)} if skip == "bilinear" else {})
