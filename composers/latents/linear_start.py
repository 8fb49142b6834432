"""Linear coding of patches in closed form, from which the training of patch codes starts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SMALLEST_VARIANCE = 1e-12  # relative to the largest; components below it are rounding errors
_PENALTY = 1e-4  # of the regression, relative to the mean variance of its inputs


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
