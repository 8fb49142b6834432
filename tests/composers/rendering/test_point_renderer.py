"""Rendering of points, in chunks and at once, and reconstructions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composers.rendering import PointRenderer, Reconstruction
from datamodules.domain import Grid
from datamodules.spec import DataSpec, Modality


@given(st.integers(1, 12), st.integers(1, 10), st.booleans())
def test_chunked_equals_unchunked(make_network, make_modulations, chunk_size, num_coords, shared):
    network = make_network()
    field = network.bind(make_modulations(network, 3))
    coords = torch.rand(num_coords, 2) if shared else torch.rand(3, num_coords, 2)
    with torch.no_grad():
        unchunked = PointRenderer(None)(field, coords)
        chunked = PointRenderer(chunk_size)(field, coords)
    assert chunked.shape == (3, num_coords, 3)
    torch.testing.assert_close(chunked, unchunked, atol=1e-6, rtol=0)
    torch.testing.assert_close(unchunked, network(coords, field.keywords["modulations"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(7, 2), (3, 7, 2)])
def test_chunks_bound_the_coordinates_of_an_evaluation(shape):
    sizes = []

    def field(coords):
        sizes.append(coords.shape[-2])
        return coords

    coords = torch.rand(shape)
    with torch.no_grad():
        assert torch.equal(PointRenderer(3)(field, coords), coords)
    assert sizes == [3, 3, 1]
    sizes.clear()
    assert torch.equal(PointRenderer(3)(field, coords), coords)
    assert sizes == [7]  # with gradients, chunks save no memory
    with torch.inference_mode():
        PointRenderer(7)(field, coords)
    assert sizes == [7, 7]


def test_the_field_has_the_specification_of_the_data():
    for spec in (DataSpec(Grid.unit(2), 3, (3, 8, 8), Modality()), DataSpec(Grid.unit(1), 1, (1, 9), Modality())):
        assert PointRenderer().field_spec(spec) == spec


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_chunk_sizes_must_be_positive(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size is {chunk_size}"):
        PointRenderer(chunk_size)


def test_a_reconstruction_renders_at_other_coordinates(make_network, make_modulations):
    network = make_network()
    field = network.bind(make_modulations(network, 3))
    coords, others = torch.rand(5, 2), torch.rand(3, 4, 2)
    reconstruction = PointRenderer().reconstruct(field, coords, {"orientation": 6})
    assert torch.equal(reconstruction.values, field(coords))
    assert torch.equal(reconstruction.raw, reconstruction.values)
    assert torch.equal(reconstruction.render(others).values, field(others))
    assert torch.equal(reconstruction.field(others), field(others))
    assert reconstruction.source == {"orientation": 6}


def test_a_reconstruction_of_values_has_no_field():
    reconstruction = Reconstruction.of_values(torch.ones(2, 5, 3))
    assert torch.equal(reconstruction.values, torch.ones(2, 5, 3))
    for evaluate in (reconstruction.field, reconstruction.render):
        with pytest.raises(ValueError, match="values at the query coordinates only, and no field"):
            evaluate(torch.rand(4, 2))
