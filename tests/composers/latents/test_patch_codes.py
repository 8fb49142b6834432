"""Codes of patches: where a code has influence, what they start from, and which layouts they take."""

import itertools

import numpy as np
import pytest
import torch

from composers.latents import Direct, Layout, LowRank, PatchCodes, Shifts
from composers.latents.mixture import fit_mixture
from composers.networks import CoordinateMLP, PatchwiseMLP

EXTENTS = {1: (22,), 2: (10, 14), 3: (6, 4, 8)}
CODES = {"code_dim": 3, "num_clusters": 4, "num_blocks": 1, "kernel_size": 3, "mlp_ratio": 1}


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
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_patterns_of_some_patches_are_those_of_all(axes):
    codes = _connected(axes)
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


def _naive_start(images, codes):
    """Return the patches, their reconstruction by PCA, and by the regression from all neighbours (naive loops)."""
    _, _, height, width = images.shape
    grid = (height // 2, width // 2)
    patches = np.zeros((len(images), *grid, 4))
    for i, row, column in itertools.product(range(len(images)), range(grid[0]), range(grid[1])):
        patches[i, row, column] = images[i, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
    flat = patches.reshape(-1, 4)
    mean = flat.mean(0)
    _, lengths, directions = np.linalg.svd(flat - mean, full_matrices=False)
    projected = (flat - mean) @ directions[:codes].T / lengths[:codes] * np.sqrt(len(flat))
    padded = np.zeros((len(images), grid[0] + 2, grid[1] + 2, codes))
    padded[:, 1:-1, 1:-1] = projected.reshape(len(images), *grid, codes)
    inputs = []
    for i, row, column in itertools.product(range(len(images)), range(grid[0]), range(grid[1])):
        inputs.append(padded[i, row : row + 3, column : column + 3].flatten())
    inputs = np.concatenate([np.array(inputs), np.ones((len(flat), 1))], axis=1)
    return flat, inputs @ np.linalg.lstsq(inputs, flat, rcond=None)[0]


def _smooth_images(count=12):
    """Return images in which neighbouring patches are correlated."""
    noise = torch.rand(count, 1, 14, 18, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.avg_pool2d(noise, 3, 1)  # 12 x 16 pixels


@torch.no_grad()
def test_the_linear_start_is_pca_with_a_regression_from_the_neighbourhood():
    images = _smooth_images()
    codes = _connected(trained=False, code_dim=2, num_clusters=1)
    start = codes.initialize(iter(images.split(5)))
    flat, expected = _naive_start(images.numpy(), 2)
    torch.testing.assert_close(start, fit_mixture(torch.tensor(flat), 2, 1), atol=1e-4, rtol=1e-4)
    patches = torch.tensor(flat, dtype=torch.float32).view(12, 6, 8, 4)
    tokens = codes.tokens(start.encode(patches))
    np.testing.assert_allclose(tokens.flatten(0, 2) + 0.5, expected, atol=2e-4)


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
        ({"code_dim": 1, "num_clusters": 2}, "code_dim at least 2 with several clusters"),
        ({"context": 2}, "context is 2; it must be odd and at least 1"),
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
