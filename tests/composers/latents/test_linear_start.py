"""Linear coding of patches: against a naive PCA and regression."""

import numpy as np
import pytest
import torch

from composers.latents.linear_start import principal_components, ridge


def _patches(count, values=6, rank=6):
    """Return patches of a given rank."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, rank, generator=generator) @ torch.randn(rank, values, generator=generator) + 3


@pytest.mark.parametrize(("count", "rank"), [(40, 6), (40, 3), (4, 6), (1, 6)])
def test_principal_components_are_those_of_a_singular_value_decomposition(count, rank):
    patches = _patches(count, rank=rank)
    numbers = patches.double().numpy()
    _, lengths, directions = np.linalg.svd(numbers - numbers.mean(0), full_matrices=False)
    kept = lengths > 1e-5 * max(lengths[0], 1e-9)
    mean, variances, actual = principal_components(patches)
    np.testing.assert_allclose(mean, numbers.mean(0))
    np.testing.assert_allclose(variances, lengths[kept] ** 2 / count, rtol=1e-9)
    signs = np.sign((actual.numpy() * directions[kept].T).sum(0))
    np.testing.assert_allclose(actual, directions[kept].T * signs, atol=1e-9)


def test_the_regression_is_that_of_least_squares():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 4, generator=generator)
    targets = inputs @ torch.randn(4, 3, generator=generator) + 2 + 0.1 * torch.randn(200, 3, generator=generator)
    weight, bias = ridge(inputs, targets)
    with_ones = np.concatenate([inputs.numpy(), np.ones((200, 1))], axis=1)
    expected = np.linalg.lstsq(with_ones, targets.numpy(), rcond=None)[0]
    np.testing.assert_allclose(weight.T, expected[:4], atol=1e-3)
    np.testing.assert_allclose(bias, expected[4], atol=1e-3)


def test_the_regression_from_constants_is_the_mean():
    weight, bias = ridge(torch.ones(5, 2), torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]))
    assert not weight.any()
    assert bias.tolist() == [3.0]
