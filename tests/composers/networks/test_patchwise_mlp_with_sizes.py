"""The network of patches at positions with sizes, with more frequencies and a skip connection, for super-resolution."""

import math

import pytest
import torch
from naive_routes import naive_weight
from test_patchwise_mlp import _naive_value

from composers import Composer
from composers.encoders import EDSR, TokenMap
from composers.inference import Hypernetwork
from composers.latents import Direct, PatchCodes, PatchPatterns
from composers.networks import CoordinateMLP, PatchModulations, PatchwiseMLP
from datamodules.batch import Observation, Samples
from datamodules.domain import CellGrid

UNIT = ((-1, 1), (-1, 1))
GRID = (4, 5)


def _network(**arguments):
    """Return a network of one patch per pixel with random parameters."""
    torch.manual_seed(0)
    arguments = {"patch_size": 1, "hidden_dim": 8, "rank": 3, "overlap": 0.5, "num_frequencies": 3, **arguments}
    network = PatchwiseMLP(4, 3, ranges=UNIT, **arguments)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network


def _modulations(network, image=None):
    """Return random patterns for two instances."""
    width, rank = network.patches.pattern_shape
    tokens = torch.randn(2, math.prod(GRID), width * rank)
    return PatchModulations(tokens, lambda tokens: tokens.unflatten(-1, (width, rank)), GRID, GRID, image)


def _coords(*leading):
    """Return random positions with sizes."""
    return torch.cat((torch.rand(*leading, 2) * 2 - 1, torch.rand(*leading, 2) * 0.5 + 0.02), dim=-1)


class _Sized(torch.nn.Module):
    """A network whose first bias contains what the size of a query adds, for `_naive_value`."""

    def __init__(self, network, size):
        super().__init__()
        self.__dict__ |= {
            name: getattr(network, name) for name in ("overlap", "patch_size", "encoding", "basis", "last")
        }
        self.__dict__ |= {"output_offset": network.output_offset, "bias": network.bias}
        limited = [max(x * count, 2 / network.max_scale) for x, count in zip(size, GRID, strict=True)]
        first = torch.nn.Linear(network.first.in_features, network.first.out_features)
        first.weight.data = network.first.weight.data
        first.bias.data = network.first.bias.data + network.cell.weight.data @ torch.tensor(limited)
        self.__dict__["first"] = first


def _naive(network, modulations, instance, coord):
    """Return the value ``(C,)`` at a position with a size, as the weighted sum over all patches."""
    row, column, *size = coord.tolist()
    positions = [(x + 1) / 2 * count for x, count in zip((row, column), GRID, strict=True)]
    total = torch.zeros(3)
    for patch in range(math.prod(GRID)):
        index = divmod(patch, GRID[1])
        weight = math.prod(naive_weight(*axis, 0.5) for axis in zip(positions, index, GRID, strict=True))
        patterns = modulations.patterns(torch.tensor([patch]))[instance, 0]
        local = [2 * (position - place) - 1 for position, place in zip(positions, index, strict=True)]
        total = total + weight * _naive_value(_Sized(network, size), patterns, local)
    return total


@pytest.mark.parametrize("shared", [True, False])
def test_values_at_positions_with_sizes_equal_a_naive_sum(shared):
    network = _network(use_cell=True, max_scale=4.0)
    modulations = _modulations(network)
    coords = _coords(9) if shared else _coords(2, 9)
    values = network(coords, modulations)
    for instance in range(2):
        for query in range(9):
            coord = coords[query] if shared else coords[instance, query]
            expected = _naive(network, modulations, instance, coord)
            assert torch.allclose(values[instance, query], expected, atol=2e-5)


def test_sizes_are_ignored_without_use_cell():
    network, plain = _network(), PatchwiseMLP(2, 3, 1, 8, 3, 0.5, num_frequencies=3)
    plain.load_state_dict(network.state_dict())
    modulations, coords = _modulations(network), _coords(2, 30)
    assert torch.equal(network(coords, modulations), plain(coords[..., :2], modulations))


def test_values_depend_on_sizes_up_to_those_of_training():
    network = _network(use_cell=True, max_scale=4.0)
    modulations, coords = _modulations(network), _coords(30)
    coords[:, 2:] = torch.tensor([1 / GRID[0], 1 / GRID[1]])  # scale 2
    other, smallest, beyond = coords.clone(), coords.clone(), coords.clone()
    other[:, 2:] *= 0.7
    smallest[:, 2:] *= 0.5
    beyond[:, 2:] *= 0.1
    values = [network(part, modulations) for part in (coords, other, smallest, beyond)]
    assert not torch.allclose(values[0], values[1], atol=1e-3)
    assert torch.allclose(values[2], values[3])


@pytest.mark.parametrize("shared", [True, False])
def test_the_skip_adds_the_bilinear_interpolation_of_the_image(shared):
    network, image = _network(skip="bilinear", output_offset=0.0), torch.rand(2, 3, *GRID)
    modulations = _modulations(network, image)
    coords = CellGrid.unit(2).coords((8, 10)) if shared else _coords(2, 30)
    added = network(coords, modulations)
    network.skip = False
    added = added - network(coords, modulations)
    if shared:
        expected = torch.nn.functional.interpolate(image, size=(8, 10), mode="bilinear").flatten(2).mT
        assert torch.allclose(added, expected, atol=1e-5)
    for instance, query in ((0, 3), (1, 17)):
        row, column = (coords if shared else coords[instance])[query, :2].tolist()
        places = [min(max((x + 1) / 2 * n - 0.5, 0), n - 1) for x, n in zip((row, column), GRID, strict=True)]
        (top, left), expected = map(int, places), torch.zeros(3)
        for i in (top, min(top + 1, GRID[0] - 1)):
            for j in (left, min(left + 1, GRID[1] - 1)):
                share = (
                    (1 - abs(places[0] - i)) * (1 - abs(places[1] - j))
                    if top < GRID[0] - 1 and left < GRID[1] - 1
                    else 0
                )
                expected = expected + share * image[instance, :, i, j]
        if top < GRID[0] - 1 and left < GRID[1] - 1:
            assert torch.allclose(added[instance, query], expected, atol=1e-5)


def test_further_frequencies_do_not_change_the_linear_patterns():
    torch.manual_seed(0)
    network = PatchwiseMLP(2, 2, (3, 2), hidden_dim=8, rank=3, num_frequencies=5, output_offset=0.0)
    patterns = network.linear_patterns()
    assert patterns.shape == (12, network.input_dim, 3)
    assert network.input_dim == 50
    modulations = PatchModulations(
        torch.arange(12.0).view(12, 1, 1), lambda tokens: patterns.unsqueeze(1), (1, 1), (3, 2)
    )
    values = network(CellGrid.unit(2).coords((3, 2))[:, :2], modulations)
    assert torch.allclose(values.mT.flatten(1), torch.eye(12), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coord_dim": 3}, r"coord_dim 3: give a lower and an upper bound for every dimension"),
        ({"coord_dim": 2, "use_cell": True}, "use_cell is true, and coord_dim 2 means positions without sizes"),
        ({"patch_size": 4}, r"num_frequencies is 3 and patch_size \(4, 4\): give at least as many"),
        (
            {"skip": "bilinear"},
            "skip is bilinear, for images and output_offset 0; there are 2 axes and output_offset is 0.5",
        ),
    ],
    ids=str,
)
def test_inconsistent_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchwiseMLP(
            **{"coord_dim": 4, "value_dim": 3, "patch_size": 1, "ranges": UNIT, "num_frequencies": 3} | arguments
        )


def test_what_does_not_fit_is_refused():
    network = _network(skip="bilinear", output_offset=0.0)
    with pytest.raises(ValueError, match="the modulations hold no image: use parametrization PatchPatterns"):
        network(_coords(3), _modulations(network))
    with pytest.raises(
        ValueError, match=r"coords have 2 dimensions and the grid of patches 2; this network takes 4 .* and 2"
    ):
        network(_coords(3)[:, :2], _modulations(network))
    with pytest.raises(ValueError, match="CoordinateMLP has none: use network PatchwiseMLP"):
        PatchPatterns().connect(CoordinateMLP(2, 3))
    for arguments in ({"context": 2}, {"context": 0}, {"feature_dim": 0}):
        with pytest.raises(ValueError, match="context must be odd"):
            PatchPatterns(**arguments)


def _composer(skip="bilinear"):
    """Return a small composer of super-resolution with a second layer per pixel."""
    torch.manual_seed(0)
    network = PatchwiseMLP(
        4, 3, 1, hidden_dim=16, rank=4, overlap=0.5, ranges=UNIT, num_frequencies=3, use_cell=True, skip=skip,
        output_offset=0.0 if skip == "bilinear" else 0.5, max_scale=4.0,
    )  # fmt: skip
    start = Hypernetwork(EDSR((3, -1, -1), width=8, num_blocks=1), TokenMap())
    return Composer(network, PatchPatterns(feature_dim=8), start)


def test_training_starts_from_the_interpolation_and_reaches_every_parameter():
    composer, signal = _composer(), torch.rand(2, 3, 6, 7)
    coords = CellGrid.unit(2).coords((18, 21))
    values = composer(Observation(signal), coords)
    expected = torch.nn.functional.interpolate(signal, scale_factor=3, mode="bilinear").flatten(2).mT
    assert torch.allclose(values, expected, atol=1e-5)
    flat = _composer(skip="none")(Observation(signal), coords)
    assert torch.allclose(flat, torch.full_like(flat, 0.5), atol=1e-5)
    optimizer = torch.optim.Adam(composer.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (composer(Observation(signal), coords) - torch.rand(2, 378, 3)).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in composer.parameters())


def test_patterns_come_from_the_neighbourhood_of_a_pixel():
    composer = _composer().eval()
    torch.nn.init.normal_(composer.parametrization.patterns.weight, std=0.3)
    features = torch.randn(1, 8, 6, 7)
    changed = features.clone()
    changed[:, :, 2, 3] += 1
    layout = composer.layout(Observation(torch.zeros(1, 3, 6, 7)))
    image = torch.zeros(1, 3, 6, 7)
    first, second = (
        composer.compose({"map": part, "image": image}, layout).patterns(torch.arange(42))
        for part in (features, changed)
    )
    differs = (first != second).flatten(2).any(-1).view(6, 7)
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(differs, expected)


def test_thirty_steps_lower_the_loss():
    composer = _composer()
    generator = torch.Generator().manual_seed(0)
    large = torch.nn.functional.interpolate(torch.rand(4, 3, 6, 6, generator=generator), 24, mode="bicubic")
    signal = torch.nn.functional.interpolate(large, 8, mode="area")
    coords = CellGrid.unit(2).coords((24, 24))
    target = Samples(coords, large.flatten(2).mT)
    optimizer, losses = torch.optim.Adam(composer.parameters(), lr=3e-3), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (composer(Observation(signal), coords) - target.values).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_other_parametrizations_say_what_fits():
    network = _network(skip="bilinear", output_offset=0.0)
    with pytest.raises(ValueError, match="PatchwiseMLP has none"):
        Direct().connect(network)
    codes = PatchCodes(code_dim=2, embed_dim=8, num_blocks=1)
    codes.connect(network)  # holds no image, which the network refuses
    composed = codes.compose({"codes": torch.zeros(1, *GRID, 2)}, codes.layout(GRID))
    with pytest.raises(ValueError, match="use parametrization PatchPatterns"):
        network(_coords(3), composed)
