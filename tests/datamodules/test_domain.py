"""Coordinates of regular samples against loops."""

import math
from itertools import product

import pytest
import torch
from coordinates import cell_size, grid
from hypothesis import given
from hypothesis import strategies as st

from datamodules.domain import jitter, subset

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=3)
RANGES = st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-3.0, 3.0)])


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(SHAPES, RANGES)
def test_grid_equals_a_loop_with_the_last_axis_fastest(shape, ends):
    low, high = ends
    wanted = [
        [low + (high - low) * (index + 0.5) / n for index, n in zip(place, shape, strict=True)]
        for place in product(*(range(n) for n in shape))
    ]
    found = grid(shape, low, high)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-7, rtol=0)


def test_cell_centres_written_out():
    rows, columns = (-0.5, 0.5), (-0.75, -0.25, 0.25, 0.75)
    assert grid((2, 4)).tolist() == [[row, column] for row in rows for column in columns]
    assert grid((4,), 0.0, 1.0).tolist() == [[0.125], [0.375], [0.625], [0.875]]


def test_pixel_i_of_a_picture_has_coordinate_i():
    picture = torch.arange(6 * 4).reshape(6, 4)
    coords = grid(picture.shape)
    nearest = ((coords + 1) / 2 * torch.tensor(picture.shape)).long()
    assert torch.equal(picture[nearest[:, 0], nearest[:, 1]], picture.flatten())


@pytest.mark.parametrize("count", [178, 16000, 48000])
def test_every_centre_is_the_nearest_float(count):
    wanted = [-1 + 2 * (index + 0.5) / count for index in range(count)]
    assert torch.equal(grid((count,)).flatten(), torch.tensor(wanted, dtype=torch.float64).float())


@given(SHAPES)
def test_grid_is_symmetric_and_cells_fill_the_range(shape):
    coords = grid(shape)
    torch.testing.assert_close(coords.flip(0), -coords, atol=1e-6, rtol=0)
    cell = torch.tensor(cell_size(shape))
    torch.testing.assert_close(coords[0] - cell / 2, torch.full((len(shape),), -1.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(coords[-1] + cell / 2, torch.full((len(shape),), 1.0), atol=1e-6, rtol=0)


def test_cells_of_a_picture_that_is_not_square():
    assert cell_size((4, 10), 0.0, 1.0) == (0.25, 0.1)


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (5, 5, 60)])
def test_jitter_fills_the_cell_of_each_axis(shape):
    cell = cell_size(shape)
    coords = grid(shape).expand(50, -1, -1)
    moved = (jitter(coords, cell, _generator()) - coords) / torch.tensor(cell)  # in cells
    assert moved.abs().max() <= 0.5 + 1e-5
    for axis in range(len(shape)):
        numbers = moved[..., axis]
        assert numbers.max() > 0.49
        assert numbers.min() < -0.49
        assert numbers.mean().item() == pytest.approx(0, abs=0.02)
        assert numbers.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.01)


def test_jitter_depends_on_its_generator_alone():
    coords, cell = grid((3, 4)), cell_size((3, 4))
    first = jitter(coords, cell, _generator(1))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(jitter(coords, cell, _generator(1)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(jitter(coords, cell, _generator(2)), first)
    assert torch.equal(coords, grid((3, 4)))


@given(st.integers(1, 200), st.floats(0, 1, exclude_min=True))
def test_a_ratio_takes_its_share(total, ratio):
    chosen = subset(total, ratio, _generator())
    assert len(chosen) == max(1, round(total * ratio))
    assert sorted(set(chosen.tolist())) == chosen.tolist()
    assert chosen.min() >= 0
    assert chosen.max() < total


@given(st.integers(1, 200), st.integers(1, 300))
def test_a_count_takes_so_many(total, count):
    chosen = subset(total, count, _generator())
    assert len(chosen) == min(total, count)
    assert sorted(set(chosen.tolist())) == chosen.tolist()


def test_one_is_a_count_and_one_point_zero_a_ratio():
    assert len(subset(10, 1, _generator())) == 1
    assert subset(10, 1.0, _generator()).tolist() == list(range(10))


def test_every_place_is_drawn_equally_often():
    hits = torch.zeros(8)
    for seed in range(800):
        hits[subset(8, 0.25, _generator(seed))] += 1
    assert (hits - 200).abs().max() < 50  # four standard deviations


def test_subsets_depend_on_their_generator_alone():
    first = subset(50, 0.5, _generator(1))
    torch.manual_seed(7)
    assert torch.equal(subset(50, 0.5, _generator(1)), first)
    assert not torch.equal(subset(50, 0.5, _generator(2)), first)
