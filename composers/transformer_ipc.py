"""TransformerIPC: a transformer hypernetwork predicts instance pattern composers (Kim et al., CVPR 2023, section 3)."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, Transformer, WeightTokens
from composers.inference import Hypernetwork
from composers.latents import LowRank
from composers.networks import CoordinateMLP


class TransformerIPC(Composer):
    """Adapt one early layer by instance patterns that a transformer predicts; all instances share everything else.

    Args:
        network: The coordinate network; its ``modulated_layers`` are adapted, as published the second.
        encoder: From the signal to tokens.
        transformer: Over data and weight tokens.
        rank: Of `LowRank`.
        factorized: Of `LowRank`.
        base_weight: Of `LowRank`; the prediction then starts at zero.
        num_weight_tokens: Weight tokens of each modulated layer, a divisor of its columns; one per column if None.
        kwargs: Arguments of `Composer`.
    """

    def __init__(
        self,
        network: CoordinateMLP,
        encoder: Encoder,
        transformer: Transformer | None = None,
        rank: int | None = None,
        factorized: bool = True,
        base_weight: bool = False,
        num_weight_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        readout = WeightTokens(transformer, num_weight_tokens, zero_init=base_weight)
        super().__init__(network, LowRank(rank, factorized, base_weight), Hypernetwork(encoder, readout), **kwargs)
