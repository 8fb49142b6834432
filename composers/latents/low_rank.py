"""Weights of low rank: instance patterns times a shared basis (Kim et al., CVPR 2023, section 3.2)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from composers.latents.layout import Latents, Layout
from composers.latents.parametrization import Parametrization
from composers.networks import CoordinateNetwork, Modulations, TensorSpec


class LowRank(Parametrization[Modulations]):
    """Instance pattern composers: the weight of a modulated layer is ``V @ U``.

    The latents ``patterns.<layer> (B, I, R)`` are the instance patterns ``V``; the basis ``U (R, O)`` is learned and shared by
    all instances.

    Args:
        rank: Number of columns ``R`` of the instance patterns; the output width of the layer if None, as in the paper.
        factorized: Whether the weight is the product ``V @ U``; if False, the latents are the weight itself.
        base_weight: Whether to add a learned weight shared by all instances, and to initialise the patterns to zero. The paper
            has no such weight; it speeds up the beginning of training.

    Raises:
        ValueError: If ``rank`` is not positive, or set although ``factorized`` is False.
    """

    def __init__(self, rank: int | None = None, factorized: bool = True, base_weight: bool = False) -> None:
        super().__init__()
        if rank is not None and (rank < 1 or not factorized):
            raise ValueError(
                f"rank is {rank} with factorized {factorized}; it must be at least 1, or null for the width of the layer, and "
                "takes factorized: true."
            )
        self.rank = rank
        self.factorized = factorized
        self.base_weight = base_weight

    def connect(self, network: CoordinateNetwork[Modulations]) -> None:
        """Create bases and base weights of all modulated layers."""
        self.bases, self.base_weights = nn.ParameterDict(), nn.ParameterDict()
        self.latents = {}
        for layer, weight in self._weights(network).items():
            fan_in, fan_out = weight.shape
            rank = self.rank or fan_out
            initial = torch.zeros if self.base_weight else torch.randn
            normalized = weight.normalized and not self.base_weight
            self.latents[f"patterns.{layer}"] = TensorSpec((fan_in, rank), partial(initial, fan_in, rank), normalized)
            if self.factorized:
                self.bases[layer] = nn.Parameter(torch.randn(rank, fan_out) / math.sqrt(rank * fan_in))
            if self.base_weight:
                self.base_weights[layer] = nn.Parameter(weight.initial())

    def compose(self, latents: Latents, layout: Layout) -> dict[str, Tensor]:
        """Return ``V @ U`` for every modulated layer, plus the base weight if there is one."""
        return {
            name.replace("patterns", "weight"): self._weight(name.removeprefix("patterns."), patterns)
            for name, patterns in latents.items()
        }

    def _weight(self, layer: str, patterns: Tensor) -> Tensor:
        """Return the weight ``(B, I, O)`` of a layer."""
        part = patterns @ self.bases[layer] if layer in self.bases else patterns
        return torch.add(part, self.base_weights[layer]) if layer in self.base_weights else part
