"""Volume rendering against loops over rays and samples and closed forms; positions of samples, memory and precision."""

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composers.networks import FourierFeatures
from composers.rendering import Rendered, VolumeRenderer
from datamodules.domain import Grid, Rays
from datamodules.spec import DataSpec, Modality

GOLDEN_RATIO = (5**0.5 - 1) / 2
DOWN = torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, -1.0])  # depth d is height 5 - d


def _rays(*shape, draws=False):
    """Return random rays with origins around (0, 0, 4), unnormalised directions and optional draws."""
    origins = torch.randn(*shape, 3) + torch.tensor([0.0, 0.0, 4.0])
    parts = [origins, torch.randn(*shape, 3) - torch.tensor([0.0, 0.0, 1.0])]
    return torch.cat(parts + [torch.rand(*shape, 1)] * draws, dim=-1)


def _smooth(points):
    """Return smooth colours and densities ``(..., 4)``, some negative before the ReLU; two instances for shared points."""
    x, y, z = points.unbind(-1)
    raw = torch.stack((x.sin(), (y + z).cos(), x * y / 4, (3 * z).sin() + x / 2), dim=-1)
    return raw if raw.dim() == 3 else torch.stack((raw, 0.5 * raw + 0.1))


def _naive_depths(renderer, draw):
    """Return the depths of the samples of one ray."""
    count = renderer.samples_per_ray
    step = (renderer.far - renderer.near) / (count - 1)
    offsets = [0.0 if draw is None else (draw + k * GOLDEN_RATIO) % 1 for k in range(count)]
    return [renderer.near + (k + offsets[k]) * step for k in range(count)]


def _naive_ray(renderer, ray, depths, instance, shared):
    """Return colour, depth and opacity of one ray by a loop over its samples."""
    origin, direction = ray[:3], ray[3:6]
    passed, colour, depth, opacity = 1.0, np.zeros(3), 0.0, 0.0
    for k, sample_depth in enumerate(depths):
        point = torch.tensor(origin + sample_depth * direction).reshape(1, 1, 3)
        raw = (_smooth(point[0])[instance] if shared else _smooth(point)[0])[0].tolist()
        last = k == len(depths) - 1
        step = 1e-3 if last else depths[k + 1] - sample_depth
        alpha = 1 - math.exp(-max(raw[3], 0.0) * step)
        weight = passed * alpha
        opacity += weight
        colour += weight * np.array([1 / (1 + math.exp(-number)) for number in raw[:3]])
        depth += weight * sample_depth
        passed *= min(1 - alpha + 1e-10, 1)
    return colour + (1 - opacity) * renderer.background, depth + (1 - opacity) * renderer.far, opacity


def _assert_equals_loop(renderer, rays):
    """Compare the renderer with loops over instances and rays."""
    shared = rays.dim() == 2
    rendered = renderer.rendered(_smooth, rays)
    assert rendered.values.shape == (2, rays.shape[-2], 3)
    assert rendered.depth.shape == rendered.opacity.shape == (2, rays.shape[-2])
    for instance in range(2):
        instance_rays = (rays if shared else rays[instance]).double().numpy()
        for index, ray in enumerate(instance_rays):
            draw = float(ray[6]) if len(ray) == 7 and renderer.stratified else None
            depths = _naive_depths(renderer, draw)
            colour, depth, opacity = _naive_ray(renderer, ray, depths, instance, shared)
            np.testing.assert_allclose(rendered.values[instance, index].numpy(), colour, atol=3e-5)
            assert abs(float(rendered.depth[instance, index]) - depth) < 1e-4
            assert abs(float(rendered.opacity[instance, index]) - opacity) < 3e-5
    assert torch.equal(renderer(_smooth, rays), rendered.values)


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("shape", [(4,), (2, 3)], ids=["shared", "per_instance"])
@pytest.mark.parametrize("changes", [{}, {"background": 0.0, "near": 0.0, "far": 3.5}, {"stratified": False}], ids=str)
def test_rays_equal_loops(changes, shape, draws):
    _assert_equals_loop(
        VolumeRenderer(**{"near": 2.0, "far": 6.0, "samples_per_ray": 9} | changes), _rays(*shape, draws=draws)
    )


def _assert_rendered(actual, expected, atol):
    """Compare what was rendered, part by part."""
    for part, reference in zip(actual, expected, strict=True):
        if reference is None:
            assert part is None
        else:
            torch.testing.assert_close(part, reference, atol=atol, rtol=0)


def _constant(density, colour=0.0):
    def field(points):
        lead = points.shape[:-1] if points.dim() == 3 else (1, *points.shape[:-1])
        return torch.tensor([colour] * 3 + [density]).expand(*lead, 4)

    return field


@pytest.mark.parametrize("density", [0.1, 0.7, 2.0])
def test_constant_density_has_a_closed_form(density):
    rendered = VolumeRenderer(2.0, 6.0, samples_per_ray=64).rendered(_constant(density, 40.0), DOWN[None])
    passed = math.exp(-density * (4 + 1e-3))
    step = 4 / 63
    share = 1 - math.exp(-density * step)
    depth = sum((2 + k * step) * share * math.exp(-density * k * step) for k in range(63))
    depth += 6 * math.exp(-density * 4)
    assert float(rendered.opacity) == pytest.approx(1 - passed, abs=1e-5)
    np.testing.assert_allclose(rendered.values[0, 0].numpy(), 1.0, atol=1e-5)  # as white as the background
    assert float(rendered.depth) == pytest.approx(depth, abs=1e-4)
    dark = VolumeRenderer(2.0, 6.0, samples_per_ray=64)(_constant(density, -40.0), DOWN[None])
    np.testing.assert_allclose(dark[0, 0].numpy(), passed, atol=1e-5)


def test_softplus_density_of_zero_is_log_2():
    opacity = VolumeRenderer(2.0, 6.0, density="softplus").rendered(_constant(0.0), DOWN[None]).opacity
    assert float(opacity) == pytest.approx(1 - math.exp(-math.log(2) * 4.001), abs=1e-5)


def test_the_integral_ignores_the_length_of_directions():
    twice = DOWN * torch.tensor([1.0, 1, 1, 1, 1, 2])
    rendered = VolumeRenderer(2.0, 6.0).rendered(_constant(0.3), torch.stack((DOWN, twice)))
    assert torch.equal(rendered.opacity[0, 0], rendered.opacity[0, 1])
    assert torch.equal(rendered.depth[0, 0], rendered.depth[0, 1])


def _plane(height):
    """Return a field that is solid and red below a height."""

    def field(points):
        density = 1e4 * (points[..., 2:] <= height + 1e-4).float()
        rendered = torch.cat((torch.tensor([40.0, -40.0, -40.0]).expand(points.shape), density), dim=-1)
        return rendered if rendered.dim() == 3 else rendered.unsqueeze(0)

    return field


@pytest.mark.parametrize("depth", [2.0, 3.0, 5.5])
def test_a_solid_plane_is_rendered_at_its_depth(depth):
    rays = torch.stack((DOWN, DOWN + torch.tensor([1.0, 0, 0, 0.5, 0, 0])))
    rendered = VolumeRenderer(2.0, 6.0, samples_per_ray=9).rendered(_plane(5 - depth), rays)
    torch.testing.assert_close(rendered.values, torch.tensor([[[1.0, 0, 0]] * 2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(rendered.depth, torch.full((1, 2), depth), atol=1e-5, rtol=0)
    torch.testing.assert_close(rendered.opacity, torch.ones(1, 2))


@pytest.mark.parametrize("background", [1.0, 0.25])
def test_empty_space_is_background_at_the_far_depth(background):
    renderer = VolumeRenderer(2.0, 6.0, importance_samples=4, background=background)
    rendered = renderer.rendered(_constant(-3.0), _rays(2, 5))
    assert torch.equal(rendered.values, torch.full((2, 5, 3), background))
    assert torch.equal(rendered.depth, torch.full((2, 5), 6.0))
    assert torch.equal(rendered.opacity, torch.zeros(2, 5))


# Positions of samples


def _sampled_depths(renderer, rays):
    """Return the depths at which the field is evaluated along vertical rays, ``(B, N, S)`` or ``(N, S)``, by call."""
    depths = []

    def field(points):
        depths.append(5 - points[..., 2].unflatten(-1, (rays.shape[-2], -1)).double())
        return _plane(1.5)(points)

    renderer(field, rays)
    return depths


@given(st.floats(0, 1, exclude_max=True, width=32), st.integers(2, 40))
def test_a_draw_increases_every_depth_by_less_than_a_step(draw, count):
    renderer = VolumeRenderer(2.0, 6.0, samples_per_ray=count)
    [plain] = _sampled_depths(renderer, DOWN[None])
    [moved] = _sampled_depths(renderer, torch.cat((DOWN, torch.tensor([draw])))[None])
    np.testing.assert_allclose(plain[0], np.linspace(2, 6, count), atol=2e-6)
    offsets = (moved - plain)[0] / (4 / (count - 1))
    assert offsets.min() > -1e-4
    assert offsets.max() < 1 + 1e-4
    expected = (draw + np.arange(count) * GOLDEN_RATIO) % 1
    difference = np.abs(offsets.numpy() - expected)
    assert np.minimum(difference, 1 - difference).max() < 1e-4


def test_offsets_depend_on_the_draw_of_the_ray_only():
    renderer = VolumeRenderer(2.0, 6.0, samples_per_ray=6)
    rays = torch.cat((DOWN.expand(2, 3, 6), torch.tensor([[0.1, 0.5, 0.1], [0.5, 0.9, 0.1]]).unsqueeze(-1)), dim=-1)
    [first], [again] = _sampled_depths(renderer, rays), _sampled_depths(renderer, rays)
    assert torch.equal(first, again)
    assert torch.equal(first[0, 0], first[0, 2])
    assert torch.equal(first[0, 0], first[1, 2])
    assert torch.equal(first[0, 1], first[1, 0])
    assert not torch.equal(first[0, 0], first[0, 1])
    renderer.eval()
    assert torch.equal(_sampled_depths(renderer, rays)[0], first)  # the data decides, not the mode
    unmoved = VolumeRenderer(2.0, 6.0, samples_per_ray=6, stratified=False)
    assert torch.equal(_sampled_depths(unmoved, rays)[0], _sampled_depths(unmoved, rays[..., :6])[0])


def test_offsets_of_many_draws_are_uniform():
    draws = ((torch.arange(200) + 0.5) / 200).unsqueeze(-1)
    [depths] = _sampled_depths(
        VolumeRenderer(2.0, 6.0, samples_per_ray=5), torch.cat((DOWN.expand(200, 6), draws), dim=-1)
    )
    offsets = depths - torch.linspace(2, 6, 5)
    for sample in range(5):
        np.testing.assert_allclose(offsets[:, sample].sort().values, (np.arange(200) + 0.5) / 200, atol=6e-3)


def test_importance_samples_gather_where_something_is_seen():
    renderer = VolumeRenderer(2.0, 6.0, samples_per_ray=17, importance_samples=40)
    coarse, added = _sampled_depths(renderer, DOWN[None])
    np.testing.assert_allclose(coarse[0], np.linspace(2, 6, 17), atol=1e-5)
    assert added.shape == (1, 1, 40)  # the first samples are not evaluated again
    assert ((added - 3.5).abs() <= 0.126).all()  # half a step to both sides of the first solid sample


def test_importance_samples_are_mid_quantiles():
    """Weights of a density in steps can be inverted by hand."""
    weights = np.array([0.0, 0.5, 0.25, 0.25, 0.0])
    edges = [2, 2.5, 3.5, 4.5, 5.5, 6]

    def field(points):
        alpha = torch.tensor([0.0, 0.5, 0.5, 1 - 1e-12, 0.0])
        density = -torch.log(1 - alpha.double()).float()
        count = points.shape[-2] // 5
        return torch.cat((torch.zeros(1, 5 * count, 3), density.repeat(count).reshape(1, -1, 1)), dim=-1)

    depths = []

    def recording_field(points):
        depths.append(5 - points[..., 2])
        return field(points) if len(depths) == 1 else torch.zeros(1, points.shape[-2], 4)

    VolumeRenderer(2.0, 6.0, samples_per_ray=5, importance_samples=8)(recording_field, DOWN[None])
    cumulative = np.concatenate(([0], (weights + 1e-5).cumsum() / (weights + 1e-5).sum()))
    added = np.interp((np.arange(8) + 0.5) / 8, cumulative, edges)
    np.testing.assert_allclose(depths[1][0].numpy(), added, atol=1e-4)


def test_importance_samples_depend_on_the_draw_of_their_ray():
    renderer = VolumeRenderer(2.0, 6.0, samples_per_ray=5, importance_samples=6)
    rays = torch.cat((DOWN.expand(3, 6), torch.tensor([[0.2], [0.7], [0.2]])), dim=-1)
    _, fine = _sampled_depths(renderer, rays)
    assert torch.equal(fine[0, 0], fine[0, 2])
    assert not torch.equal(fine[0, 0], fine[0, 1])
    empty = []
    renderer(lambda points: empty.append(points) or torch.zeros(1, points.shape[-2], 4), rays[:1])
    moved = np.array(_naive_depths(renderer, 0.2))
    middles = (moved[1:] + moved[:-1]) / 2
    quantiles = (np.arange(6) + (0.2 + np.arange(5, 11) * GOLDEN_RATIO) % 1) / 6
    added = np.interp(quantiles, np.linspace(0, 1, 6), [moved[0], *middles, moved[-1]])
    np.testing.assert_allclose(5 - empty[1][0, :, 2].numpy(), added, atol=1e-5)


def test_the_integral_over_added_samples_equals_loops():
    rays, sampled = _rays(2, 3), []

    def field(points):
        sampled.append(points)
        return _smooth(points)

    renderer = VolumeRenderer(2.0, 6.0, samples_per_ray=7, importance_samples=5)
    rendered = renderer.rendered(field, rays)
    origins, directions = rays.double().unsqueeze(-2).split(3, dim=-1)
    points = torch.cat([some.unflatten(-2, (3, -1)).double() for some in sampled], dim=-2)
    depths = (((points - origins) * directions).sum(-1) / directions.square().sum(-1)).sort(-1).values
    for instance in range(2):
        for index in range(3):
            ray, ray_depths = rays[instance, index].double().numpy(), depths[instance, index].tolist()
            colour, depth, opacity = _naive_ray(renderer, ray, ray_depths, instance, False)
            np.testing.assert_allclose(rendered.values[instance, index].numpy(), colour, atol=3e-5)
            assert abs(float(rendered.depth[instance, index]) - depth) < 1e-4
            assert abs(float(rendered.opacity[instance, index]) - opacity) < 3e-5


def test_importance_samples_of_shared_rays_differ_between_instances():
    rays = _rays(4)
    renderer = VolumeRenderer(2.0, 6.0, samples_per_ray=7, importance_samples=5)

    def field(points):
        points = points.expand(2, -1, -1)
        return torch.cat((points, points[..., 2:] * torch.tensor([1.0, -1.0]).view(2, 1, 1)), dim=-1)

    shared = renderer.rendered(field, rays)
    expanded = renderer.rendered(field, rays.expand(2, 4, 6))
    assert not torch.allclose(shared.depth[0], shared.depth[1])
    _assert_rendered(shared, expanded, atol=1e-6)


def test_no_gradient_flows_through_the_positions():
    level = torch.tensor(0.4, requires_grad=True)
    calls = []

    def field(points):
        calls.append((points.requires_grad, torch.is_grad_enabled()))
        raw = _smooth(points)
        return torch.cat((raw[..., :3], level * raw[..., 3:] + 1), dim=-1)

    renderer = VolumeRenderer(2.0, 6.0, samples_per_ray=5, importance_samples=5)
    renderer(field, _rays(2, 3)).sum().backward()
    assert calls == [(False, True), (False, True)]
    assert level.grad.abs() > 0


# Memory and precision


@given(st.integers(1, 200), st.integers(1, 6), st.booleans(), st.booleans(), st.sampled_from([0, 3]))
def test_chunked_equals_unchunked(make_network, make_modulations, chunk_size, num_rays, shared, draws, more):
    network = make_network(coord_dim=3, value_dim=4, encoding=FourierFeatures(2, 4, use_pi=False))
    field = network.bind(make_modulations(network, 3))
    rays = _rays(num_rays, draws=draws) if shared else _rays(3, num_rays, draws=draws)
    unchunked = VolumeRenderer(2.0, 6.0, 5, more).rendered(field, rays)
    assert unchunked.values.requires_grad
    with torch.no_grad():
        chunked = VolumeRenderer(2.0, 6.0, 5, more, chunk_size=chunk_size).rendered(field, rays)
    assert isinstance(chunked, Rendered)
    _assert_rendered(chunked, unchunked, atol=2e-5)


@pytest.mark.parametrize(("shape", "sizes"), [((10,), [40, 40, 20]), ((2, 10), [20, 20, 20, 20, 20])])
def test_chunks_bound_the_points_of_all_instances(shape, sizes):
    evaluated = []

    def field(points):
        evaluated.append(points.shape[-2])
        return torch.zeros(2, points.shape[-2], 4)

    renderer = VolumeRenderer(2.0, 6.0, samples_per_ray=10, chunk_size=49)
    with torch.no_grad():
        renderer(field, _rays(*shape))
    assert evaluated == sizes
    evaluated.clear()
    renderer(field, _rays(*shape))
    assert evaluated == [100]  # with gradients, chunks save no memory
    evaluated.clear()
    with torch.inference_mode():
        VolumeRenderer(2.0, 6.0, 10, importance_samples=10, chunk_size=1)(field, _rays(1, 2))
    assert evaluated == [10, 10] * 2


def test_results_of_chunks_are_not_kept(monkeypatch):
    references, most = [], 0
    render = VolumeRenderer._render

    def rendered(self, field, rays, *others):
        nonlocal most
        most = max(most, sum(reference() is not None for reference in references))
        chunk = render(self, field, rays, *others)
        references.append(weakref.ref(chunk.values))
        return chunk

    monkeypatch.setattr(VolumeRenderer, "_render", rendered)
    with torch.no_grad():
        values = VolumeRenderer(2.0, 6.0, samples_per_ray=5, chunk_size=10)(_smooth, _rays(1, 41))
    assert values.shape == (1, 41, 3)
    assert len(references) == 21
    assert most <= 1


def test_compositing_is_exact_under_autocast():
    renderer, rays = VolumeRenderer(2.0, 6.0, samples_per_ray=64, importance_samples=8), _rays(2, 20)
    expected = renderer.rendered(lambda points: _smooth(points).bfloat16(), rays)
    with torch.autocast("cpu", torch.bfloat16):
        actual = renderer.rendered(lambda points: _smooth(points).bfloat16(), rays)
    assert {part.dtype for part in actual[:3]} == {torch.float32}
    _assert_rendered(actual, expected, atol=0)


def test_a_coordinate_network_under_autocast_gives_float32_and_exact_points(make_network, make_modulations):
    network = make_network(coord_dim=3, value_dim=4)
    field = network.bind(make_modulations(network, 2))
    evaluated = []

    def recording_field(points):
        evaluated.append(points)
        return field(points)

    rays = _rays(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rendered = VolumeRenderer(2.0, 6.0, samples_per_ray=5).rendered(recording_field, rays)
    VolumeRenderer(2.0, 6.0, samples_per_ray=5)(recording_field, rays)
    assert {part.dtype for part in rendered[:3]} == {torch.float32}
    assert torch.equal(*evaluated)


def test_a_value_of_many_points_has_no_raw_output():
    assert VolumeRenderer(2.0, 6.0).rendered(_constant(1.0), DOWN[None]).raw is None


# Rejected arguments


def test_the_field_takes_points_and_the_data_rays():
    spec = DataSpec(Rays(2.0, 6.0), 3, (1, 3, 8, 8), Modality())
    field = VolumeRenderer().field_spec(spec)
    assert (field.domain.coord_dim, field.value_dim) == (3, 4)
    for other in (spec._replace(domain=Grid.unit(2)), spec._replace(value_dim=4), spec._replace(domain=Grid.unit(6))):
        with pytest.raises(ValueError, match=r"VolumeRenderer renders colours along rays.*choose data of posed views"):
            VolumeRenderer().field_spec(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"near": 6.0, "far": 2.0}, "near is 6.0 and far 2.0"),
        ({"near": 2.0, "far": 2.0}, "near is 2.0 and far 2.0"),
        ({"near": -0.5, "far": 2.0}, "near is -0.5"),
        ({"near": -0.5}, "near is -0.5"),
        ({"far": 0.0}, "near is None and far 0.0"),
        ({"near": 2.0, "far": float("inf")}, "near is 2.0 and far inf"),
        ({"near": float("nan"), "far": 6.0}, "near is nan"),
        ({"samples_per_ray": 1}, "samples_per_ray is 1"),
        ({"importance_samples": -1}, "importance_samples -1"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        VolumeRenderer(**arguments)


@pytest.mark.parametrize("depths", [{}, {"near": 2.0}, {"far": 6.0}], ids=str)
def test_rendering_without_near_and_far_is_rejected(depths):
    with pytest.raises(ValueError, match=r"near is .* and far .*: the command line sets them from the data"):
        VolumeRenderer(**depths)(_constant(1.0), DOWN[None])


@pytest.mark.parametrize("shape", [(5, 3), (5, 8), (6,), (1, 2, 3, 6)])
def test_coordinates_that_are_no_rays_are_rejected(shape):
    with pytest.raises(ValueError, match=r"coords have shape .*VolumeRenderer takes rays"):
        VolumeRenderer(2.0, 6.0)(_constant(1.0), torch.rand(shape))
