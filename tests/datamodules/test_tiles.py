"""Tiles cover a signal, and their weights blend them without seams."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.tiles import bands, blend_weight, boxes, split, whole


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 12), st.data())
def test_boxes_cover_every_sample_with_the_requested_overlap(shape, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    covered = torch.zeros(shape, dtype=torch.int)
    tiles = boxes(shape, size, overlap)
    for box in tiles:
        assert all(stop - start == min(size, extent) for (start, stop), extent in zip(box, shape, strict=True))
        covered[tuple(slice(*span) for span in box)] += 1
    assert covered.min() >= 1
    for axis in range(len(shape)):
        spans = sorted({box[axis] for box in tiles})
        assert all(left[1] - right[0] >= overlap for left, right in itertools.pairwise(spans))
    assert tiles == sorted(set(tiles))


def test_number_of_boxes_is_minimal():
    assert boxes((100,), 10, 0) == [((start, start + 10),) for start in range(0, 100, 10)]
    assert len(boxes((64, 64), 64, 16)) == 1
    assert boxes((7, 9), 16, 4) == [whole((7, 9))]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_invalid_sizes_are_rejected(size, overlap):
    with pytest.raises(ValueError, match=f"size is {size}, overlap {overlap}"):
        boxes((10,), size, overlap)


def test_normalised_weights_are_continuous():
    places = torch.linspace(0, 99.99, 4000, dtype=torch.float64)
    spans = [span for (span,) in boxes((100,), 20, 5)]
    overlap = min(left[1] - right[0] for left, right in itertools.pairwise(spans))
    weights = []
    for span in spans:
        inside = (places >= span[0]) & (places < span[1])
        weights.append(torch.where(inside, blend_weight(places, span, 100, overlap), 0.0))
    shares = torch.stack(weights) / torch.stack(weights).sum(0)
    assert shares.diff(dim=1).abs().max() < 0.02
    assert shares[0, 0] == shares[-1, -1] == 1  # the ends of the signal are not faded


def test_weights_of_a_single_box_are_one():
    places = torch.arange(10) + 0.5
    assert torch.equal(blend_weight(places, (0, 10), 10, 0), torch.ones(10))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 40))
def test_bands_follow_the_samples_and_respect_the_maximum_size(shape, largest):
    numbers = torch.arange(math.prod(shape)).view(*shape)
    parts = [numbers[tuple(slice(*span) for span in box)].flatten() for box in bands(shape, largest)]
    assert torch.equal(torch.cat(parts), numbers.flatten())
    assert max(len(part) for part in parts) <= largest


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 12)), min_size=1, max_size=2),
    st.integers(150, 20000),
)
def test_split_covers_a_signal_with_few_boxes_of_one_size(axes, largest):
    shape, multiple = zip(*axes, strict=True)
    tiles = split(shape, largest, multiple)
    [sizes] = {tuple(stop - start for start, stop in box) for box in tiles}
    assert math.prod(sizes) <= largest
    assert (len(tiles) == 1) == (math.prod(shape) <= largest)
    for axis, (extent, size, divisor) in enumerate(zip(shape, sizes, multiple, strict=True)):
        spans = sorted({box[axis] for box in tiles})
        assert (spans[0][0], spans[-1][1]) == (0, extent)
        assert size == extent or size % divisor == 0
        assert all(left[1] - right[0] >= size // 16 for left, right in itertools.pairwise(spans))
