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

    There are two published forms. The IPC paper normalises the columns of the weights, scales every step by the squared norm of
    the weight, and shares the biases. The original does not normalise (``normalize_weights: false``), adapts weights and biases
    (``modulates: both``), and trains with MAML or Reptile (``outer`` of the rule of ``inner``).

    Args:
        network: Coordinate network with all layers modulated (``modulated_layers: all``).
        inner: Inner loop; in the IPC paper, 2 steps with step size 0.003.
        signal_shape: Shape ``(C, *shape)`` of the training signals; the command line sets it from the data.
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
