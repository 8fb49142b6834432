"""TransformerIPC: a transformer hypernetwork predicts instance pattern composers (Kim et al., CVPR 2023, section 3)."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, Transformer, WeightTokens
from composers.inference import Hypernetwork
from composers.latents import LowRank
from composers.networks import CoordinateMLP


class TransformerIPC(Composer):
    """Predict the instance patterns of one early layer with a transformer; all other weights are shared by all instances.

    Args:
        network: Coordinate network; its ``modulated_layers`` are adapted, in the paper the second layer.
        encoder: Encodes the signal as data tokens.
        transformer: Transformer that processes data and weight tokens; default sizes if None.
        rank: Number of columns of the instance patterns; the output width of the layer if None, as in the paper.
        factorized: Whether to multiply the patterns by a shared basis; if False, the transformer predicts the weight itself.
        base_weight: Whether to add a learned weight shared by all instances; predicted patterns are then zero before training.
        num_weight_tokens: Weight tokens per modulated layer, a divisor of its number of columns; one per column if None.
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
