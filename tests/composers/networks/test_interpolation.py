"""Linear interpolation of maps, judged by closed forms, finite differences and SciPy."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from composers.networks.interpolation import gathered, interpolate


def _maps(*sizes):
    """Return random maps of two instances with three channels."""
    return torch.randn(2, 3, *sizes, generator=torch.Generator().manual_seed(0))


def _positions(dimensions, count=50, span=1.2):
    """Return positions, some of them beyond the map."""
    return span * (2 * torch.rand(2, count, dimensions, generator=torch.Generator().manual_seed(1)) - 1)


@pytest.mark.parametrize("sizes", [(4, 7), (3, 5, 4), (1, 2, 6)], ids=str)
def test_values_equal_those_of_scipy(sizes):
    maps, positions = _maps(*sizes), _positions(len(sizes))
    values = interpolate(maps, positions)
    for instance in range(2):
        centres = [(np.arange(size) + 0.5) * 2 / size - 1 for size in sizes]
        table = maps[instance].movedim(0, -1).numpy()
        for axis, size in enumerate(sizes):  # SciPy needs two points per axis
            if size == 1:
                centres[axis], table = np.array([-1.0, 1.0]), table.repeat(2, axis)
        limits = [np.clip(positions[instance, :, axis].numpy(), ends[0], ends[-1]) for axis, ends in enumerate(centres)]
        expected = RegularGridInterpolator(centres, table)(np.stack(limits, axis=-1))
        np.testing.assert_allclose(values[instance].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 7), (3, 5, 4)], ids=str)
def test_both_forms_have_the_same_values_and_gradients(sizes):
    maps, positions = _maps(*sizes).requires_grad_(), _positions(len(sizes)).requires_grad_()
    results = []
    for form in (interpolate, gathered):
        values = form(maps, positions)
        results.append((values, *torch.autograd.grad(values.square().sum(), (maps, positions))))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(4, 5), (3, 2, 4)], ids=str)
def test_gradients_of_gradients_are_exact(sizes):
    maps, positions = _maps(*sizes).requires_grad_(), _positions(len(sizes), 6, 0.5).requires_grad_()

    def slope(form, maps, positions):
        (gradient,) = torch.autograd.grad(form(maps, positions).square().sum(), maps, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (maps, positions))

    for fast, slow in zip(slope(interpolate, maps, positions), slope(gathered, maps, positions), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-3, rtol=1e-4)
    assert torch.autograd.gradgradcheck(gathered, (maps.double(), positions.double()))


def test_only_needed_gradients_are_computed():
    maps, positions = _maps(4, 5), _positions(2).requires_grad_()
    interpolate(maps, positions).sum().backward()
    assert positions.grad is not None
    assert maps.grad is None


def test_precision_does_not_follow_autocast():
    maps, positions = _maps(64, 64), _positions(2)
    with torch.autocast("cpu", torch.bfloat16):
        values = interpolate(maps.bfloat16(), positions)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, interpolate(maps.bfloat16().float(), positions))
