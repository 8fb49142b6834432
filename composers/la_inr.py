"""LocalityAwareINR: latent tokens that every coordinate selects by attention, decoded in frequency bands (LA-INR)."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, PerToken, Transformer, WeightTokens
from composers.inference import Hypernetwork
from composers.latents import Direct
from composers.networks import BandedMLP


class LocalityAwareINR(Composer):
    """Predict latent tokens with a transformer, from which attention selects at every coordinate (LA-INR, arXiv 2310.05624).

    The abstract states the parts: a transformer encoder to latent tokens, cross-attention to one modulation vector per
    coordinate, values from coarse to fine in several bands. These choices are ours and may differ from the paper: the order and
    values of ``bands``, frequencies from 1 (``min_frequency``), ``output_offset`` 0.5, coordinates in [-1, 1]
    (``unit_coords``), ``token_dim``, the width of the transformer and the layers from its outputs to tokens, no ``norm`` around
    the attention, the mean squared error over all samples at a constant learning rate, and everything about novel views
    (queries are points on rays). Local attention (`composers.networks.TokenAttention`) and tokens of patches are additions.

    Args:
        network: Coordinate network that reads the tokens. Its ``num_tokens`` are learned tokens that the transformer processes
            after those of the signal; with ``num_tokens: null`` they are the tokens of the signal themselves.
        encoder: Encodes the signal as data tokens.
        transformer: Transformer that processes the tokens; default sizes if None.
        kwargs: Arguments of `Composer`.
    """

    def __init__(
        self, network: BandedMLP, encoder: Encoder, transformer: Transformer | None = None, **kwargs: Any
    ) -> None:
        of_signal = network.num_tokens is None
        readout = PerToken(transformer=transformer or Transformer()) if of_signal else WeightTokens(transformer)
        super().__init__(network, Direct(), Hypernetwork(encoder, readout), **kwargs)
