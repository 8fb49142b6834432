"""Tiles of images to enlarge."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from super_resolvers import tiny_liif

import composers
from datamodules.batch import Observation
from datamodules.domain import CellGrid
from datamodules.enlargement import enlarged_coords, enlargements
from datamodules.tiles import cut_out, partition

SIDES = st.integers(1, 40)


@given(shape=st.tuples(SIDES, SIDES), largest=st.integers(1, 300))
def test_a_partition_covers_every_sample_once(shape, largest):
    covered = torch.zeros(shape, dtype=torch.int)
    for box in partition(shape, largest):
        region = covered[tuple(slice(*span) for span in box)]
        assert 0 < region.numel() <= largest
        region += 1
    assert (covered == 1).all()


@given(shape=st.tuples(SIDES, SIDES), factors=st.tuples(*[st.floats(1, 5)] * 2), largest=st.integers(1, 300))
def test_tiles_cover_every_pixel_of_the_result_once(shape, factors, largest):
    size = [round(extent * factor) for extent, factor in zip(shape, factors, strict=True)]
    covered = torch.zeros(size, dtype=torch.int)
    for tile in enlargements(shape, size, largest, margin=3):
        covered[tuple(slice(*span) for span in tile.result)] += 1
        for (first, last), (start, stop), extent, target in zip(tile.result, tile.observed, shape, size, strict=True):
            step = extent / target
            assert start == 0 or (first + 0.5) * step - start >= 3 - 1e-9
            assert stop == extent or stop - (last - 0.5) * step >= 3 - 1e-9
    assert (covered == 1).all()


def test_large_scales_have_smaller_tiles():
    tiles = enlargements((100, 100), (10000, 10000))
    assert (
        max((last - first) * (right - left) for (first, last), (left, right) in (tile.result for tile in tiles))
        <= 1 << 21
    )


def test_a_pixel_whose_result_is_large_is_divided():
    tiles = enlargements((2, 2), (4000, 4000))
    areas = [(last - first) * (right - left) for (first, last), (left, right) in (tile.result for tile in tiles)]
    assert max(areas) <= 1 << 21
    assert sum(areas) == 4000**2


@given(shape=st.tuples(SIDES, SIDES), factors=st.tuples(*[st.floats(1, 5)] * 2))
def test_coordinates_of_one_tile_are_those_of_the_domain(shape, factors):
    size = [round(extent * factor) for extent, factor in zip(shape, factors, strict=True)]
    [tile] = enlargements(shape, size)
    domain = CellGrid.unit(2)
    torch.testing.assert_close(enlarged_coords(domain, tile, shape, size), domain.coords(size), atol=1e-6, rtol=0)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(*[st.integers(6, 24)] * 2), factors=st.tuples(*[st.floats(1, 4)] * 2), largest=st.integers(20, 200)
)
def test_tiles_with_the_context_of_the_encoder_give_the_whole_result(shape, factors, largest):
    composer = tiny_liif()
    size = [round(extent * factor) for extent, factor in zip(shape, factors, strict=True)]
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    domain = CellGrid.unit(2)
    margin = composer.context
    result = torch.zeros(*size, 3)
    with torch.no_grad():
        whole = composer(Observation(image[None]), domain.coords(size))[0].unflatten(0, size)
        for tile in enlargements(shape, size, largest, margin):
            region = tuple(slice(*span) for span in tile.result)
            values = composer(
                Observation(cut_out(image, tile.observed)[None]), enlarged_coords(domain, tile, shape, size)
            )[0]
            result[region] = values.unflatten(0, result[region].shape[:2])
    torch.testing.assert_close(result, whole, atol=2e-5, rtol=0)


def test_too_narrow_a_margin_shows():
    composer = tiny_liif()
    image, domain = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)), CellGrid.unit(2)
    tiles = enlargements((20, 20), (40, 40), 200, margin=0)
    with torch.no_grad():
        whole = composer(Observation(image[None]), domain.coords((40, 40)))[0].view(40, 40, 3)
        region = tuple(slice(*span) for span in tiles[0].result)
        values = composer(
            Observation(cut_out(image, tiles[0].observed)[None]), enlarged_coords(domain, tiles[0], (20, 20), (40, 40))
        )
    assert (values[0] - whole[region].flatten(0, 1)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("network", "context"), [({}, 8), ({"unfold": False}, 7), ({"features": "fourier"}, 8), ({"ensemble": False}, 8)]
)
def test_the_context_of_a_model_is_what_its_values_depend_on(network, context):
    composer = tiny_liif(**network)
    image = torch.rand(1, 3, 41, 41, generator=torch.Generator().manual_seed(0)).requires_grad_()
    places = torch.linspace(20.02, 20.98, 7, dtype=torch.float64)  # within pixel 20
    coords = CellGrid.unit(2).at([places, places], (41, 41), (0.5, 0.5))
    composer(Observation(image), coords).square().sum().backward()
    reached = image.grad.abs().sum((0, 1)).nonzero() - 20
    assert composer.context == context
    assert reached.abs().max() <= context
    assert reached.abs().max() >= context - (network == {"ensemble": False})


def test_encoders_of_whole_signals_have_no_context():
    assert composers.load("photos_ipc").context is None
