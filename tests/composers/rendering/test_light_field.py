"""Light fields: one evaluation per ray, of its line."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composers.rendering import LightFieldRenderer
from datamodules.cameras import plucker
from datamodules.domain import Grid, Rays
from datamodules.spec import DataSpec, Modality


def _rays(*shape):
    return torch.cat((torch.randn(*shape, 3), torch.randn(*shape, 3) * 3), dim=-1)


def _field(lines):
    """Return three values of lines ``(..., 6)``; two instances for shared lines."""
    raw = torch.stack((lines[..., 0] - lines[..., 4], lines[..., 1] * lines[..., 5], lines.sum(-1)), dim=-1)
    return raw if raw.dim() == 3 else torch.stack((raw, -raw))


@pytest.mark.parametrize("shape", [(5,), (2, 5)], ids=["shared", "per_instance"])
def test_colours_equal_a_loop(shape):
    rays = _rays(*shape)
    values = LightFieldRenderer()(_field, rays)
    assert values.shape == (2, 5, 3)
    for instance in range(2):
        for index in range(5):
            ray = (rays if len(shape) == 1 else rays[instance])[index].double().numpy()
            d = ray[3:] / np.sqrt((ray[3:] ** 2).sum())
            line = [*d, *np.cross(ray[:3], d)]
            numbers = np.array([line[0] - line[4], line[1] * line[5], sum(line)])
            if len(shape) == 1 and instance == 1:
                numbers = -numbers
            expected = [1 / (1 + math.exp(-number)) for number in numbers]
            np.testing.assert_allclose(values[instance, index].numpy(), expected, atol=1e-5)


def test_colours_do_not_depend_on_the_origin_along_the_line():
    rays = _rays(2, 7)
    moved = torch.cat((rays[..., :3] + 2.5 * rays[..., 3:], 4 * rays[..., 3:]), dim=-1)
    torch.testing.assert_close(
        LightFieldRenderer()(_field, moved), LightFieldRenderer()(_field, rays), atol=1e-5, rtol=0
    )


def test_draws_are_ignored():
    rays = _rays(2, 7)
    drawn = torch.cat((rays, torch.rand(2, 7, 1)), dim=-1)
    assert torch.equal(LightFieldRenderer()(_field, drawn), LightFieldRenderer()(_field, rays))


def test_raw_output_is_that_of_the_field_and_there_is_no_depth():
    rays = _rays(2, 7)
    rendered = LightFieldRenderer().rendered(_field, rays)
    assert torch.equal(rendered.values, LightFieldRenderer()(_field, rays))
    assert torch.equal(rendered.raw, _field(plucker(rays)))
    assert torch.equal(rendered.values, rendered.raw.sigmoid())
    assert (rendered.depth, rendered.opacity) == (None, None)


@given(st.integers(1, 9), st.booleans())
def test_chunked_light_fields_equal_unchunked(chunk_size, shared):
    rays = _rays(7) if shared else _rays(2, 7)
    sizes = []

    def field(lines):
        sizes.append(lines.shape[-2])
        return _field(lines)

    with torch.no_grad():
        values = LightFieldRenderer(chunk_size)(field, rays)
    assert max(sizes) <= chunk_size
    assert sum(sizes) == 7
    torch.testing.assert_close(values, LightFieldRenderer(None)(_field, rays), atol=1e-6, rtol=0)


def test_lines_are_exact_under_autocast():
    rays, evaluated = _rays(2, 7), []
    with torch.autocast("cpu", torch.bfloat16):
        values = LightFieldRenderer()(lambda lines: evaluated.append(lines) or _field(lines).bfloat16(), rays)
    assert values.dtype == torch.float32
    assert torch.equal(evaluated[0], plucker(rays))


def test_the_field_takes_lines_and_the_data_rays():
    spec = DataSpec(Rays(2.0, 6.0), 3, (1, 3, 8, 8), Modality())
    field = LightFieldRenderer().field_spec(spec)
    assert (field.domain.coord_dim, field.value_dim) == (6, 3)
    with pytest.raises(ValueError, match=r"LightFieldRenderer renders colours along rays.*\(2, 3\)"):
        LightFieldRenderer().field_spec(spec._replace(domain=Grid.unit(2)))
    with pytest.raises(ValueError, match=r"coords have shape \(5, 3\); LightFieldRenderer takes rays"):
        LightFieldRenderer()(_field, torch.rand(5, 3))
    with pytest.raises(ValueError, match="chunk_size is 0"):
        LightFieldRenderer(0)
