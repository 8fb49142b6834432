"""Mixtures of principal components: one cluster is PCA; the cluster of a patch is the one that represents it best."""

import pytest
import torch

from composers.latents.mixture import fit_mixture


def _patches(count=50, values=6):
    """Return patches of full rank."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, values, generator=generator) @ torch.randn(values, values, generator=generator) + 3


@pytest.mark.parametrize("code_dim", [3, 6, 9])
def test_codes_of_one_cluster_are_uncorrelated_and_of_unit_variance(code_dim):
    patches = _patches()
    codes = fit_mixture(patches, code_dim, 1).encode(patches).double()
    expected = torch.diag((torch.arange(code_dim) < 6).double())
    torch.testing.assert_close(codes.mean(0), torch.zeros(code_dim).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(codes.mT @ codes / 50, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_clusters", [1, 3])
def test_codes_of_constant_patches_are_zero(num_clusters):
    patches = torch.full((9, 4), 0.3)
    codes = fit_mixture(patches, 2, num_clusters).encode(patches)
    assert codes[:, num_clusters > 1 :].abs().max() < 1e-3


def _reconstructions(mixture, patch):
    """Return the reconstruction of a patch by every cluster."""
    return [
        mean + directions @ (directions.mT @ (patch - mean))
        for mean, directions in zip(mixture.means, mixture.directions, strict=True)
    ]


def test_a_patch_belongs_to_the_cluster_that_represents_it_best():
    patches = _patches(200)
    mixture = fit_mixture(patches, 3, 5)
    codes = mixture.encode(patches.view(10, 20, 6)).flatten(0, 1)
    for patch, (index, *numbers) in zip(patches, codes.tolist(), strict=True):
        reconstructions = _reconstructions(mixture, patch)
        errors = torch.stack([(part - patch).square().sum() for part in reconstructions])
        assert errors[int(index)] <= errors.min() + 1e-4
        actual = mixture.means[int(index)] + mixture.directions[int(index)] @ (torch.tensor(numbers) * mixture.scales)
        torch.testing.assert_close(actual, reconstructions[int(index)], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(codes[:, 1:].square().mean(0), torch.ones(2), atol=1e-3, rtol=0)


def test_clusters_represent_patches_of_two_kinds_better_than_one():
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(400, 6, generator=generator) * torch.tensor([[3.0, 3.0, 0.1, 0.1, 0.1, 0.1]])
    patches[200:] = patches[200:].flip(1) + 20
    mixture, single = (fit_mixture(patches, 3, clusters) for clusters in (8, 1))
    errors = []
    for fitted in (mixture, single):
        best = [min((part - patch).square().sum() for part in _reconstructions(fitted, patch)) for patch in patches]
        errors.append(torch.stack(best).mean())
    assert errors[0] < 0.5 * errors[1]


def test_more_clusters_than_patches_and_more_numbers_than_values_are_possible():
    patches = _patches(3, 4)
    codes = fit_mixture(patches, 9, 5).encode(patches)
    assert codes.shape == (3, 9)
    assert codes.isfinite().all()


def test_a_fit_depends_on_the_patches_alone():
    patches = _patches()
    torch.manual_seed(1)
    first = fit_mixture(patches, 3, 4)
    state = torch.get_rng_state()
    second = fit_mixture(patches, 3, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, second))
