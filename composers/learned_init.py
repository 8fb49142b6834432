"""LearnedInit: all weights adapted from a meta-learned initialisation (Tancik et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from composers.base import Composer
from composers.inference import GradientSteps, LearnedStart
from composers.latents import Direct
from composers.networks import CoordinateMLP
from datamodules.spec import FromData, signal_shape


class LearnedInit(Composer):
    """Adapt all weights of the network by a few gradient steps from a learned initialisation.

    Two forms are published. That of the IPC paper: a network with unit columns, weights adapted by steps times their squared
    norms, biases shared. The original: a SIREN without normalisation (``normalize_weights: false``), weights and biases adapted
    (``modulates: both``), the outer update that of MAML or of Reptile (``outer`` of the inner rule).

    Args:
        network: The coordinate network, with every layer modulated (``modulated_layers: all``).
        inner: The inner loop, in the IPC paper 2 steps of 0.003.
        signal_shape: Of `LearnedStart`.
        kwargs: Arguments of `Composer`.
    """

    from_data: ClassVar[FromData] = {"signal_shape": signal_shape}

    def __init__(
        self,
        network: CoordinateMLP,
        inner: GradientSteps,
        signal_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, Direct(), LearnedStart(signal_shape), inner, **kwargs)
