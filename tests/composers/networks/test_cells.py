"""The cells of a feature map around positions: against the released formula in loops, and where that one fails."""

import naive_liif
import numpy as np
import pytest
import torch

from composers.networks.cells import cells_around
from datamodules.domain import Grid

SIZES = [(1, 1), (1, 4), (5, 7), (32, 48), (511, 3)]


def _positions(sizes):
    """Return positions on the grids of several scales, at corners and borders, and anywhere."""
    places = [Grid.unit(2).coords([round(size * scale) for size in sizes])[:60] for scale in (1, 2, 3, 4.3)]
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.3, -1.0], [1.0, -0.7]])
    return torch.cat((*places, corners, torch.rand(60, 2) * 2 - 1))


def _inner(positions, sizes):
    """Return the positions that are not at the centres of the last row or column."""
    last = 1 - 1 / torch.tensor(sizes)
    return positions[(positions - last).abs().min(1).values > 1e-4]


def _naive_cells(position, sizes, ensemble):
    """Return index, offset and weight of the cells of one position by the released formula."""

    def predict(row, column, offset):
        cells.append((row * sizes[1] + column, offset))
        return np.eye(4)[len(cells) - 1]

    cells = []
    weights = naive_liif.blended(sizes, position, predict, ensemble)
    return [index for index, _ in cells], [offset for _, offset in cells], weights[: len(cells)].tolist()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_cells_are_those_of_the_released_formula(sizes):
    positions = _inner(_positions(sizes), sizes)
    cells = cells_around(positions, sizes)
    assert cells.indices.shape == cells.weight.shape == (4, len(positions))
    assert len(positions) > 30
    for number, position in enumerate(positions.double().tolist()):
        index, offset, weight = (part[..., number] if part.dim() == 2 else part[:, number] for part in cells)
        expected = _naive_cells(position, sizes, ensemble=True)
        assert index.tolist() == expected[0]
        torch.testing.assert_close(offset, torch.tensor(expected[1]), atol=1e-6 * max(sizes), rtol=0)
        torch.testing.assert_close(weight, torch.tensor(expected[2]), atol=1e-6 * max(sizes), rtol=0)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_nearest_cell_is_that_of_the_released_formula(sizes):
    positions = _positions(sizes)
    fractions = (positions.double() + 1) / 2 * torch.tensor(sizes)
    positions = positions[((fractions - fractions.round()).abs() > 1e-4 * max(sizes)).all(1)]  # not between two cells
    cells = cells_around(positions, sizes, ensemble=False)
    assert cells.weight.eq(1).all()
    for number, position in enumerate(positions.double().tolist()):
        [index], [offset], _ = _naive_cells(position, sizes, ensemble=False)
        assert cells.indices[0, number] == index
        torch.testing.assert_close(cells.offset[0, number], torch.tensor(offset), atol=1e-6 * max(sizes), rtol=0)


@pytest.mark.parametrize("ensemble", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_cell_of_every_centre_is_its_own(sizes, ensemble):
    cells = cells_around(Grid.unit(2).coords(sizes), sizes, ensemble)
    share = (cells.weight * (cells.indices == torch.arange(cells.indices.shape[1]))).sum(0)
    torch.testing.assert_close(share, torch.ones_like(share), atol=1e-4, rtol=0)


@pytest.mark.parametrize("position", [-1.0, 1.0])
def test_positions_at_the_border_read_the_outermost_cells(position):
    cells = cells_around(torch.full((1, 2), position), (3, 4))
    assert cells.indices.flatten().tolist() == [0 if position < 0 else 11] * 4
    assert cells.offset.flatten().tolist() == [position] * 8
    torch.testing.assert_close(cells.weight.flatten(), torch.full((4,), 0.25))


def test_the_centres_of_the_last_row_are_blended_along_columns_only():
    """The released formula gives all four cells the weight 1/4 there."""
    position = torch.tensor([[1 - 1 / 4, -0.5]])  # in the last of 4 rows, a quarter between the first two of 4 columns
    weight = cells_around(position, (4, 4)).weight.flatten()
    near, far = weight[0::2].sum(), weight[1::2].sum()
    assert (near.item(), far.item()) == pytest.approx((0.5, 0.5))
    weight = cells_around(position + torch.tensor([0.0, -0.125]), (4, 4)).weight.flatten()
    assert (weight[0::2].sum().item(), weight[1::2].sum().item()) == pytest.approx((0.75, 0.25))
    _, _, released = _naive_cells((1 - 1 / 4, -0.625), (4, 4), ensemble=True)
    assert released == [0.25] * 4


def test_a_position_between_two_cells_belongs_to_the_one_after():
    cells = cells_around(torch.tensor([[-0.5, 0.5]]), (4, 4), ensemble=False)
    assert cells.indices.item() == 1 * 4 + 3
    assert cells.offset.flatten().tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_weights_are_shares_and_those_of_bilinear_interpolation(sizes):
    image, positions = torch.rand(2, *sizes, dtype=torch.float64), _positions(sizes)
    cells = cells_around(positions, sizes)
    torch.testing.assert_close(cells.weight.sum(0), torch.ones(len(positions)))
    assert cells.weight.min() >= 0
    interpolated = (image.flatten(1)[:, cells.indices] * cells.weight).sum(1)
    for number, position in enumerate(positions.double().tolist()):
        expected = torch.from_numpy(naive_liif.bilinear(image.numpy(), position))
        torch.testing.assert_close(interpolated[:, number], expected, atol=1e-6 * max(sizes), rtol=0)


def test_positions_may_belong_to_instances():
    positions = torch.rand(3, 10, 2) * 2 - 1
    cells = cells_around(positions, (5, 7))
    for instance in range(3):
        for part, expected in zip(cells, cells_around(positions[instance], (5, 7)), strict=True):
            assert torch.equal(part[instance], expected)
