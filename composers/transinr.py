"""TransINR: a transformer predicts scales of the columns of all weights (Chen and Wang, ECCV 2022, section 3)."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, Transformer, WeightTokens
from composers.inference import Hypernetwork
from composers.latents import ColumnScales
from composers.networks import CoordinateMLP


class TransINR(Composer):
    """Scale the columns of all weights, in groups; a transformer predicts the scales.

    Args:
        network: The coordinate network, as published with every layer modulated (``modulated_layers: all``).
        encoder: From the signal to tokens.
        transformer: Over data and weight tokens.
        num_groups: Of `ColumnScales`; there is one weight token per group and layer.
        kwargs: Arguments of `Composer`.
    """

    def __init__(
        self,
        network: CoordinateMLP,
        encoder: Encoder,
        transformer: Transformer | None = None,
        num_groups: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, ColumnScales(num_groups), Hypernetwork(encoder, WeightTokens(transformer)), **kwargs)
