"""Digits: distances against a loop over pixels, fixed splits, and the draw of observed pixels."""

import importlib
import math

import pytest
import torch
from torch.utils.data import default_collate

from datamodules import Digits
from datamodules.domain import Grid
from datamodules.loading import Addressed
from datamodules.shapes import digits as module
from datamodules.shapes.digits import digits, signed_distances


def _naive_distances(inside):
    """Return the signed distances of a region by a loop over pairs of pixels."""
    height, width = inside.shape
    pixels = [(row, column) for row in range(height) for column in range(width)]
    distances = []
    for row, column in pixels:
        side = bool(inside[row, column])
        nearest = min(
            math.hypot(row - other, column - another)
            for other, another in pixels
            if bool(inside[other, another]) != side
        )
        distances.append((0.5 - nearest if side else nearest - 0.5) / width)
    return torch.tensor(distances).view(height, width)


@pytest.mark.parametrize("shape", [(7, 7), (5, 9)])
def test_distances_equal_a_loop(shape):
    inside = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    torch.testing.assert_close(signed_distances(inside), _naive_distances(inside), atol=1e-6, rtol=0)


def test_distances_of_a_half_plane_are_exact():
    columns = Grid(((-0.5, 0.5), (-0.5, 0.5))).coords((16, 16))[:, 1].view(16, 16)
    torch.testing.assert_close(signed_distances(columns < 0.125), columns - 0.125, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fill", [torch.zeros, torch.ones])
def test_a_shape_without_an_outline_is_refused(fill):
    with pytest.raises(ValueError, match="a shape needs an inside and an outside"):
        signed_distances(fill(4, 4, dtype=torch.bool))


@pytest.fixture(scope="module")
def data():
    """Return digits of 16 x 16 pixels, of which 51 are observed."""
    data = Digits(0.2, size=16, batch_size=4)
    data.setup("fit")
    return data


def _batch(data, addresses=((0, 0), (0, 1), (0, 5)), training=True, seed=0, **options):
    """Return a coordinate batch of training items, or of test items."""
    items = Addressed(data.train_set if training else data.test_set, None, seed, training=training)
    return data.to_coordinates(default_collate([items[address] for address in addresses]), training=training, **options)


def test_all_digits_have_an_inside_and_small_distances():
    values = torch.stack([signal.values for signal in digits(16)])
    assert values.shape == (1797, 1, 16, 16)
    assert (values < 0).flatten(1).any(1).all()
    assert values.abs().min() >= 0.5 / 16 - 1e-6  # the outline is between pixels
    assert -0.5 < values.min() < values.max() < 1


def test_distances_change_by_at_most_their_steps():
    values = torch.stack([signal.values for signal in digits(16)[:50]])
    for axis in (2, 3):
        assert values.diff(dim=axis).abs().max() <= 1 / 16 + 1e-6


def test_splits_are_disjoint_and_fixed(data, monkeypatch):
    names = [[item.name for item in part] for part in (data.train_set, data.val_set, data.test_set)]
    assert [len(part) for part in names] == [1437, 180, 180]
    assert len(set().union(*names)) == 1797
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    other = Digits(size=16)
    other.setup("test")
    assert [item.name for item in other.test_set] == names[2]
    labels = {name[5] for name in names[2]}
    assert labels == set("0123456789")


def test_specification(data):
    assert data.spec.signal_shape == (51, 3)
    assert (data.spec.value_dim, data.spec.domain.coord_dim, data.spec.num_instances) == (1, 2, 1437)
    assert Digits().context_points == 205  # 5 % of 64 x 64
    assert Digits(300).context_points == 300
    assert Digits().num_instances == 1437  # before set-up


def _pixels(coords):
    """Return the indices of pixels at coordinates ``(..., 2)`` of a map of 16 x 16."""
    row, column = ((coords + 0.5) * 16 - 0.5).round().long().unbind(-1)
    return row * 16 + column


def test_observed_and_compared_pixels_are_disjoint_and_complete(data):
    batch = _batch(data)
    observed, compared = _pixels(batch.observation.samples.coords), _pixels(batch.query.coords)
    for index in range(3):
        assert sorted(torch.cat((observed[index], compared[index])).tolist()) == list(range(256))
        maps = data.train_set[(0, 1, 5)[index]].values.flatten()
        assert torch.equal(batch.observation.samples.values[index, :, 0], maps[observed[index]])
        assert torch.equal(batch.query.values[index, :, 0], maps[compared[index]])
    assert batch.shape is None
    assert batch.query.mask is None
    assert batch.observation.index.tolist() == [0, 1, 5]
    expected = torch.cat((batch.observation.samples.coords, batch.observation.samples.values), dim=-1)
    assert torch.equal(batch.observation.signal, expected)


def test_published_overlap_compares_all_pixels():
    data = Digits(0.2, query_includes_context=True, size=16)
    data.setup("fit")
    assert [sorted(pixels.tolist()) for pixels in _pixels(_batch(data).query.coords)] == [list(range(256))] * 3
    assert _batch(data, training=False).query.mask is None


@pytest.mark.parametrize(("subset", "count"), [(0.5, 102), (30, 30), (10_000, 205), (1.0, 205)])
def test_a_subset_of_the_compared_pixels_is_disjoint_too(subset, count):
    data = Digits(0.2, size=16, coordinate_subset=subset)
    data.setup("fit")
    batch = _batch(data)
    assert batch.query.coords.shape == (3, count, 2)
    observed, compared = _pixels(batch.observation.samples.coords), _pixels(batch.query.coords)
    for index in range(3):
        assert not set(observed[index].tolist()) & set(compared[index].tolist())
        assert len(set(compared[index].tolist())) == count


def test_training_draws_by_seed_epoch_and_instance(data):
    first = _batch(data).observation.samples.coords
    assert torch.equal(first, _batch(data, step=9).observation.samples.coords)
    alone = _batch(data, [(0, 1)]).observation.samples.coords
    assert torch.equal(first[1:2], alone)  # other instances of the batch play no part
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, _batch(data, [(1, 0), (1, 1), (1, 5)]).observation.samples.coords)
    assert not torch.equal(first, _batch(data, seed=1).observation.samples.coords)


def test_evaluation_is_the_complete_map_without_the_observed_pixels(data):
    batch = _batch(data, training=False)
    assert batch.shape == (16, 16)
    assert torch.equal(batch.query.coords, data.domain.coords((16, 16)))
    for index, item in enumerate(data.test_set[place] for place in (0, 1, 5)):
        assert torch.equal(batch.query.values[index, :, 0], item.values.flatten())
        observed = _pixels(batch.observation.samples.coords[index])
        assert sorted(observed.tolist()) == (~batch.query.mask[index]).nonzero().flatten().tolist()
    for addresses, seed in (([(3, 0), (3, 1), (3, 5)], 0), ([(0, 0), (0, 1), (0, 5)], 1)):
        again = _batch(data, addresses, training=False, seed=seed)
        assert torch.equal(again.query.mask, batch.query.mask)  # the same in every epoch and run
    assert batch.observation.index is None


def test_random_items_are_maps(data):
    batch = data.to_coordinates(data.random_items(2), training=True)
    assert batch.query.values.shape == (2, 205, 1)
    assert batch.query.values.min() < 0 < batch.query.values.max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 0}, "context is 0, 0 of the 4096 pixels"),
        ({"context": 4096}, "leaves at least one pixel observed and one to compare"),
        ({"context": 1.0}, "context is 1.0, 4096 of the 4096 pixels"),
        ({"context": -0.5}, "context is -0.5"),
        ({"context": 1e-5}, "context is 1e-05, 0 of the 4096 pixels"),
        ({"size": 7}, "size is 7; it must be at least 8"),
        ({"coordinate_noise": "shared"}, "coordinate_noise is shared; distances belong to the centres of pixels"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Digits(**arguments)


def test_a_missing_package_is_named_with_the_fix(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name="sklearn")

    monkeypatch.setattr(importlib, "import_module", missing)
    module.digits.cache_clear()
    with pytest.raises(ValueError, match="sklearn is not installed: pip install scikit-learn"):
        Digits(size=9).setup("fit")


def test_a_subset_with_the_published_overlap_has_observed_pixels_in_proportion():
    data = Digits(0.2, query_includes_context=True, size=16, coordinate_subset=100)
    data.setup("fit")
    batch = data.to_coordinates(default_collate([data.train_set[0], data.train_set[1]]), training=True)
    observed = {tuple(row) for row in batch.observation.samples.coords[0].tolist()}
    shared = sum(tuple(row) in observed for row in batch.query.coords[0].tolist())
    assert shared == pytest.approx(0.2 * 100, abs=2)
