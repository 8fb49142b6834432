"""Shifts of biases by one latent vector (Dupont et al., functa, ICML 2022, section 3; after CAVIA)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from composers.latents.layout import Latents, Layout
from composers.latents.parametrization import Parametrization
from composers.networks import CoordinateNetwork, Modulations, TensorSpec


class Shifts(Parametrization[Modulations]):
    """Functa: a learned linear map converts one latent vector to shifts of the biases of all modulated layers.

    The latent is ``latent (B, E)``, initialised to zero.

    Reference: the linear map has no bias, which would be equivalent to a bias of the network.

    Args:
        latent_dim: Size ``E`` of the latent vector.

    Raises:
        ValueError: If ``latent_dim`` is not positive.
    """

    def __init__(self, latent_dim: int = 128) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim}; it must be at least 1.")
        self.latent_dim = latent_dim

    def connect(self, network: CoordinateNetwork[Modulations]) -> None:
        """Create the linear map.

        Raises:
            ValueError: If the network takes other modulations than shifts.
        """
        self.names = list(network.slots)
        if not self.names or not all(name.startswith("shift.") for name in self.names):
            raise ValueError(
                f"Shifts composes shifts of biases; this {type(network).__name__} takes {', '.join(self.names) or 'nothing'}: "
                "set its modulates to shifts and name its modulated_layers."
            )
        self.widths = [spec.shape[0] for spec in network.slots.values()]
        self.shifts = nn.Parameter(torch.randn(self.latent_dim, sum(self.widths)) / math.sqrt(self.latent_dim))
        self.latents = {"latent": TensorSpec((self.latent_dim,), partial(torch.zeros, self.latent_dim))}

    def compose(self, latents: Latents, layout: Layout) -> dict[str, Tensor]:
        """Return the shift ``(B, O)`` of every modulated layer."""
        return dict(zip(self.names, (latents["latent"] @ self.shifts).split(self.widths, dim=-1), strict=True))
