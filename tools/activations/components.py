"""Principal components of instance codes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from composers.latents import Latents


class Components(NamedTuple):
    """Principal components of codes.

    Attributes:
        scores: ``(B, K)``, coordinates of the centred codes along the components.
        shares: ``(K,)``, share of the variance explained by each component, in descending order; 0 if nothing varies.
    """

    scores: Tensor
    shares: Tensor


def principal_components(codes: Tensor) -> Components:
    """Compute all principal components of codes by a singular value decomposition in float64.

    The sign of a component is chosen so that the score of largest magnitude is positive.

    Args:
        codes: ``(B, F)``, one code per row.

    Returns:
        ``K = min(B - 1, F)`` components.

    Example:
        >>> principal_components(torch.tensor([[0.0], [0.0], [3.0]])).scores.flatten().round().tolist()
        [-1.0, -1.0, 2.0]
    """
    centred = codes.double() - codes.double().mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    count = min(len(codes) - 1, codes.shape[1])
    scores = (left * sizes)[:, :count]
    largest = scores.gather(0, scores.abs().argmax(0, keepdim=True))
    variances = sizes.square()
    return Components(scores * largest.sign(), variances[:count] / variances.sum().clamp(min=1e-300))


def flattened(latents: Latents) -> Tensor:
    """Return latents by name as one row per instance ``(B, F)``."""
    return torch.cat([latent.flatten(1) for latent in latents.values()], dim=1)
