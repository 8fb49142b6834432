"""MetaIPC: instance pattern composers found by an inner loop (Kim et al., CVPR 2023, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from composers.base import Composer
from composers.inference import GradientSteps, LearnedStart
from composers.latents import LowRank
from composers.networks import CoordinateMLP
from datamodules.spec import FromData, signal_shape


class MetaIPC(Composer):
    """Adapt the instance patterns of one early layer by a few gradient steps from learned patterns.

    Args:
        network: Coordinate network; its ``modulated_layers`` are adapted, in the paper the second layer.
        inner: Inner loop; in the paper, 2 steps with step size 0.003.
        rank: Number of columns of the instance patterns; the output width of the layer if None, as in the paper.
        signal_shape: Shape ``(C, *shape)`` of the training signals; the command line sets it from the data.
        kwargs: Arguments of `Composer`.
    """

    from_data: ClassVar[FromData] = {"signal_shape": signal_shape}

    def __init__(
        self,
        network: CoordinateMLP,
        inner: GradientSteps,
        rank: int | None = None,
        signal_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, LowRank(rank), LearnedStart(signal_shape), inner, **kwargs)
