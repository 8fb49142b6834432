"""Functa: a latent vector per instance shifts the layers of a SIREN (Dupont et al., ICML 2022, section 3; after CAVIA)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from composers.inference.inner_loop import Latents
from composers.inference.inner_settings import InnerLoop
from composers.meta_learned import MetaLearned
from composers.networks import CoordinateMLP, Modulations


class Functa(MetaLearned):
    """Generalizable INR of which only the biases are adapted, through one latent vector: its *functa*, or modulation.

    The vector ``(E,)`` starts at zero and is adapted; a learned linear map makes shifts of the biases of all modulated layers
    of it. Published with a SIREN, 3 inner steps, and step sizes learned for every parameter.

    Reference: the linear map has no bias, which would only be another bias of the network.

    Args:
        inr: The coordinate network, with ``modulates: biases``, as published a SIREN whose hidden layers are modulated.
        inner_loop: Steps, step size and samples of the inner loop; 2 steps of 0.003 if None.
        latent_dim: ``E``, numbers of the latent vector.
        kwargs: Arguments of `MetaLearned`.

    Raises:
        ValueError: If ``latent_dim`` is not positive, or the network modulates weights or nothing.
    """

    modulates = "biases"

    def __init__(
        self, inr: CoordinateMLP, inner_loop: InnerLoop | None = None, latent_dim: int = 128, **kwargs: Any
    ) -> None:
        super().__init__(inr, inner_loop, **kwargs)
        if latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim}; it must be at least 1.")
        self.shift_widths = [inr.layer_sizes[layer][1] for layer in inr.modulated_layers]
        self.shifts = nn.Parameter(torch.randn(latent_dim, sum(self.shift_widths)) / math.sqrt(latent_dim))
        self.begin()

    def start(self) -> Latents:
        """Return a vector ``(E,)`` of zeros as ``latent``."""
        return {"latent": self.shifts.new_zeros(len(self.shifts))}

    def compose(self, latents: Latents) -> Modulations:
        """Return the shifted biases ``(B, O)`` of every modulated layer; weights stay the network's own."""
        shifts = (latents["latent"] @ self.shifts).split(self.shift_widths, dim=-1)
        return {
            layer: (None, self.inr.biases[str(layer)] + shift)
            for layer, shift in zip(self.inr.modulated_layers, shifts, strict=True)
        }
