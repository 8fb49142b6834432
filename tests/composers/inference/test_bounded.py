"""Evaluation in parts whose activations are recomputed."""

import pytest
import torch
from patches import build_patch_ipc

from composers.inference.bounded import bounded
from datamodules.batch import Observation, Samples
from datamodules.domain import Grid


class _Counted:
    """A field ``(B, N, 1)`` with a latent, which records the number of coordinates of every evaluation."""

    def __init__(self, latent):
        self.latent, self.evaluations = latent, []

    def __call__(self, coords):
        self.evaluations.append(coords.shape[-2])
        return torch.sin(self.latent[:, None, None] * coords.sum(-1, keepdim=True))


@pytest.mark.parametrize("shape", [(7, 2), (3, 7, 2)], ids=["shared", "per instance"])
def test_values_and_gradients_are_those_of_the_field(shape):
    latent, coords = torch.randn(3, requires_grad=True), torch.rand(shape)
    field = _Counted(latent)
    expected = field(coords)
    [expected_gradient] = torch.autograd.grad(expected.square().sum(), latent)
    field.evaluations.clear()
    actual = bounded(field, 10, max_kept=35)(coords)
    assert field.evaluations == [3, 3, 1]
    [gradient] = torch.autograd.grad(actual.square().sum(), latent)
    assert sorted(field.evaluations) == [1, 1, 3, 3, 3, 3]  # recomputed
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_few_coordinates_are_evaluated_once():
    field, coords = _Counted(torch.randn(3, requires_grad=True)), torch.rand(7, 2)
    bounded(field, 10, max_kept=70)(coords)
    with torch.no_grad():
        bounded(field, 10, max_kept=35)(coords)
    assert field.evaluations == [7, 7]


def test_refinement_in_parts_ends_at_the_same_codes(monkeypatch):
    composer, signal = build_patch_ipc(), torch.rand(2, 3, 10, 13)
    samples = Samples(Grid.unit(2).coords((10, 13)), signal.flatten(2).mT)
    observation = Observation(signal, samples)
    with torch.no_grad():
        latents, layout = composer.encode(observation), composer.layout(observation)
    expected = composer.refine(latents, samples, layout=layout)
    monkeypatch.setattr(bounded, "__defaults__", (2 * composer.network.floats_per_coord * 17,))
    actual = composer.refine(latents, samples, layout=layout)
    assert (expected[3]["codes"] - expected[0]["codes"]).abs().max() > 0.01
    torch.testing.assert_close(actual[3]["codes"], expected[3]["codes"], rtol=1e-4, atol=1e-5)
