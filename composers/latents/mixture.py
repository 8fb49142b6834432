"""Mixtures of principal components: patches in clusters, each with directions of its own, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from composers.latents.linear_start import principal_components

_MAX_PATCHES = 1 << 17  # from which clusters are learned
_ITERATIONS = 8
_PRIOR = 20.0  # patches of the whole set that count in the covariance of every cluster
_SMALLEST_CODED = 1e-8  # variance relative to the largest; a code has unit variance, which would amplify smaller ones
_CHUNK = 8192  # patches


class PatchMixture(NamedTuple):
    """Principal directions of clusters of patches, on which patches are projected (after Tipping and Bishop, 1999).

    The code of a patch is its projection to the directions of the cluster that represents it best. With several clusters, the
    index of the cluster is the first number of the code.

    Attributes:
        means: ``(X, P)``, the mean patch of every cluster.
        directions: Orthonormal columns ``(X, P, J)``.
        scales: ``(J,)``, by which projections are divided, so that they have unit variance on the training data.
    """

    means: Tensor
    directions: Tensor
    scales: Tensor

    def encode(self, patches: Tensor) -> Tensor:
        """Return the codes ``(..., K)`` of patches ``(..., P)``: ``K = J``, or ``J + 1`` with several clusters."""
        flat = patches.flatten(0, -2)
        codes: Tensor = torch.cat([self._encode(part) for part in flat.split(_CHUNK)])
        return codes.reshape(*patches.shape[:-1], codes.shape[-1])

    def _encode(self, patches: Tensor) -> Tensor:
        """Return the codes of patches ``(T, P)``."""
        clusters, values, numbers = self.directions.shape
        columns = self.directions.movedim(0, 1).reshape(values, clusters * numbers)
        offsets = torch.einsum("xp,xpj->xj", self.means, self.directions)
        projections: Tensor = (patches @ columns).view(-1, clusters, numbers) - offsets  # (T, X, J)
        if clusters == 1:
            return projections.squeeze(1) / self.scales
        distances = self.means.square().sum(-1) - 2 * patches @ self.means.mT - projections.square().sum(-1)
        index = distances.argmin(-1)
        nearest = projections[torch.arange(len(patches), device=patches.device), index]
        return torch.cat((index.unsqueeze(-1).to(nearest), nearest / self.scales), dim=-1)


def fit_mixture(patches: Tensor, code_dim: int, num_clusters: int) -> PatchMixture:
    """Return the mixture of principal components of training patches.

    Patches are assigned to clusters and the directions of every cluster computed in turn, as in k-means. The result depends
    on the patches alone.

    Args:
        patches: ``(T, P)``.
        code_dim: ``K``, numbers of a code, with several clusters including the index of the cluster.
        num_clusters: ``X``; reduced where there are too few patches.
    """
    if num_clusters == 1:
        return _single(patches, code_dim)
    if len(patches) > _MAX_PATCHES:
        patches = patches[torch.linspace(0, len(patches) - 1, _MAX_PATCHES).long()]
    patches = patches.float()
    prior = _covariance(patches - patches.mean(0)) / len(patches)
    assigned = _first_assignment(patches, num_clusters)
    for _ in range(_ITERATIONS):
        mixture = _of_assignment(patches, assigned, num_clusters, code_dim - 1, prior)
        assigned = mixture.encode(patches)[:, 0].long()
    spread = torch.stack(
        [(patches[assigned == index] - mean).square().sum() for index, mean in enumerate(mixture.means)]
    )
    order = (spread / assigned.bincount(minlength=num_clusters).clamp(min=1)).argsort()
    mixture = PatchMixture(mixture.means[order], mixture.directions[order], mixture.scales)
    return mixture._replace(scales=mixture.encode(patches)[:, 1:].square().mean(0).sqrt().clamp(min=1e-6))


def _single(patches: Tensor, code_dim: int) -> PatchMixture:
    """Return the principal components of all patches; components without variance, and those beyond ``P``, are coded as 0."""
    mean, variances, directions = principal_components(patches)
    coded = (variances > _SMALLEST_CODED * variances[:1]) & (torch.arange(len(variances)) < code_dim)
    missing = code_dim - int(coded.sum())
    directions = functional.pad(directions[:, coded], (0, missing))
    scales = functional.pad(variances[coded].sqrt(), (0, missing), value=1.0)
    return PatchMixture(mean[None].float(), directions[None].float(), scales.float())


def _first_assignment(patches: Tensor, num_clusters: int) -> Tensor:
    """Return the index ``(T,)`` of the seed, one of the patches, that every patch resembles most up to mean and scale."""
    shapes = functional.normalize(patches - patches.mean(-1, keepdim=True), dim=-1)
    generator = torch.Generator().manual_seed(0)
    seeds = shapes[torch.randint(len(patches), (num_clusters,), generator=generator)]
    return torch.cat([(part @ seeds.mT).argmax(-1) for part in shapes.split(_CHUNK)])


def _of_assignment(patches: Tensor, assigned: Tensor, num_clusters: int, numbers: int, prior: Tensor) -> PatchMixture:
    """Return the mean and the first ``numbers`` directions of every cluster."""
    means, covariances = [], []
    for index in range(num_clusters):
        members = patches[assigned == index]
        mean = members.mean(0) if len(members) else patches[index % len(patches)]
        means.append(mean)
        covariances.append(_covariance(members - mean) + _PRIOR * prior)
    directions = torch.linalg.eigh(torch.stack(covariances))[1].flip(-1)[..., :numbers]
    missing = numbers - directions.shape[-1]
    return PatchMixture(torch.stack(means), functional.pad(directions, (0, missing)), patches.new_ones(numbers))


def _covariance(centred: Tensor) -> Tensor:
    """Return the sum of outer products ``(P, P)`` of rows."""
    return centred.mT @ centred
