"""Linear coding of patches in closed form, from which the training of patch codes starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_SMALLEST_VARIANCE = 1e-8  # of a direction, relative to the largest
_PENALTY = 1e-4  # of the regression, relative to the mean variance of its inputs


class LinearStart(NamedTuple):
    """The affine map from the values of a patch to its code, which has unit variance on the training data.

    Attributes:
        weight: ``(K, P)``.
        bias: ``(K,)``.
    """

    weight: Tensor
    bias: Tensor


def whole_patches(signal: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Return the values of the complete patches of a signal ``(B, C, *shape)``, channel by channel: ``(B, *grid, P)``."""
    for axis, size in enumerate(patch_size):
        count = signal.shape[2 + 2 * axis] // size
        signal = signal.narrow(2 + 2 * axis, 0, count * size).unflatten(2 + 2 * axis, (count, size))
    axes = range(len(patch_size))
    order = [0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes)]
    return signal.permute(order).flatten(1 + len(axes))


def principal_directions(patches: Tensor, code_dim: int) -> LinearStart:
    """Return the projection of patches ``(T, P)`` to their principal components; directions without variance yield 0."""
    numbers = patches.double()
    mean = numbers.mean(0)
    variances, directions = torch.linalg.eigh((numbers - mean).mT @ (numbers - mean) / len(numbers))
    variances, directions = variances.flip(0)[:code_dim], directions.flip(1)[:, :code_dim]
    scales = torch.where(variances > _SMALLEST_VARIANCE * variances[0], variances, torch.inf).rsqrt()
    weight = (directions * scales).mT
    missing = code_dim - len(weight)  # a code may have more numbers than a patch has values
    weight = torch.nn.functional.pad(weight, (0, 0, 0, missing))
    return LinearStart(weight.float(), -(weight @ mean).float())


def ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight ``(O, I)`` and bias ``(O,)`` of the linear regression from ``inputs (T, I)`` to ``targets (T, O)``."""
    inputs, targets = inputs.double(), targets.double()
    mean, target_mean = inputs.mean(0), targets.mean(0)
    centred = inputs - mean
    gram = centred.mT @ centred
    gram.diagonal().add_(_PENALTY * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, centred.mT @ (targets - target_mean)).mT
    return weight.float(), (target_mean - weight @ mean).float()
