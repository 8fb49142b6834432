"""TransINR: a transformer predicts scales of the columns of all weights (Chen and Wang, ECCV 2022, section 3)."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, Transformer, WeightTokens
from composers.inference import Hypernetwork
from composers.latents import ColumnScales
from composers.networks import CoordinateMLP


class TransINR(Composer):
    """Scale the columns of all weights; a transformer predicts the scales of every group of columns.

    Args:
        network: Coordinate network; in the paper, all layers are modulated (``modulated_layers: all``).
        encoder: Encodes the signal as data tokens.
        transformer: Transformer that processes data and weight tokens; default sizes if None.
        num_groups: Number of column groups per layer, a divisor of the number of columns; each group has a weight token.
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
