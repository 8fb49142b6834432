"""Codes of patches: where a code has influence, what they start from, and which layouts they take."""

import itertools

import numpy as np
import pytest
import torch

from composers.latents import Direct, Layout, LowRank, PatchCodes, Shifts
from composers.latents.mixture import fit_mixture
from composers.networks import CoordinateMLP, PatchwiseMLP

EXTENTS = {1: (22,), 2: (10, 14), 3: (6, 4, 8)}
CODES = {"code_dim": 3, "num_blocks": 1, "kernel_size": 3, "mlp_ratio": 1}


def _connected(axes=2, trained=True, **arguments):
    """Return codes of patches of two samples along each axis, with random parameters if trained."""
    torch.manual_seed(0)
    codes = PatchCodes(**{**CODES, **arguments})
    codes.connect(PatchwiseMLP(axes, 1, 2, hidden_dim=4, rank=2))
    if trained:
        for parameter in codes.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return codes


def _latents(codes, axes=2, instances=2):
    """Return random latents and their layout."""
    layout = codes.layout(EXTENTS[axes])
    return {"codes": torch.randn(instances, *layout.shape(codes.latents["codes"].shape))}, layout


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_latents_have_the_axes_of_the_grid(axes):
    codes = _connected(axes)
    assert codes.latents["codes"].shape == (*(-1,) * axes, 3)
    assert codes.latents["codes"].initial().shape == (*(1,) * axes, 3)
    assert codes.layout(EXTENTS[axes]) == Layout(tuple(size // 2 for size in EXTENTS[axes]), EXTENTS[axes])
    assert codes.layout((3,) * axes).grid == (2,) * axes


@torch.no_grad()
@pytest.mark.parametrize(
    ("context", "blocks", "kernel", "reach"), [(1, 0, 3, 0), (3, 0, 3, 1), (1, 1, 3, 1), (3, 1, 3, 2), (1, 2, 5, 4)]
)
@pytest.mark.parametrize("axes", [1, 2])
def test_a_code_influences_the_patches_within_its_reach_only(axes, context, blocks, kernel, reach):
    codes = _connected(axes, embed_dim=6, context=context, num_blocks=blocks, kernel_size=kernel)
    latents, layout = _latents(codes, axes)
    place = tuple(count // 2 for count in layout.grid)
    moved = latents["codes"].clone()
    moved[:, *place] += 1
    every = torch.arange(np.prod(layout.grid))
    first, second = (codes.compose({"codes": part}, layout).patterns(every) for part in (latents["codes"], moved))
    changed = (first != second).flatten(2).any(-1).unflatten(1, layout.grid)
    for index in itertools.product(*map(range, layout.grid)):
        within = all(abs(i - p) <= reach for i, p in zip(index, place, strict=True))
        assert changed[:, *index].all() == changed[:, *index].any() == within


@torch.no_grad()
@pytest.mark.parametrize("clusters", [1, 4])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_patterns_of_some_patches_are_those_of_all(axes, clusters):
    codes = _connected(axes, num_clusters=clusters)
    latents, layout = _latents(codes, axes)
    modulations = codes.compose(latents, layout)
    assert (modulations.grid, modulations.extent) == (layout.grid, EXTENTS[axes])
    every = modulations.patterns(torch.arange(np.prod(layout.grid)))
    assert every.shape[:2] == (2, np.prod(layout.grid))
    some = torch.tensor([5, 0, 5])
    torch.testing.assert_close(modulations.patterns(some), every[:, some])


def test_steps_are_scaled_by_the_number_of_patches():
    codes = _connected()
    latents, _ = _latents(codes)
    assert codes.step_scales(latents)["codes"].item() == 5 * 7


@pytest.mark.parametrize("layout", [Layout(), Layout((7, 5), (14, 10)), Layout((35,), (70,))])
def test_other_layouts_are_rejected(layout):
    codes = _connected()
    latents, _ = _latents(codes)
    with pytest.raises(
        ValueError, match=r"codes have the grid \(5, 7\), and the layout states .*: pass the layout of the"
    ):
        codes.compose(latents, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_values_are_linear_in_the_coordinates_of_the_cluster(dtype):
    codes = _connected(num_clusters=4).to(dtype)
    latents = torch.randn(2, 3, 5, 3, dtype=dtype)
    latents[..., 0] = torch.arange(30).view(2, 3, 5) % 4
    actual = codes.decoded(latents)
    weight, bias = codes.values.weight / codes.values.factor, codes.values.bias / codes.values.factor
    assert (actual.shape, actual.dtype, weight.shape) == ((2, 3, 5, 4), dtype, (4, 4 * 3))
    for place in itertools.product(range(2), range(3), range(5)):
        index, first, second = latents[place]
        columns = weight[:, 3 * int(index) : 3 * int(index) + 3]
        expected = first * columns[:, 0] + second * columns[:, 1] + columns[:, 2] + bias
        torch.testing.assert_close(actual[place], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("index", "cluster"),
    [(-7.0, 0), (0.4, 0), (0.6, 1), (2.0, 2), (9.0, 2), (np.inf, 2), (-np.inf, 0), (np.nan, 0)],
)
def test_an_index_out_of_range_means_the_nearest_cluster(index, cluster):
    codes = _connected(num_clusters=3)
    latents = torch.randn(1, 2, 3)
    expected = torch.cat((torch.full((1, 2, 1), float(cluster)), latents[..., 1:]), dim=-1)
    latents[..., 0] = index
    assert torch.equal(codes.decoded(latents), codes.decoded(expected))


@torch.no_grad()
def test_all_clusters_of_many_are_told_apart_in_bfloat16():
    codes = _connected(num_clusters=600)
    weight = torch.zeros(4, 600, 3)
    weight[0, :, 2], weight[1, :, 2] = torch.arange(600) // 64, torch.arange(600) % 64
    codes.values.assign(weight.flatten(1))
    latents = torch.zeros(600, 3)
    latents[:, 0] = torch.arange(600)
    with torch.autocast("cpu", torch.bfloat16):
        actual = codes.decoded(latents[None])[0].float()
    assert torch.equal((actual[:, 0].round() * 64 + actual[:, 1].round()).long(), torch.arange(600))


def test_the_index_has_no_gradient_and_the_coordinates_have():
    codes = _connected(num_clusters=4)
    latents, layout = _latents(codes)
    latents["codes"].requires_grad_()
    codes.compose(latents, layout).patterns(torch.arange(35)).square().sum().backward()
    gradient = latents["codes"].grad
    assert not gradient[..., 0].any()
    assert (gradient[..., 1:] != 0).all()


def test_chunks_of_patches_give_what_all_give(monkeypatch):
    codes = _connected(num_clusters=4)
    latents = torch.randn(2, 5, 7, 3)
    expected = codes.decoded(latents)
    monkeypatch.setattr("composers.latents.mixture._CHUNK", 8)
    torch.testing.assert_close(codes.decoded(latents), expected)


@torch.no_grad()
@pytest.mark.parametrize("clusters", [1, 3])
def test_an_exported_program_takes_any_number_of_instances(clusters, monkeypatch):
    codes = _connected(num_clusters=clusters)
    monkeypatch.setattr("composers.latents.mixture._CHUNK", 8)  # fewer than the patches of an instance

    class Tokens(torch.nn.Module):
        """The tokens of codes."""

        def __init__(self):
            super().__init__()
            self.codes = codes

        def forward(self, latents):
            return self.codes.tokens(latents)

    instances = torch.export.Dim("B", min=1, max=1 << 20)
    program = torch.export.export(
        Tokens(), (torch.randn(2, 5, 7, 3),), dynamic_shapes=({0: instances},), strict=False
    ).module()
    latents = 2 * torch.randn(9, 5, 7, 3)
    torch.testing.assert_close(program(latents), codes.tokens(latents), atol=1e-5, rtol=1e-4)


def _naive_neighbourhoods(numbers, reach=1):
    """Return every vector of a grid ``(B, H, W, J)`` with its neighbours, zero beyond the grid, and a final one."""
    count, height, width, _ = numbers.shape
    padded = np.pad(numbers, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    rows = []
    for i, row, column in itertools.product(range(count), range(height), range(width)):
        rows.append(padded[i, row : row + 2 * reach + 1, column : column + 2 * reach + 1].flatten())
    return np.concatenate([np.array(rows), np.ones((len(rows), 1))], axis=1)


def _naive_patches(images):
    """Return the patches ``(T, 4)`` of two by two pixels."""
    _, _, height, width = images.shape
    places = itertools.product(range(len(images)), range(height // 2), range(width // 2))
    return np.array([images[i, 0, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].flatten() for i, row, col in places])


def _naive_start(images, mixture):
    """Return values of patches: their projection, and a regression of the residual from those of the neighbourhood."""
    flat = _naive_patches(images)
    means, directions = mixture.means.numpy(), mixture.directions.numpy()
    projections = [(flat - mean) @ columns @ columns.T + mean for mean, columns in zip(means, directions, strict=True)]
    errors = np.stack([np.square(flat - projected).sum(1) for projected in projections])
    projected = np.stack(projections)[errors.argmin(0), np.arange(len(flat))]
    grid = (len(images), images.shape[2] // 2, images.shape[3] // 2)
    inputs = _naive_neighbourhoods((projected - flat.mean(0)).reshape(*grid, 4))
    return projected, projected + inputs @ np.linalg.lstsq(inputs, flat - projected, rcond=1e-5)[0]


def _smooth_images(count=12):
    """Return images in which neighbouring patches are correlated."""
    noise = torch.rand(count, 1, 14, 18, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.avg_pool2d(noise, 3, 1)  # 12 x 16 pixels


@torch.no_grad()
@pytest.mark.parametrize(("code_dim", "clusters"), [(2, 1), (3, 1), (3, 3), (4, 2)])
def test_initial_values_are_projections_with_a_regression_from_the_neighbourhood(code_dim, clusters):
    images = _smooth_images()
    codes = _connected(trained=False, code_dim=code_dim, num_clusters=clusters)
    mixture = codes.initialize(iter(images.split(5)))
    flat = torch.tensor(_naive_patches(images.numpy()))
    for actual, expected in zip(mixture, fit_mixture(flat, code_dim, clusters), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    projected, corrected = _naive_start(images.numpy(), mixture)
    latents = mixture.encode(flat.float().view(12, 6, 8, 4))
    np.testing.assert_allclose(codes.decoded(latents).flatten(0, 2) + 0.5, projected, atol=1e-4)
    np.testing.assert_allclose(codes.tokens(latents).flatten(0, 2) + 0.5, corrected, atol=1e-3)
    errors = [np.square(values - flat.numpy()).mean() for values in (projected, corrected)]
    assert errors[1] < errors[0]


@torch.no_grad()
def test_models_in_float64_are_initialised_from_signals_in_float32_and_float64():
    images = _smooth_images()
    states = []
    for dtype in (torch.float32, torch.float64):
        codes = _connected(trained=False, num_clusters=2).double()
        mixture = codes.initialize([images.to(dtype)])
        latents = mixture.encode(torch.rand(3, 4))
        assert codes.decoded(latents.double()).dtype == torch.float64
        states.append(codes.state_dict())
    torch.testing.assert_close(states[0], states[1], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_incomplete_patches_are_left_out_of_the_start():
    images = _smooth_images()
    odd, even = _connected(trained=False), _connected(trained=False)
    expected = even.initialize([images])
    actual = odd.initialize([torch.nn.functional.pad(images, (0, 1, 0, 1), value=9.0)])
    torch.testing.assert_close(actual, expected)


def test_without_signals_nothing_is_changed():
    codes = _connected()
    before = {name: value.clone() for name, value in codes.state_dict().items()}
    assert codes.initialize([]) is None
    assert codes.initialize([torch.empty(0, 1, 4, 4)]) is None
    assert all(torch.equal(value, before[name]) for name, value in codes.state_dict().items())
    assert codes.initialize([torch.rand(3, 1, 1, 1)]) is not None  # smaller than a patch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"code_dim": 0}, "code_dim is 0"),
        (
            {"code_dim": 1, "num_clusters": 2},
            "code_dim is 1 and num_clusters 2; they must be .* at least 2 with several",
        ),
        ({"num_clusters": 0}, "num_clusters 0"),
        ({"context": 2}, "context is 2; it must be odd"),
        ({"context": -1}, "context is -1"),
    ],
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchCodes(**arguments)


def test_networks_that_do_not_fit_are_rejected():
    with pytest.raises(ValueError, match="CoordinateMLP has none: use network PatchwiseMLP"):
        PatchCodes().connect(CoordinateMLP(2, 3))
    with pytest.raises(ValueError, match="embed_dim is 191; a patch has 192 values: set at least 192, or null"):
        PatchCodes(embed_dim=191).connect(PatchwiseMLP(2, 3))


@pytest.mark.parametrize("kind", [Direct, LowRank, Shifts])
def test_patches_are_rejected_by_parametrizations_of_whole_signals(kind):
    with pytest.raises(ValueError, match="PatchwiseMLP"):
        kind().connect(PatchwiseMLP(2, 3))


def test_codes_of_different_clusters_are_not_mixed():
    codes = _connected(num_clusters=4)
    first = torch.tensor([[[[0.0, 1.0, 2.0], [1.0, 1.0, 2.0]]]])
    last = torch.tensor([[[[3.0, 5.0, 6.0], [1.0, 5.0, 6.0]]]])
    expected = {0.25: [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]], 0.75: [[3.0, 5.0, 6.0], [1.0, 4.0, 5.0]]}
    for share, numbers in expected.items():
        assert codes.interpolate({"codes": first}, {"codes": last}, share)["codes"][0, 0].tolist() == numbers
    single = _connected(num_clusters=1)
    assert single.interpolate({"codes": first}, {"codes": last}, 0.5)["codes"].equal((first + last) / 2)
