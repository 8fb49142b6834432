"""Functa: a latent vector per instance shifts the layers of a SIREN (Dupont et al., ICML 2022, section 3; after CAVIA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from composers.base import Composer
from composers.inference import GradientSteps, ZeroStart
from composers.latents import Shifts
from composers.networks import CoordinateMLP
from datamodules.spec import FromData, signal_shape


class Functa(Composer):
    """Adapt one latent vector, called *functa* or modulation in the paper, which shifts the biases of all modulated layers.

    Args:
        network: Coordinate network with ``modulates: shifts``; in the paper, a SIREN whose hidden layers are modulated.
        inner: Inner loop; in the paper, 3 steps with step sizes learned per parameter.
        latent_dim: Size of the latent vector.
        signal_shape: Shape ``(C, *shape)`` of the training signals; the command line sets it from the data.
        kwargs: Arguments of `Composer`.
    """

    from_data: ClassVar[FromData] = {"signal_shape": signal_shape}

    def __init__(
        self,
        network: CoordinateMLP,
        inner: GradientSteps,
        latent_dim: int = 128,
        signal_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, Shifts(latent_dim), ZeroStart(signal_shape), inner, **kwargs)
