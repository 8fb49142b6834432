"""Signed distances from distance, logit, or both."""

import pytest
import torch

from composers.rendering import SignedDistance
from datamodules.domain import Volume
from datamodules.spec import DataSpec, Modality

SPEC = DataSpec(Volume(1.0), 1, (7, 4), Modality())


def _field(outputs):
    """Return a field with one or two outputs of random signs."""
    weights = torch.randn(3, outputs, generator=torch.Generator().manual_seed(0))
    return lambda coords: (coords @ weights).expand(2, -1, -1) * torch.tensor([1.0, -2.0])[:, None, None]


@pytest.mark.parametrize(("heads", "outputs"), [("distance", 1), ("logit", 1), ("both", 2)])
def test_values_equal_a_loop_and_raw_are_the_outputs(heads, outputs):
    coords, field = torch.randn(9, 3), _field(outputs)
    rendered = SignedDistance(heads).rendered(field, coords)
    assert torch.equal(rendered.raw, field(coords))
    assert rendered.values.shape == (2, 9, 1)
    for instance in range(2):
        for place, raw in enumerate(field(coords)[instance].tolist()):
            expected = raw[0] if heads != "both" else abs(raw[1]) * (1 if raw[0] > 0 else -1)
            assert rendered.values[instance, place].item() == pytest.approx(expected)
    assert torch.equal(SignedDistance(heads).pointwise(field)(coords), rendered.values)


def test_chunks_give_the_same_values():
    coords, field = torch.randn(9, 3), _field(2)
    with torch.no_grad():
        chunked, whole = (SignedDistance("both", size).rendered(field, coords) for size in (2, None))
    assert torch.equal(chunked.values, whole.values)
    assert torch.equal(chunked.raw, whole.raw)


def test_the_distance_has_a_gradient_and_the_logit_has_none():
    raw = torch.tensor([[[2.0, -0.5], [-1.0, 0.25]]], requires_grad=True)
    SignedDistance().rendered(lambda coords: raw, torch.zeros(2, 3)).values.sum().backward()
    assert raw.grad.tolist() == [[[0, -1], [0, -1]]]


def test_the_unit_scales_distances_and_not_outputs():
    coords, field = torch.randn(5, 3), _field(1)
    rendered = SignedDistance("distance", unit=0.1).rendered(field, coords)
    torch.testing.assert_close(rendered.values, 0.1 * field(coords))
    assert torch.equal(rendered.raw, field(coords))


@pytest.mark.parametrize(("heads", "channels"), [("distance", 1), ("logit", 1), ("both", 2)])
def test_the_field_has_a_channel_per_head(heads, channels):
    assert SignedDistance(heads).field_spec(SPEC) == SPEC._replace(value_dim=channels)


def test_unsuitable_data_fields_and_arguments_are_refused():
    with pytest.raises(ValueError, match="renders one channel, and the data has 3"):
        SignedDistance().field_spec(SPEC._replace(value_dim=3))
    with pytest.raises(ValueError, match="1 outputs, and heads both of SignedDistance needs 2: set value_dim"):
        SignedDistance("both").rendered(_field(1), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="2 outputs, and heads logit of SignedDistance needs 1"):
        SignedDistance("logit").rendered(_field(2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="heads is sign; allowed are distance, logit and both"):
        SignedDistance("sign")
    with pytest.raises(ValueError, match=r"unit is 0\.5 with heads both; it must be positive"):
        SignedDistance("both", unit=0.5)
    with pytest.raises(ValueError, match="unit is 0 with heads distance"):
        SignedDistance("distance", unit=0)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        SignedDistance("both", 0)
