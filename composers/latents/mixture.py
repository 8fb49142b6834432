"""Mixtures of principal components: patches in clusters, each with directions of its own, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from composers.latents.linear_start import principal_components

_MAX_PATCHES = 1 << 17  # from which clusters are learned
_ITERATIONS = 8
_PRIOR = 20.0  # patches of the whole set that count in the covariance of every cluster
_SMALLEST_CODED = 1e-8  # variance relative to the largest; a code has unit variance, which would amplify smaller ones
_SMALLEST_SCALE = 1e-6  # of float32 directions; smaller projections are rounding errors
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
        """Return the codes ``(..., K)`` of patches ``(..., P)``: ``K = J``, or ``J + 1`` with several clusters.

        They have the dtype of the mixture.
        """
        codes = in_chunks(self._encode, patches.reshape(-1, patches.shape[-1]).to(self.means.dtype))
        return codes.reshape(*patches.shape[:-1], codes.shape[-1])

    def _encode(self, patches: Tensor) -> Tensor:
        """Return the codes of patches ``(T, P)``."""
        clusters, values, numbers = self.directions.shape
        centre = self.means.mean(0)  # subtracted because differences of large squared lengths are inexact
        patches, means = patches - centre, self.means - centre
        columns = self.directions.movedim(0, 1).reshape(values, clusters * numbers)
        offsets = torch.einsum("xp,xpj->xj", means, self.directions)
        projections = torch.unflatten(patches @ columns, -1, (clusters, numbers)) - offsets  # (T, X, J)
        if clusters == 1:
            return projections.squeeze(1) / self.scales
        distances = means.square().sum(-1) - 2 * patches @ means.mT - projections.square().sum(-1)
        index = distances.argmin(-1)
        nearest = projections[torch.arange(len(patches), device=patches.device), index]
        return torch.cat((index.unsqueeze(-1).to(nearest), nearest / self.scales), dim=-1)


def in_chunks(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return ``function(rows)``, which maps every row ``(T, ...)`` by itself, computed for a few thousand rows at a time.

    Compiled and exported programs compute all rows at once, so that their number may vary.
    """
    if torch.compiler.is_compiling() or len(rows) <= _CHUNK:
        return function(rows)
    return torch.cat([function(part) for part in rows.split(_CHUNK)])


def fit_mixture(patches: Tensor, code_dim: int, num_clusters: int) -> PatchMixture:
    """Return the mixture of principal components of training patches.

    Patches are assigned to clusters and the directions of every cluster computed in turn, as in k-means. The result depends
    on the patches alone.

    Args:
        patches: ``(T, P)``.
        code_dim: ``K``, numbers of a code, with several clusters including the index of the cluster.
        num_clusters: ``X``. Clusters without patches have the directions of the whole set.
    """
    if num_clusters == 1:
        return _single(patches, code_dim)
    if len(patches) > _MAX_PATCHES:
        patches = patches[torch.linspace(0, len(patches) - 1, _MAX_PATCHES, dtype=torch.float64).long()]
    patches = patches.float()
    prior = _covariance(patches - patches.mean(0)) / len(patches)
    assigned = _first_assignment(patches, num_clusters)
    for _ in range(_ITERATIONS):
        mixture = _of_assignment(patches, assigned, num_clusters, code_dim - 1, prior)
        assigned = mixture.encode(patches)[:, 0].long()
    return _scaled(_sorted(mixture, patches, assigned), patches)


def _single(patches: Tensor, code_dim: int) -> PatchMixture:
    """Return the principal components of all patches; components without variance, and those beyond ``P``, are coded as 0."""
    mean, variances, directions = principal_components(patches)
    coded = (variances > _SMALLEST_CODED * variances[:1]) & (
        torch.arange(len(variances), device=variances.device) < code_dim
    )
    missing = code_dim - int(coded.sum())
    directions = functional.pad(directions[:, coded], (0, missing))
    scales = functional.pad(variances[coded].sqrt(), (0, missing), value=1.0)
    return PatchMixture(mean[None].float(), directions[None].float(), scales.float())


def _first_assignment(patches: Tensor, num_clusters: int) -> Tensor:
    """Return the index ``(T,)`` of the seed, one of the patches, that every patch resembles most up to mean and scale."""
    shapes = functional.normalize(patches - patches.mean(-1, keepdim=True), dim=-1)
    generator = torch.Generator().manual_seed(0)
    seeds = shapes[torch.randint(len(patches), (num_clusters,), generator=generator)]
    return in_chunks(lambda part: (part @ seeds.mT).argmax(-1), shapes)


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


def _sorted(mixture: PatchMixture, patches: Tensor, assigned: Tensor) -> PatchMixture:
    """Return the mixture with clusters in the order of increasing variance of their patches."""
    variances = []
    for index, mean in enumerate(mixture.means):
        members = patches[assigned == index]
        variances.append((members - mean).square().sum() / max(len(members), 1))
    order = torch.stack(variances).argsort(stable=True)
    return mixture._replace(means=mixture.means[order], directions=mixture.directions[order])


def _scaled(mixture: PatchMixture, patches: Tensor) -> PatchMixture:
    """Return the mixture with the scales of its codes; numbers without variance are coded as 0."""
    scales = mixture.encode(patches)[:, 1:].square().mean(0).sqrt()
    coded = scales > (_SMALLEST_CODED**0.5 * scales.max()).clamp(min=_SMALLEST_SCALE)
    return mixture._replace(directions=mixture.directions * coded, scales=torch.where(coded, scales, 1.0))


def _covariance(centred: Tensor) -> Tensor:
    """Return the sum of outer products ``(P, P)`` of rows."""
    return centred.mT @ centred
