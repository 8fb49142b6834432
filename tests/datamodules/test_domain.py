"""Domains: coordinates compared with naive loops, serialisation, and random noise and subsets."""

import json
import math
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from coordinates import box, cell_size, grid
from hypothesis import given
from hypothesis import strategies as st

from datamodules.cameras import centred_intrinsics, orbit
from datamodules.domain import CellGrid, Domain, Grid, Rays, Volume, jitter, subset

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=3)
RANGES = st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-3.0, 3.0)])


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(SHAPES, RANGES)
def test_grid_equals_a_loop_with_the_last_axis_fastest(shape, bounds):
    low, high = bounds
    expected = [
        [low + (high - low) * (index + 0.5) / n for index, n in zip(place, shape, strict=True)]
        for place in product(*(range(n) for n in shape))
    ]
    actual = grid(shape, low, high)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-7, rtol=0)


def test_cell_centres_of_small_grids():
    rows, columns = (-0.5, 0.5), (-0.75, -0.25, 0.25, 0.75)
    assert grid((2, 4)).tolist() == [[row, column] for row in rows for column in columns]
    assert grid((4,), 0.0, 1.0).tolist() == [[0.125], [0.375], [0.625], [0.875]]


def test_coordinates_are_in_the_order_of_pixels():
    image = torch.arange(6 * 4).reshape(6, 4)
    coords = grid(image.shape)
    nearest = ((coords + 1) / 2 * torch.tensor(image.shape)).long()
    assert torch.equal(image[nearest[:, 0], nearest[:, 1]], image.flatten())


@pytest.mark.parametrize("count", [178, 16000, 48000])
def test_centres_are_rounded_correctly(count):
    expected = [-1 + 2 * (index + 0.5) / count for index in range(count)]
    assert torch.equal(grid((count,)).flatten(), torch.tensor(expected, dtype=torch.float64).float())


@given(SHAPES)
def test_grid_is_symmetric_and_cells_fill_the_range(shape):
    coords = grid(shape)
    torch.testing.assert_close(coords.flip(0), -coords, atol=1e-6, rtol=0)
    cell = torch.tensor(cell_size(shape))
    torch.testing.assert_close(coords[0] - cell / 2, torch.full((len(shape),), -1.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(coords[-1] + cell / 2, torch.full((len(shape),), 1.0), atol=1e-6, rtol=0)


def test_cell_size_of_a_rectangular_image():
    assert cell_size((4, 10), 0.0, 1.0) == (0.25, 0.1)


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (5, 5, 60)])
def test_jitter_fills_the_cell_of_each_axis(shape):
    cell = cell_size(shape)
    coords = grid(shape).expand(50, -1, -1)
    noise = (jitter(coords, cell, _generator()) - coords) / torch.tensor(cell)  # in cells
    assert noise.abs().max() <= 0.5 + 1e-5
    for axis in range(len(shape)):
        values = noise[..., axis]
        assert values.max() > 0.49
        assert values.min() < -0.49
        assert values.mean().item() == pytest.approx(0, abs=0.02)
        assert values.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.01)


def test_jitter_depends_on_its_generator_only():
    coords, cell = grid((3, 4)), cell_size((3, 4))
    first = jitter(coords, cell, _generator(1))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(jitter(coords, cell, _generator(1)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(jitter(coords, cell, _generator(2)), first)
    assert torch.equal(coords, grid((3, 4)))


@given(st.integers(1, 200), st.floats(0, 1, exclude_min=True))
def test_subset_of_a_ratio(total, ratio):
    indices = subset(total, ratio, _generator())
    assert len(indices) == max(1, round(total * ratio))
    assert sorted(set(indices.tolist())) == indices.tolist()
    assert indices.min() >= 0
    assert indices.max() < total


@given(st.integers(1, 200), st.integers(1, 300))
def test_subset_of_a_count(total, count):
    indices = subset(total, count, _generator())
    assert len(indices) == min(total, count)
    assert sorted(set(indices.tolist())) == indices.tolist()


def test_integer_one_is_a_count_and_float_one_a_ratio():
    assert len(subset(10, 1, _generator())) == 1
    assert subset(10, 1.0, _generator()).tolist() == list(range(10))


def test_subsets_are_uniform():
    hits = torch.zeros(8)
    for seed in range(800):
        hits[subset(8, 0.25, _generator(seed))] += 1
    assert (hits - 200).abs().max() < 50  # four standard deviations


def test_subsets_depend_on_their_generator_only():
    first = subset(50, 0.5, _generator(1))
    torch.manual_seed(7)
    assert torch.equal(subset(50, 0.5, _generator(1)), first)
    assert not torch.equal(subset(50, 0.5, _generator(2)), first)


@st.composite
def _boxes(draw):
    """Draw a shape, a range for each axis, and a box within the shape."""
    shape = draw(SHAPES)
    ranges = tuple(draw(RANGES) for _ in shape)
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    return shape, ranges, [(start, draw(st.integers(start, n))) for start, n in zip(starts, shape, strict=True)]


@given(_boxes())
def test_coordinates_of_a_box_are_those_of_the_signal(example):
    shape, ranges, part = example
    for domain in (Grid(ranges), CellGrid(ranges)):
        coords = domain.coords(shape).view(*shape, domain.coord_dim)
        expected = coords[tuple(slice(start, stop) for start, stop in part)]
        assert torch.equal(domain.coords(shape, part), expected.reshape(-1, domain.coord_dim))


def test_axes_have_different_ranges():
    actual = Grid(((0.0, 1.0), (-3.0, 3.0))).coords((2, 3))
    assert actual.tolist() == [[row, column] for row in (0.25, 0.75) for column in (-2.0, 0.0, 2.0)]
    assert Grid(((0.0, 1.0), (-3.0, 3.0))).cell((2, 3)) == (0.5, 2.0)


def test_cell_sizes_follow_the_position_and_get_no_noise():
    domain = CellGrid(((0.0, 1.0), (-3.0, 3.0)))
    coords = domain.coords((2, 3))
    assert domain.coord_dim == coords.shape[-1] == 4
    assert torch.equal(coords[:, :2], Grid(domain.ranges).coords((2, 3)))
    assert coords[:, 2:].tolist() == [[0.5, 2.0]] * 6
    noisy = jitter(coords, domain.cell((2, 3)), _generator())
    assert torch.equal(noisy[:, 2:], coords[:, 2:])
    assert not (noisy[:, :2] == coords[:, :2]).any()


@given(st.integers(1, 9), st.integers(1, 9), RANGES)
def test_positions_of_another_size_are_its_coordinates(size, new, bounds):
    places = (torch.arange(new, dtype=torch.float64) + 0.5) * size / new
    torch.testing.assert_close(box((1,), *bounds).at([places], (size,)), grid((new,), *bounds), atol=1e-6, rtol=0)
    cells = CellGrid((bounds,)).at([places], (size,), [size / new])
    torch.testing.assert_close(cells, CellGrid((bounds,)).coords((new,)), atol=1e-6, rtol=0)


def test_coordinates_are_the_product_of_positions():
    places = [torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0, 4.0])]
    actual = Grid.unit(2).at(places, (2, 4))
    assert actual.tolist() == [[row, column] for row in (-1.0, 1.0) for column in (-0.5, 0.5, 1.0)]


def test_rays_equal_a_loop_over_pixels_and_views():
    poses, shape = orbit(2, 3.0, 20.0), (2, 3, 4)
    intrinsics = torch.tensor([[5.0, 6.0, 2.0, 1.5], [7.0, 8.0, 0.25, 4.5]])
    expected = []
    for pose, (focal_x, focal_y, centre_x, centre_y) in zip(poses.double(), intrinsics.tolist(), strict=True):
        for row, column in product(range(3), range(4)):
            direction = [(column + 0.5 - centre_x) / focal_x, (centre_y - row - 0.5) / focal_y, -1.0]
            direction = pose[:, :3] @ torch.tensor(direction, dtype=torch.float64)
            expected.append([*pose[:, 3].tolist(), *direction.tolist()])
    rays = Rays(2.0, 6.0).coords(shape, cameras=(poses, intrinsics))
    assert rays.dtype == torch.float32
    torch.testing.assert_close(rays.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    each = [Rays().coords((3, 4), cameras=camera) for camera in zip(poses, intrinsics, strict=True)]
    torch.testing.assert_close(torch.cat(each), rays)
    part = Rays().coords(shape, [(1, 2), (0, 2), (3, 4)], cameras=(poses, intrinsics))
    torch.testing.assert_close(part, rays.view(2, 3, 4, 6)[1:, :2, 3:].reshape(-1, 6))
    many = Rays().coords(shape, cameras=(poses.expand(5, -1, -1, -1), intrinsics.expand(5, -1, -1)))
    torch.testing.assert_close(many, rays.expand(5, -1, -1))


def test_volume_is_a_cube():
    assert torch.equal(Volume(1.5).coords((2, 3, 4)), Grid(((-1.5, 1.5),) * 3).coords((2, 3, 4)))
    assert Volume(1.5).cell((2, 3, 4)) == (1.5, 1.0, 0.75)
    assert Volume(1.5).coord_dim == 3


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: Grid.unit(2).coords((3,)), r"shape is \(3,\), but the domain has 2 axes"),
        (lambda: Grid.unit(1).coords((3,), [(0, 1), (0, 1)]), "box is .* has 1 axes"),
        (
            lambda: Grid(((1.0, -1.0),)),
            r"ranges is \(\(1.0, -1.0\),\): bounds must be finite and in ascending order",
        ),
        (lambda: Grid(((0.0, math.inf),)), "bounds must be finite"),
        (lambda: Grid(()), "ranges is"),
        (lambda: Grid((1.0, 2.0)), "pass a lower and an upper bound for every axis"),
        (lambda: Volume(0.0), "bound is 0.0"),
        (lambda: Rays().coords((2, 2)), "cameras are missing"),
        (
            lambda: Rays().coords((4,), cameras=(torch.eye(4)[:3], torch.ones(4))),
            r"shape is \(4,\), cameras are present",
        ),
        (lambda: Rays().coords((3, 2, 2), cameras=(orbit(2), torch.ones(2, 4))), "there are cameras for 2 views"),
        (lambda: Rays().coords((2, 2), cameras=(orbit(1)[0], torch.ones(2))), "2 numbers per view: pass fx, fy"),
        (lambda: Rays().at([torch.zeros(1)], (1,)), "Rays has no coordinates between samples"),
    ],
)
def test_invalid_arguments_are_rejected(create, message):
    with pytest.raises(ValueError, match=message):
        create()


DOMAINS = (Grid(((0.0, 1.0), (-3.0, 3.0))), CellGrid.unit(2), Rays(2.0, 6.0), Rays(), Volume(1.5))


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_domains_round_trip_through_json(domain):
    loaded = Domain.from_config(json.loads(json.dumps(domain.config())))
    assert loaded == domain
    assert type(loaded) is type(domain)


@dataclass(frozen=True)
class Circle(Domain):
    """A third-party domain of angles."""

    turns: int = 1
    unit: str | None = None
    coord_dim = 1

    def coords(self, shape, box=None, cameras=None, *, device=None):
        return torch.arange(shape[0], device=device).unsqueeze(-1) * (2 * math.pi * self.turns / shape[0])

    def describe(self):
        return "angles"


def test_third_party_domain_round_trips_and_compares():
    assert Domain.from_config(Circle(3, "degrees").config()) == Circle(3, "degrees")
    assert Circle().cell((4,)) == (0.0,)
    assert Circle(2).agrees(Circle(2))
    assert not Circle(2).agrees(Circle(3))
    assert Circle(2, "degrees").agrees(Circle(2, "degrees"))
    assert not Circle(2, "degrees").agrees(Circle(2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "must have class_path and init_args, received: None"),
        (
            {"class_path": "os.system", "init_args": {}},
            r"'os.system' is unknown: use one of .*datamodules\.domain\.Grid",
        ),
        ({"init_args": {}}, "None is unknown"),
        ({"class_path": "datamodules.domain.Volume", "init_args": {"side": 1}}, "cannot be created"),
        ({"class_path": "datamodules.domain.Grid", "init_args": {"ranges": 3}}, "ranges is 3"),
        ({"class_path": "datamodules.domain.Grid", "init_args": [1]}, "must have class_path and init_args"),
    ],
)
def test_invalid_configs_are_rejected(config, message):
    with pytest.raises(ValueError, match=message):
        Domain.from_config(config)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Grid.unit(2), Grid(((-1.0, 1.0 + 1e-12), (-1.0, 1.0))), True),
        (Grid.unit(2), Grid.unit(1), False),
        (Grid.unit(2), CellGrid.unit(2), False),
        (Grid.unit(1), Grid(((-1.0, 1.1),)), False),
        (Rays(2.0, 6.0), Rays(), True),
        (Rays(2.0, 6.0), Rays(1.0, 3.0), True),
        (Rays(), Volume(), False),
    ],
    ids=repr,
)
def test_domains_that_agree(first, second, expected):
    assert first.agrees(second) == second.agrees(first) == expected


def test_domains_are_described():
    assert Grid.unit(2).describe() == "coordinates from -1 to 1"
    assert Grid(((0, 1), (-3, 3))).describe() == "coordinates from 0 to 1, from -3 to 3"
    assert Rays(2.0, 6.0).describe() == "rays at depths from 2 to 6"
    assert Volume(2.0).describe() == "points in a cube from -2 to 2"


@pytest.mark.parametrize("shape", [(128, 128), (33, 50)])
def test_rays_of_centred_cameras_equal_those_of_half_the_size(shape):
    poses, focals = orbit(3, 3.9, 20.0), torch.rand(3, 2) * 100 + 1
    row, column = torch.meshgrid(*(torch.arange(side) + 0.5 for side in shape), indexing="ij")
    right = (column.flatten() - shape[1] / 2) / focals[:, :1]
    up = (shape[0] / 2 - row.flatten()) / focals[:, 1:]
    expected = torch.stack((right, up, -torch.ones_like(up)), dim=-1) @ poses[..., :3].mT
    actual = Rays().coords((3, *shape), cameras=(poses, centred_intrinsics(focals, shape)))
    assert torch.equal(actual[:, 3:], expected.flatten(0, 1))
