"""Where codes lie: those of images, and their principal components."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from composers.latents import Latents


class Components(NamedTuple):
    """Principal components of codes.

    Attributes:
        scores: ``(B, K)``, where every code lies along the components, centred.
        shares: ``(K,)``, the part of the variance that each component explains, in descending order; 0 if nothing varies.
    """

    scores: Tensor
    shares: Tensor


def principal_components(codes: Tensor) -> Components:
    """Return all principal components of codes, by a singular value decomposition in float64.

    The sign of a component is free; here the score of largest magnitude is positive.

    Args:
        codes: ``(B, F)``, one code in each row.

    Returns:
        ``K = min(B - 1, F)`` components.

    Example:
        >>> principal_components(torch.tensor([[0.0], [0.0], [3.0]])).scores.flatten().round().tolist()
        [-1.0, -1.0, 2.0]
    """
    centred = codes.double() - codes.double().mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    number = min(len(codes) - 1, codes.shape[1])
    scores = (left * sizes)[:, :number]
    largest = scores.gather(0, scores.abs().argmax(0, keepdim=True))
    variances = sizes.square()
    return Components(scores * largest.sign(), variances[:number] / variances.sum().clamp(min=1e-300))


def flat(latents: Latents) -> Tensor:
    """Return codes of several parts as one row of numbers for each instance ``(B, F)``."""
    return torch.cat([part.flatten(1) for part in latents.values()], dim=1)
