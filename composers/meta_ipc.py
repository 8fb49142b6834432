"""MetaIPC: the instance pattern composer found by an inner loop (Kim et al., CVPR 2023, section 3.3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from composers.inference.inner_loop import Latents
from composers.inference.inner_settings import InnerLoop
from composers.meta_learned import MetaLearned, squared_norms
from composers.networks import CoordinateMLP, Modulations


class MetaIPC(MetaLearned):
    """Generalizable INR by instance pattern composers: one early layer is adapted, by a few gradient steps.

    The weight of a modulated layer is ``V @ U``: the instance patterns ``V (B, I, R)``, which start from learned numbers and
    are adapted, times a learned basis ``U (R, O)`` shared by all instances. Steps are scaled by the squared norm of ``V``
    where the network normalises weights, and training differentiates through all of it, the scale included.

    Args:
        inr: The coordinate network; its ``modulated_layers`` say which layers are adapted, as published the second.
        inner_loop: Steps, step size and samples of the inner loop; as published 2 steps of 0.003 if None.
        rank: ``R``, columns of the instance patterns; as wide as the layer's output if None, as published.
        kwargs: Arguments of `MetaLearned`.

    Raises:
        ValueError: If ``rank`` is not positive, or the network has no modulated layers.
    """

    def __init__(
        self, inr: CoordinateMLP, inner_loop: InnerLoop | None = None, rank: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(inr, inner_loop, **kwargs)
        if rank is not None and rank < 1:
            raise ValueError(f"rank is {rank}; it must be at least 1, or null for the width of the layer.")
        self.patterns = nn.ParameterDict()
        self.bases = nn.ParameterDict()
        for layer in inr.modulated_layers:
            fan_in, fan_out = inr.layer_sizes[layer]
            columns = rank or fan_out
            self.patterns[str(layer)] = nn.Parameter(torch.randn(fan_in, columns))
            self.bases[str(layer)] = nn.Parameter(torch.randn(columns, fan_out) / math.sqrt(columns * fan_in))
        self.begin()

    def start(self) -> Latents:
        """Return the learned patterns ``(I, R)`` as ``patterns.<layer>``."""
        return {f"patterns.{layer}": self.patterns[str(layer)] for layer in self.inr.modulated_layers}

    def step_scales(self, latents: Latents) -> dict[str, Tensor]:
        """Return ``||V||^2 (B, 1, 1)`` of every instance where weights are normalised, else 1."""
        return squared_norms(latents) if self.inr.normalize_weights else super().step_scales(latents)

    def compose(self, latents: Latents) -> Modulations:
        """Return ``V @ U`` for every modulated layer; biases stay the network's own."""
        return {
            layer: (latents[f"patterns.{layer}"] @ self.bases[str(layer)], None) for layer in self.inr.modulated_layers
        }
