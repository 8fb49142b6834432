"""Linear coding of patches in closed form, from which the training of patch codes starts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST_VARIANCE = 1e-12  # relative to the largest; components below it are rounding errors
_SMALLEST_CODED = 1e-8  # relative to the largest; a code has unit variance, which would amplify components below it
_PENALTY = 1e-4  # of the regression, relative to the mean variance of its inputs


class LinearStart(NamedTuple):
    """The affine map from the values of a patch to its code, which has unit variance on the training data.

    Attributes:
        weight: ``(K, P)``.
        bias: ``(K,)``.
    """

    weight: Tensor
    bias: Tensor


class PrincipalComponents(NamedTuple):
    """Principal components of patches, in float64.

    Attributes:
        mean: Mean patch ``(P,)``.
        variances: ``(K,)``, decreasing and positive.
        directions: Orthonormal columns ``(P, K)``.
    """

    mean: Tensor
    variances: Tensor
    directions: Tensor


def principal_components(patches: Tensor) -> PrincipalComponents:
    """Return the principal components of patches ``(T, P)`` that have a variance."""
    numbers = patches.double()
    mean = numbers.mean(0)
    centred = numbers - mean
    if len(centred) >= centred.shape[1]:
        variances, directions = torch.linalg.eigh(centred.mT @ centred)
    else:  # the matrix of scalar products between patches is smaller, and has the same positive eigenvalues
        variances, weights = torch.linalg.eigh(centred @ centred.mT)
        directions = centred.mT @ weights / variances.clamp(min=torch.finfo(variances.dtype).tiny).sqrt()
    kept = variances > _SMALLEST_VARIANCE * variances[-1]
    return PrincipalComponents(mean, variances[kept].flip(0) / len(centred), directions[:, kept].flip(1))


def whitening(patches: Tensor, code_dim: int) -> LinearStart:
    """Return the projection of patches ``(T, P)`` to ``code_dim`` principal components, scaled to unit variance.

    Components without variance, and those beyond the number of values of a patch, are 0.
    """
    mean, variances, directions = principal_components(patches)
    coded = (variances > _SMALLEST_CODED * variances[:1]) & (torch.arange(len(variances)) < code_dim)
    weight = (directions[:, coded] * variances[coded].rsqrt()).mT
    weight = functional.pad(weight, (0, 0, 0, code_dim - len(weight)))
    return LinearStart(weight.float(), -(weight @ mean).float())


def ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight ``(O, I)`` and bias ``(O,)`` of the linear regression from ``inputs (T, I)`` to ``targets (T, O)``."""
    inputs, targets = inputs.double(), targets.double()
    mean, target_mean = inputs.mean(0), targets.mean(0)
    centred = inputs - mean
    gram = centred.mT @ centred
    penalty = _PENALTY * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny
    gram.diagonal().add_(penalty)
    weight = torch.linalg.solve(gram, centred.mT @ (targets - target_mean)).mT
    return weight.float(), (target_mean - weight @ mean).float()
