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
    """Adapt one early layer by instance patterns, by a few gradient steps from learned patterns.

    Args:
        network: The coordinate network; its ``modulated_layers`` are adapted, as published the second.
        inner: The inner loop, as published 2 steps of 0.003.
        rank: Of `LowRank`.
        signal_shape: Of `LearnedStart`.
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
