"""Mixtures of principal components: against naive loops, and on patches of known clusters."""

import numpy as np
import pytest
import torch

from composers.latents import PatchMixture
from composers.latents.mixture import fit_mixture, in_chunks


def _patches(count, values=6, rank=6):
    """Return patches of a given rank."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, rank, generator=generator) @ torch.randn(rank, values, generator=generator) + 3


def _mixture(clusters=4, values=7, numbers=3, dtype=torch.float32):
    """Return a random mixture."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(clusters, values, numbers, generator=generator, dtype=dtype))[0]
    means = torch.randn(clusters, values, generator=generator, dtype=dtype)
    return PatchMixture(means, directions, 0.5 + torch.rand(numbers, generator=generator, dtype=dtype))


def _decoded(mixture, codes):
    """Return the patches of codes ``(T, K)`` of several clusters, code by code."""
    patches = []
    for code in codes:
        index = int(code[0])
        patches.append(mixture.means[index] + mixture.directions[index] @ (code[1:] * mixture.scales))
    return torch.stack(patches)


def _subspaces(count=900, values=12, clusters=3, rank=2):
    """Return patches in three random affine subspaces, and the cluster of each."""
    generator = torch.Generator().manual_seed(2)
    means = 2 * torch.randn(clusters, values, generator=generator)
    spans = torch.randn(clusters, rank, values, generator=generator)
    index = torch.arange(count) % clusters
    weights = torch.randn(count, 1, rank, generator=generator)
    return means[index] + (weights @ spans[index]).squeeze(1), index


@pytest.mark.parametrize("code_dim", [3, 6, 9])
def test_codes_of_one_cluster_are_uncorrelated_and_of_unit_variance(code_dim):
    patches = _patches(50)
    codes = fit_mixture(patches, code_dim, 1).encode(patches).double()
    expected = torch.diag((torch.arange(code_dim) < 6).double())
    torch.testing.assert_close(codes.mean(0), torch.zeros(code_dim).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(codes.mT @ codes / 50, expected, atol=1e-4, rtol=0)


def test_one_cluster_is_pca():
    patches = _patches(50)
    mixture = fit_mixture(patches, 2, 1)
    centred = patches.numpy() - patches.numpy().mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:2].T @ directions[:2]
    actual = (mixture.encode(patches) * mixture.scales) @ mixture.directions[0].mT
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_patch_has_the_code_of_the_cluster_that_reconstructs_it_best(dtype):
    mixture = _mixture(dtype=dtype)
    patches = torch.randn(2, 5, 4, 7, generator=torch.Generator().manual_seed(3), dtype=dtype)
    actual = mixture.encode(patches)
    assert (actual.shape, actual.dtype) == ((2, 5, 4, 4), dtype)
    for patch, code in zip(patches.view(-1, 7), actual.view(-1, 4), strict=True):
        errors, codes = [], []
        for index in range(4):
            mean, directions = mixture.means[index], mixture.directions[index]
            projected = torch.stack([directions[:, j] @ (patch - mean) for j in range(3)])
            errors.append((mean + sum(projected[j] * directions[:, j] for j in range(3)) - patch).square().sum())
            codes.append(torch.cat((torch.tensor([float(index)], dtype=dtype), projected / mixture.scales)))
        expected = codes[int(torch.stack(errors).argmin())]
        torch.testing.assert_close(code, expected, atol=1e-5, rtol=1e-5)
    assert len(actual[..., 0].unique()) == 4


def test_the_cluster_is_found_far_from_zero():
    mixture = _mixture()
    patches = _decoded(mixture, torch.tensor([[index, 0.1, -0.2, 0.3] for index in range(4)]))
    moved = mixture._replace(means=mixture.means + 1000)
    assert moved.encode(patches + 1000)[:, 0].tolist() == [0, 1, 2, 3]


def test_encoding_a_reconstruction_gives_its_code():
    mixture = _mixture()
    patches = torch.randn(60, 7, generator=torch.Generator().manual_seed(3))
    codes = mixture.encode(patches)
    decoded = _decoded(mixture, codes)
    torch.testing.assert_close(mixture.encode(decoded), codes, atol=1e-5, rtol=1e-5)
    assert (decoded - patches).square().sum() < (patches - mixture.means.mean(0)).square().sum()


def test_single_patches_and_none_are_encoded():
    mixture = _mixture()
    assert torch.equal(mixture.encode(torch.ones(7)), mixture.encode(torch.ones(1, 7))[0])
    assert mixture.encode(torch.ones(0, 7)).shape == (0, 4)


def test_patches_of_another_dtype_are_encoded_in_that_of_the_mixture():
    patches = torch.randn(9, 7, generator=torch.Generator().manual_seed(3))
    codes = _mixture().encode(patches.double())
    assert torch.equal(codes, _mixture().encode(patches))


def test_chunks_give_what_all_rows_give(monkeypatch):
    rows, sizes = torch.arange(10.0).unsqueeze(-1), []
    monkeypatch.setattr("composers.latents.mixture._CHUNK", 4)

    def squared(part):
        sizes.append(len(part))
        return part.square()

    assert torch.equal(in_chunks(squared, rows), rows.square())
    assert sizes == [4, 4, 2]


def test_a_mixture_recovers_subspaces_that_pca_cannot():
    patches, clusters = _subspaces()
    mixture = fit_mixture(patches, 3, 3)
    codes = mixture.encode(patches)
    error = (_decoded(mixture, codes) - patches).square().mean()
    single = fit_mixture(patches, 3, 1)
    linear = (single.encode(patches) * single.scales) @ single.directions[0].mT + single.means[0]
    assert error < 1e-3 * (linear - patches).square().mean()
    for cluster in range(3):
        assert len(codes[clusters == cluster, 0].unique()) == 1


def test_numbers_have_unit_variance_and_clusters_increasing_variance():
    patches, _ = _subspaces()
    patches[::3] *= 3
    mixture = fit_mixture(patches, 3, 3)
    codes = mixture.encode(patches)
    torch.testing.assert_close(codes[:, 1:].square().mean(0), torch.ones(2), atol=1e-3, rtol=0)
    members = [patches[codes[:, 0] == index] for index in range(3)]
    variances = [part.var(0, correction=0).sum().item() for part in members if len(part)]
    assert variances == sorted(variances)


def test_directions_are_orthonormal():
    directions = fit_mixture(_subspaces()[0], 4, 5).directions
    torch.testing.assert_close(directions.mT @ directions, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)


def test_a_mixture_depends_on_the_patches_alone():
    patches, _ = _subspaces()
    torch.manual_seed(7)
    expected, number = fit_mixture(patches, 3, 4), torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), number)
    assert all(map(torch.equal, fit_mixture(patches, 3, 4), expected))


def test_many_patches_are_thinned_out_evenly(monkeypatch):
    patches, _ = _subspaces()
    monkeypatch.setattr("composers.latents.mixture._MAX_PATCHES", 450)
    expected = fit_mixture(patches[torch.linspace(0, 899, 450).long()], 3, 3)
    assert all(map(torch.equal, fit_mixture(patches, 3, 3), expected))


@pytest.mark.parametrize("clusters", [1, 3])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_codes_of_constant_patches_are_zero(clusters, value):
    patches = torch.full((9, 4), value)
    mixture = fit_mixture(patches, 3, clusters)
    codes = mixture.encode(patches)
    assert not codes[:, int(clusters > 1) :].any()
    torch.testing.assert_close(mixture.means[codes[:, 0].long() if clusters > 1 else [0] * 9], patches)
    assert mixture.encode(torch.randn(20, 4)).isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_patches_than_clusters_are_reconstructed(count):
    patches = _patches(count)
    mixture = fit_mixture(patches, 4, 8)
    assert mixture.means.shape == (8, 6)
    assert all(part.isfinite().all() for part in mixture)
    torch.testing.assert_close(_decoded(mixture, mixture.encode(patches)), patches, atol=1e-3, rtol=0)


def test_more_numbers_than_values_are_zero():
    patches = _patches(40)
    mixture = fit_mixture(patches, 9, 2)
    codes = mixture.encode(patches)
    assert codes.shape == (40, 9)
    assert not codes[:, 7:].any()
    torch.testing.assert_close(_decoded(mixture, codes), patches, atol=1e-4, rtol=0)
