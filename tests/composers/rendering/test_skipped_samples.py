"""Samples that are skipped, in evaluation and in training, against plain rendering in float64 and loops over rays."""

import math

import numpy as np
import pytest
import torch

from composers.networks import FourierFeatures
from composers.rendering import Occupancy, VolumeRenderer
from composers.rendering.occupancy import OccupancyGrid, evaluate_where, leading_indices
from composers.rendering.volume import sphere_depths

SAMPLES = 64


def _rays(*shape, draws=False, dtype=torch.float32):
    """Return rays from around (0, 0, 4) that pass near the origin."""
    generator = torch.Generator().manual_seed(0)
    origins = 0.3 * torch.randn(*shape, 3, generator=generator) + torch.tensor([0.0, 0.0, 4.0])
    targets = 1.4 * torch.rand(*shape, 3, generator=generator) - 0.7
    parts = [origins, (targets - origins) / 4] + [torch.rand(*shape, 1, generator=generator)] * draws
    return torch.cat(parts, dim=-1).to(dtype)


def _balls(points):
    """Return two instances ``(2, N, 4)``: coloured balls around the origin and beside it, with density near them only."""
    points = points.expand(2, -1, -1)
    centres = points.new_tensor([[[0.0, 0.0, 0.0]], [[0.3, 0.2, -0.2]]])
    radii = points.new_tensor([[[0.6]], [[0.4]]])
    inside = radii - (points - centres).norm(dim=-1, keepdim=True)
    return torch.cat((3 * points, 40 * inside), dim=-1)


def _counting(field):
    """Return a field that counts the points at which it is evaluated, and the counts."""
    counts = []

    def counted(points):
        counts.append(points.shape[-2])
        return field(points)

    return counted, counts


def _assert_close(actual, expected, atol):
    for part, reference in zip(actual[:3], expected[:3], strict=True):
        torch.testing.assert_close(part.double(), reference.double(), atol=atol, rtol=0)


# Evaluation


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("shape", [(30,), (2, 30)], ids=["shared", "per_instance"])
@pytest.mark.parametrize("radius", [None, 1.2])
@pytest.mark.parametrize("more", [0, 16])
def test_skipping_density_of_zero_changes_nothing(shape, draws, radius, more):
    arguments = {"near": 2.0, "far": 6.0, "samples_per_ray": SAMPLES, "importance_samples": more, "radius": radius}
    rays = _rays(*shape, draws=draws, dtype=torch.float64)
    field, counts = _counting(_balls)
    with torch.no_grad():
        expected = VolumeRenderer(**arguments).rendered(_balls, rays)
        occupancy = Occupancy(32, empty_opacity=0.0, min_transmittance=0.0)
        actual = VolumeRenderer(**arguments, occupancy=occupancy).rendered(field, rays)
    assert float(expected.opacity.mean()) > 0.2
    _assert_close(actual, expected, 0 if more == 0 else 1e-9)
    assert sum(counts[2:]) < 0.9 * 30 * (SAMPLES + more)  # after two evaluations for the grid


@pytest.mark.parametrize("limit", [0.3, 1e-2, 1e-4])
def test_opaque_samples_hide_at_most_the_stated_light(limit):
    rays = _rays(2, 50, dtype=torch.float64)
    with torch.no_grad():
        expected = VolumeRenderer(2.0, 6.0, SAMPLES).rendered(_balls, rays)
        occupancy = Occupancy(32, empty_opacity=0.0, min_transmittance=limit)
        field, counts = _counting(_balls)
        actual = VolumeRenderer(2.0, 6.0, SAMPLES, occupancy=occupancy).rendered(field, rays)
    assert (actual.opacity - expected.opacity).abs().max() <= limit
    assert (actual.values - expected.values).abs().max() <= limit
    assert (actual.depth - expected.depth).abs().max() <= limit * 4
    everything, all_counts = _counting(_balls)
    with torch.no_grad():
        VolumeRenderer(2.0, 6.0, SAMPLES, occupancy=Occupancy(32, 0.0, 0.0)).rendered(everything, rays)
    assert sum(counts) < sum(all_counts)


def test_softplus_skips_fog_of_the_stated_opacity():
    def foggy(points):
        raw = _balls(points)
        return torch.cat((raw[..., :3], (raw[..., 3:] - 2).clamp(min=-9)), dim=-1)  # softplus(-9) = 1.2e-4

    rays = _rays(2, 40, dtype=torch.float64)
    with torch.no_grad():
        expected = VolumeRenderer(2.0, 6.0, SAMPLES, density="softplus").rendered(foggy, rays)
        for opacity, fewer in ((1e-5, False), (1e-3, True)):
            field, counts = _counting(foggy)
            renderer = VolumeRenderer(2.0, 6.0, SAMPLES, density="softplus", occupancy=Occupancy(32, opacity, 0.0))
            actual = renderer.rendered(field, rays)
            assert (actual.opacity - expected.opacity).abs().max() <= opacity
            assert (actual.values - expected.values).abs().max() <= opacity
            assert (sum(counts[2:]) < 40 * SAMPLES) == fewer


def test_samples_outside_the_grid_are_evaluated_unless_a_radius_bounds_the_scene():
    def far_ball(points):
        return _balls(points + points.new_tensor([0.0, 0.0, 2.4]))  # around z = -2.4, beyond the cube of half edge 2

    rays = torch.tensor([[0.0, 0.0, 4.0, 0.0, 0.0, -1.5]])  # depths 2 to 6 are z = 1 to -5
    with torch.no_grad():
        expected = VolumeRenderer(2.0, 6.0, SAMPLES).rendered(far_ball, rays)
        actual = VolumeRenderer(2.0, 6.0, SAMPLES, occupancy=Occupancy(16, 0.0, 0.0)).rendered(far_ball, rays)
        _assert_close(actual, expected, 0)
        assert float(expected.opacity[0, 0]) > 0.9
        bounded = VolumeRenderer(2.0, 6.0, SAMPLES, radius=1.5, occupancy=Occupancy(16)).rendered(far_ball, rays)
        assert float(bounded.opacity[0, 0]) == 0


def _ball(radius):
    """Return the field of one instance with density 1 in a ball."""

    def field(points):
        density = (points.norm(dim=-1, keepdim=True) < radius).float()
        return torch.cat((0 * points, density), dim=-1)[None]

    return field


def test_cells_around_dense_centres_are_occupied():
    grid = OccupancyGrid(_ball(0.2), torch.relu, 8, 2.0, 0.5, False)
    with pytest.raises(ValueError, match="call update first"):
        grid.occupied(torch.zeros(1, 1, 3))
    grid.update(torch.zeros(1, 3), 100)  # no centre is that near, the nearest are at 0.43
    assert not grid.occupied(torch.zeros(1, 1, 3)).any()
    grid = OccupancyGrid(_ball(0.5), torch.relu, 8, 2.0, 0.5, False)
    grid.update(torch.zeros(1, 3), 100)  # the eight around the origin, dilated to four cells of 0.5 along each axis
    places = torch.tensor([[0.99, 0.99, 0.99], [1.01, 0, 0], [0, 0, -1.01], [-0.99, 0, 0], [2.1, 0, 0], [0, -9.0, 0]])
    assert grid.occupied(places[:, None]).flatten().tolist() == [True, False, False, True, True, True]


def test_a_grid_is_evaluated_once_and_again_when_the_field_changes():
    level = torch.zeros(1)
    field, counts = _counting(lambda points: _balls(points) + level)
    renderer = VolumeRenderer(2.0, 6.0, 16, radius=1.0, occupancy=Occupancy(16, 0.0, 0.0))
    with torch.no_grad():
        reconstruction = renderer.reconstruct(field, _rays(2, 5))
        assert counts.count(max(counts)) == 1
        most = max(counts)
        for _ in range(3):
            reconstruction.render(_rays(2, 4))
        assert counts.count(most) == 1
        level += 5  # as an optimizer does
        actual = reconstruction.render(_rays(2, 50))
        assert counts.count(most) == 2
        expected = VolumeRenderer(2.0, 6.0, 16, radius=1.0).rendered(field, _rays(2, 50))
    _assert_close(actual, expected, 1e-6)
    assert torch.equal(renderer.reconstruction(field, actual).values, actual.values)


@pytest.mark.parametrize("shape", [(23,), (2, 23)], ids=["shared", "per_instance"])
@pytest.mark.parametrize("more", [0, 8])
def test_chunks_change_nothing(shape, more):
    rays, occupancy = _rays(*shape, draws=True, dtype=torch.float64), Occupancy(16)
    with torch.no_grad():
        expected = VolumeRenderer(2.0, 6.0, 16, more, radius=1.0, occupancy=occupancy).rendered(_balls, rays)
        for chunk_size in (1, 100, 333):
            field, counts = _counting(_balls)
            renderer = VolumeRenderer(2.0, 6.0, 16, more, radius=1.0, occupancy=occupancy, chunk_size=chunk_size)
            _assert_close(renderer.rendered(field, rays), expected, 1e-9)
            if chunk_size > 100:
                assert max(counts[1:]) * (len(shape) == 2 or 1) <= chunk_size  # the first is that of the probe


def test_instances_do_not_depend_on_each_other():
    rays, renderer = _rays(2, 30), VolumeRenderer(2.0, 6.0, SAMPLES, radius=1.0, occupancy=Occupancy(16))
    with torch.no_grad():
        together = renderer.rendered(_balls, rays)
        for instance in range(2):
            alone = renderer.rendered(lambda points, i=instance: _balls(points)[i : i + 1], rays[instance][None])
            torch.testing.assert_close(alone.values[0], together.values[instance], atol=1e-6, rtol=0)


def test_skipping_works_under_autocast(make_network, make_modulations):
    network = make_network(coord_dim=3, value_dim=4, encoding=FourierFeatures(2, 4, use_pi=False))
    field, rays = network.bind(make_modulations(network, 2)), _rays(2, 30)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = VolumeRenderer(2.0, 6.0, 16, radius=1.0).rendered(field, rays)
        actual = VolumeRenderer(2.0, 6.0, 16, radius=1.0, occupancy=Occupancy(24, 0.0, 0.0)).rendered(field, rays)
    assert {part.dtype for part in actual[:3]} == {torch.float32}
    _assert_close(actual, expected, 0.02)


# Spheres


def test_depths_in_a_sphere_equal_roots_of_a_polynomial():
    rays = _rays(40, dtype=torch.float64)
    first, last = sphere_depths(rays, 0.5, 2.0, 4.2)
    hit = 0
    for ray, start, stop in zip(rays.numpy(), first.tolist(), last.tolist(), strict=True):
        origin, direction = ray[:3], ray[3:]
        roots = np.roots([direction @ direction, 2 * origin @ direction, origin @ origin - 0.25])
        if np.iscomplexobj(roots):
            assert stop <= start
            continue
        hit += 1
        np.testing.assert_allclose([start, stop], np.clip(sorted(roots), 2.0, 4.2), atol=1e-9)
    assert 5 < hit < 35


def test_rays_that_miss_the_sphere_are_background_and_others_are_sampled_inside():
    rays = torch.tensor([[0.0, 0, 4, 0, 0, -1], [0.0, 3, 4, 0, 0, -1]])
    places = []

    def solid(points):
        places.append(points)
        return torch.cat((points * 0, points[..., :1] * 0 + 5), dim=-1)[None]

    for grad in (False, True):
        places.clear()
        with torch.set_grad_enabled(grad):
            rendered = VolumeRenderer(2.0, 6.0, 9, radius=1.0, background=0.25).rendered(solid, rays)
        assert rendered.opacity[0].tolist() == [pytest.approx(1 - math.exp(-5 * 2.001), abs=1e-5), 0]
        assert rendered.values[0, 1].tolist() == [0.25] * 3
        assert rendered.depth[0, 1] == 6
        torch.testing.assert_close(torch.cat(places)[:, 2], torch.linspace(1, -1, 9), atol=1e-5, rtol=0)


# Training


def _trained(make_network, make_modulations, shape, dtype=torch.float64):
    """Return a network with modulations of two instances whose density is positive in a part of space, and rays."""
    torch.manual_seed(0)
    network = make_network(coord_dim=3, value_dim=4, encoding=FourierFeatures(3, 4, use_pi=False)).to(dtype)
    modulations = {name: value.to(dtype).requires_grad_() for name, value in make_modulations(network, 2).items()}
    rays = _rays(*shape, draws=True, dtype=dtype)
    with torch.no_grad():
        last = network.biases[str(network.num_layers - 1)]
        points = 1.4 * torch.rand(2000, 3, dtype=dtype) - 0.7
        last[3] -= network(points, modulations)[..., 3].flatten().quantile(0.8)
    return network, modulations, rays


def _gradients(renderer, network, modulations, rays, field=None):
    parameters = [*network.parameters(), *modulations.values()]
    values = renderer.rendered(field or network.bind(modulations), rays).values
    loss = (values - 0.3).square().sum()
    return values.detach(), torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("shape", [(100,), (2, 60)], ids=["shared", "per_instance"])
@pytest.mark.parametrize("changes", [{}, {"radius": 0.8}, {"importance_samples": 40}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_sparse_gradients_equal_all_gradients(make_network, make_modulations, shape, changes, dtype, tolerance):
    network, modulations, rays = _trained(make_network, make_modulations, shape, dtype)
    counted, counts = _counting(network.bind(modulations))
    plain = VolumeRenderer(2.0, 6.0, SAMPLES, sparse_gradients=False, **changes)
    expected_values, expected = _gradients(plain, network, modulations, rays)
    sparse = VolumeRenderer(2.0, 6.0, SAMPLES, **changes)
    values, actual = _gradients(sparse, network, modulations, rays, counted)
    assert len(counts) >= 3  # a probe, all samples without gradients, some with gradients
    torch.testing.assert_close(values, expected_values, atol=tolerance, rtol=0)
    for gradient, reference in zip(actual, expected, strict=True):
        assert reference.abs().max() > 0
        assert (gradient - reference).abs().max() <= tolerance * reference.abs().max()


def test_sparse_gradients_can_be_differentiated_again(make_network, make_modulations):
    network, modulations, rays = _trained(make_network, make_modulations, (2, 60))
    results = []
    for sparse in (False, True):
        renderer = VolumeRenderer(2.0, 6.0, SAMPLES, radius=0.9, sparse_gradients=sparse)
        loss = (renderer(network.bind(modulations), rays) - 0.3).square().sum()
        (inner,) = torch.autograd.grad(loss, list(modulations.values()), create_graph=True)
        moved = {name: value - 0.01 * inner for name, value in modulations.items()}
        outer = (renderer(network.bind(moved), rays) - 0.1).square().sum()
        results.append(torch.autograd.grad(outer, [*network.parameters(), *modulations.values()]))
    for expected, actual in zip(*results, strict=True):
        assert (actual - expected).abs().max() <= 1e-8 * expected.abs().max()


@pytest.mark.parametrize("radius", [None, 0.01])
def test_all_parameters_have_gradients_where_no_sample_has_density(make_network, make_modulations, radius):
    network, modulations, rays = _trained(make_network, make_modulations, (2, 60))
    with torch.no_grad():
        network.biases[str(network.num_layers - 1)][3] = -1e3
    VolumeRenderer(2.0, 6.0, SAMPLES, radius=radius)(network.bind(modulations), rays).sum().backward()
    for parameter in [*network.parameters(), *modulations.values()]:
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_dense_fields_are_evaluated_once(make_network, make_modulations):
    network, modulations, rays = _trained(make_network, make_modulations, (2, 60))
    with torch.no_grad():
        network.biases[str(network.num_layers - 1)][3] += 1e3
    field, counts = _counting(network.bind(modulations))
    _, gradients = _gradients(VolumeRenderer(2.0, 6.0, SAMPLES), network, modulations, rays, field)
    assert counts == [4 * SAMPLES, 60 * SAMPLES]  # every sixteenth ray, then all
    _, expected = _gradients(VolumeRenderer(2.0, 6.0, SAMPLES, sparse_gradients=False), network, modulations, rays)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert torch.equal(gradient, reference)


def test_sparse_gradients_are_exact_under_autocast(make_network, make_modulations):
    network, modulations, rays = _trained(make_network, make_modulations, (2, 60), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        _, actual = _gradients(VolumeRenderer(2.0, 6.0, SAMPLES), network, modulations, rays)
        _, expected = _gradients(VolumeRenderer(2.0, 6.0, SAMPLES, sparse_gradients=False), network, modulations, rays)
    for gradient, reference in zip(actual, expected, strict=True):
        assert (gradient - reference).abs().max() <= 0.05 * reference.abs().max()


# Parts


def test_leading_indices_are_distinct_and_true_first():
    mask = torch.rand(5, 40) < torch.tensor([[0.0], [0.1], [0.5], [0.9], [1.0]])
    for rows in (mask, mask[2:3], mask[:1]):
        indices = leading_indices(rows)
        assert indices.shape == (len(rows), max(1, int(rows.sum(-1).max())))
        for row, chosen in zip(rows, indices.tolist(), strict=True):
            assert len(set(chosen)) == len(chosen)
            assert [bool(row[index]) for index in chosen] == sorted(
                (bool(row[index]) for index in chosen), reverse=True
            )
            assert set(row.nonzero().flatten().tolist()) <= set(chosen)


@pytest.mark.parametrize("shared", [False, True])
def test_a_field_is_evaluated_where_asked_and_other_outputs_are_kept(shared):
    points = torch.randn(3, 5, 3) if shared else torch.randn(2, 3, 5, 3)
    where, kept = torch.rand(2, 3, 5) < 0.4, torch.randn(2, 3, 5, 4)
    expected = _balls(points.flatten(-3, -2)).view(2, 3, 5, 4)
    torch.testing.assert_close(
        evaluate_where(_balls, points, where, kept), torch.where(where[..., None], expected, kept), atol=0, rtol=0
    )
    empty = torch.tensor([0.0, 0.0, 0.0, -torch.inf])
    torch.testing.assert_close(
        evaluate_where(_balls, points, where), torch.where(where[..., None], expected, empty), atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Occupancy, {"cells": 0}, "cells is 0"),
        (Occupancy, {"empty_opacity": 1.0}, "empty_opacity is 1.0"),
        (Occupancy, {"empty_opacity": -0.1}, "empty_opacity is -0.1"),
        (Occupancy, {"min_transmittance": 1.0}, "min_transmittance 1.0"),
        (VolumeRenderer, {"radius": 0.0}, "radius is 0.0; it must be a positive length"),
        (VolumeRenderer, {"radius": float("inf")}, "radius is inf"),
        (VolumeRenderer, {"radius": float("nan")}, "radius is nan"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_rejected(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
