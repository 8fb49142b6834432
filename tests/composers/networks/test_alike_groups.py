"""Groups of routes with equal positions, for which the shared layers of a patch-wise network are computed once."""

import pytest
import torch
from coordinates import grid

from composers.networks import PatchModulations, PatchwiseMLP
from composers.networks.routing import alike_groups


def _network(axes, overlap):
    torch.manual_seed(0)
    return PatchwiseMLP(coord_dim=axes, value_dim=2, patch_size=4, hidden_dim=8, rank=3, overlap=overlap)


def _modulations(network, cells, extent):
    """Return random patterns of two instances."""
    count = torch.tensor(cells).prod()
    patterns = torch.randn(2, count, network.input_dim, network.rank) / network.input_dim**0.5
    return PatchModulations(patterns.flatten(2), lambda tokens: tokens.unflatten(-1, patterns.shape[2:]), cells, extent)


@pytest.mark.parametrize("overlap", [0.0, 0.2], ids=["without blending", "blended"])
@pytest.mark.parametrize(("cells", "extent"), [((5,), (20,)), ((9, 8), (35, 32))], ids=["audio", "cut image"])
def test_shared_layers_of_alike_groups_change_no_values(cells, extent, overlap, monkeypatch):
    network = _network(len(cells), overlap)
    modulations, coords = _modulations(network, cells, extent), grid(extent)
    sizes = []
    original = PatchwiseMLP._values
    monkeypatch.setattr(
        PatchwiseMLP,
        "_values",
        lambda self, local, patterns: sizes.append((len(local), patterns.shape[1])) or original(self, local, patterns),
    )
    actual = network(coords, modulations)
    assert sizes[-1][0] == 1 < sizes[-1][1]  # one group of positions for several patches
    expected = torch.cat([network(coord[None], modulations) for coord in coords[::5]], dim=1)
    torch.testing.assert_close(actual[:, ::5], expected, atol=1e-5, rtol=0)


def test_derivatives_with_respect_to_coordinates_belong_to_their_own_group():
    network = _network(1, 0.0)
    modulations, coords = _modulations(network, (6,), (24,)), grid((24,)).requires_grad_()
    (actual,) = torch.autograd.grad(network(coords, modulations).sum(), coords)
    step = 1e-3
    with torch.no_grad():
        difference = network(coords + step, modulations) - network(coords - step, modulations)
    expected = difference.sum((0, 2))[:, None] / (2 * step)
    smooth = (actual - expected).abs() < 0.05 * expected.abs().max()  # but for the kinks of ReLUs
    assert smooth.float().mean() > 0.8
    assert alike_groups(coords.view(6, 4, 1))[0].tolist() == []


def test_alike_groups_are_those_of_the_middle_up_to_rounding():
    local = torch.tensor([[0.5, 0.6], [0.1, 0.2], [0.1, 0.2], [0.10001, 0.2], [0.1, 0.3]])[..., None]
    alike, others = alike_groups(local)
    assert (alike.tolist(), others.tolist()) == ([1, 2, 3], [0, 4])


def test_few_groups_are_not_alike():
    alike, others = alike_groups(torch.arange(5.0).view(5, 1, 1))
    assert (alike.tolist(), others.tolist()) == ([], [0, 1, 2, 3, 4])
