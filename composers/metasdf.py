"""MetaSDF: signed distances by gradient steps on all weights (Sitzmann et al., NeurIPS 2020, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from composers.base import Composer
from composers.inference import GradientSteps, LearnedStart
from composers.latents import Direct
from composers.losses import Loss, SignAndDistance
from composers.networks import CoordinateMLP
from composers.rendering import Renderer, SignedDistance
from datamodules.spec import FromData, signal_shape


class MetaSDF(Composer):
    """Adapt all weights and biases by a few gradient steps from a learned initialisation, with learned step sizes.

    In the paper, the network has a head for the sign and one for the distance, `GeometricReLU` activations and no
    normalisation (``modulated_layers: all``, ``modulates: both``, ``normalize_weights: false``, ``output_offset: 0.0``), and the
    rule of ``inner`` learns a step size per step and parameter (``learned_as: lr``), through second-order gradients. The inner
    loop minimises a `SignAndDistance` with learned weights of its own, so that ``inner`` needs a ``loss``.

    Args:
        network: Coordinate network with all layers modulated.
        inner: Inner loop; in the paper, 5 steps that begin with step size 0.005.
        renderer: Converts the outputs of the network to signed distances; `SignedDistance` with ``both`` heads if None.
        loss: Outer loss; `SignAndDistance` with ``unknown`` -1 if None, as in the paper.
        signal_shape: Shape of the training signals; the command line sets it from the data.
        kwargs: Arguments of `Composer`.
    """

    from_data: ClassVar[FromData] = {"signal_shape": signal_shape}

    def __init__(
        self,
        network: CoordinateMLP,
        inner: GradientSteps,
        renderer: Renderer | None = None,
        loss: Loss | None = None,
        signal_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            network,
            Direct(),
            LearnedStart(signal_shape),
            inner,
            renderer=renderer or SignedDistance(),
            loss=loss or SignAndDistance(unknown=-1.0),
            **kwargs,
        )
