"""Routes: blending weights against naive formulas, and groups against a naive loop."""

import math

import pytest
import torch
from naive_routes import naive_weight

from composers.networks.routing import group, route

CASES = [  # grid, extent of the signal in patches
    ((4,), (4.0,)),
    ((3,), (2.3,)),
    ((1,), (0.4,)),
    ((3, 2), (3.0, 1.5)),
    ((2, 3, 2), (2.0, 2.25, 1.75)),
]
OVERLAPS = [0.0, 0.0625, 0.25, 0.5]


def _coords(axes, count=300):
    """Return random coordinates, some beyond the signal."""
    return torch.rand(count, axes, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(("grid", "patches"), CASES, ids=str)
def test_weights_and_local_coordinates_are_those_of_naive_formulas(grid, patches, overlap):
    coords = _coords(len(grid))
    routes = route(coords, grid, patches, overlap)
    actual = torch.zeros(len(coords), math.prod(grid), dtype=torch.float64)
    actual.index_put_((routes.coord, routes.patch), routes.weight.double(), accumulate=True)
    for row, coord in zip(actual, coords.tolist(), strict=True):
        for patch, index in enumerate(torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid)).tolist()):
            positions = [(x + 1) / 2 * extent for x, extent in zip(coord, patches, strict=True)]
            axes = zip(positions, index, grid, strict=True)
            assert row[patch] == pytest.approx(math.prod(naive_weight(*axis, overlap) for axis in axes), abs=1e-9)
    index = torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid))[routes.patch]
    position = (coords + 1) / 2 * torch.tensor(patches, dtype=torch.float64)
    torch.testing.assert_close(routes.local, 2 * (position[routes.coord] - index) - 1)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(("grid", "patches"), CASES, ids=str)
def test_weights_of_a_coordinate_sum_to_one(grid, patches, overlap):
    coords = torch.cat((_coords(len(grid)), torch.tensor([[-1.0], [0.0], [1.0]]).double().expand(-1, len(grid))))
    routes = route(coords, grid, patches, overlap)
    total = torch.zeros(len(coords), dtype=torch.float64).index_add(0, routes.coord, routes.weight.double())
    torch.testing.assert_close(total, torch.ones_like(total))
    assert (routes.weight >= 0).all()


@pytest.mark.parametrize("overlap", [0.0625, 0.25, 0.5])
def test_weights_are_continuous_across_borders(overlap):
    near = torch.tensor([-1e-6, 1e-6], dtype=torch.float64)[:, None]  # both sides of the border of two patches
    routes = route(near, (2,), (2.0,), overlap)
    weights = torch.zeros(2, 2, dtype=torch.float64).index_put((routes.coord, routes.patch), routes.weight)
    torch.testing.assert_close(weights, torch.full((2, 2), 0.5).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_centres_belong_to_their_patch_alone(overlap):
    centres = (torch.arange(5).double() + 0.5) / 5 * 2 - 1
    routes = route(centres[:, None], (5,), (5.0,), overlap)
    kept = routes.weight > 1e-12
    assert routes.patch[kept].tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(routes.local[kept], torch.zeros(5, 1).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_the_ends_of_the_signal_belong_to_the_first_and_last_patch(overlap):
    routes = route(torch.tensor([[-1.0], [1.0], [-3.0], [3.0]]), (4,), (4.0,), overlap)
    assert routes.patch.tolist() == [0, 3, 0, 3]
    assert routes.weight.tolist() == [1.0] * 4
    assert routes.local[:2].flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    "patch",
    [
        torch.arange(6).repeat_interleave(4),
        torch.tensor([3, 0, 3, 3, 1, 0, 3]),
        torch.tensor([0] * 50 + [1, 2, 2, 7]),  # a crowded patch
        torch.tensor([5]),
        torch.empty(0, dtype=torch.long),
    ],
    ids=["equal", "few", "crowded", "single", "none"],
)
def test_groups_hold_every_route_with_its_patch(patch):
    local = torch.rand(len(patch), 2)
    groups = group(patch, local)
    size = groups.local.shape[1]
    assert groups.patch.shape == groups.local.shape[:1]
    assert groups.place.unique().numel() == len(patch)
    for route_index, place in enumerate(groups.place.tolist()):
        assert groups.patch[place // size] == patch[route_index]
        assert torch.equal(groups.local[place // size, place % size], local[route_index])
    unused = torch.ones(groups.local.shape[:2]).flatten().index_fill(0, groups.place, 0.0).bool()
    assert not groups.local.flatten(0, 1)[unused].any()


def test_groups_of_a_grid_have_no_padding():
    groups = group(torch.arange(12).repeat(5), torch.rand(60, 1))
    assert groups.local.shape == (12, 5, 1)
    assert groups.patch.tolist() == list(range(12))


def test_padding_of_crowded_patches_is_bounded():
    patch = torch.tensor([0] * 1000 + list(range(1, 101)))
    groups = group(patch, torch.rand(1100, 1))
    assert groups.local.shape[:2].numel() <= 3 * len(patch)
