"""MetaSDF: signed distances by gradient steps on all weights (Sitzmann et al., NeurIPS 2020, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from composers.base import Composer
from composers.inference import GradientSteps, LearnedStart
from composers.latents import Direct
from composers.losses import Loss
from composers.networks import CoordinateMLP
from composers.rendering import SignedDistance
from datamodules.spec import FromData, signal_shape


class MetaSDF(Composer):
    """Adapt all weights and biases by a few gradient steps with learned step sizes, from a learned initialisation.

    Args:
        network: Coordinate network with an output per head (``modulated_layers: all``, ``modulates: both``).
        inner: Inner loop; in the paper 5 steps, with a loss of its own and step sizes learned per step and parameter.
        renderer: Heads of the network; in the paper, a sign and a distance.
        loss: Outer loss; in the paper, `SignAndDistance` with ``unknown`` -1.
        signal_shape: Shape of the training signals; the command line sets it from the data.
        kwargs: Arguments of `Composer`.
    """

    from_data: ClassVar[FromData] = {"signal_shape": signal_shape}

    def __init__(
        self,
        network: CoordinateMLP,
        inner: GradientSteps,
        renderer: SignedDistance,
        loss: Loss,
        signal_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, Direct(), LearnedStart(signal_shape), inner, renderer=renderer, loss=loss, **kwargs)
