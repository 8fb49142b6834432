"""ANR: tokens that every coordinate reads by one thresholded attention (Attention Beats Linear, arXiv 2407.15355)."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, PerToken, TokenDecoder, Transformer
from composers.inference import Hypernetwork
from composers.latents import Direct
from composers.networks import AttentiveMLP


class ANR(Composer):
    """Predict tokens with a transformer and a decoder; the encoded coordinate is the query of the attention.

    Reference: images are in [0, 1], with an ``output_offset`` of 0.5, in place of images in [-1, 1]. The moving average of the
    weights, which the released evaluation does not use, is omitted. Additions are tokens at the places of patches, attention
    that depends on places (`composers.networks.TokenAttention`), and data other than images and views.

    Args:
        network: Coordinate network that reads the tokens; with ``num_tokens: null`` those of the signal, without a decoder.
        encoder: Encodes the signal as data tokens.
        transformer: Encodes the data tokens, and states the sizes of the decoder layers; default sizes if None.
        num_decoder_layers: Layers of the decoder.
        kwargs: Arguments of `Composer`.
    """

    def __init__(
        self,
        network: AttentiveMLP,
        encoder: Encoder,
        transformer: Transformer | None = None,
        num_decoder_layers: int = 6,
        **kwargs: Any,
    ) -> None:
        decoded = network.num_tokens is not None
        transformer = transformer or Transformer()
        readout = TokenDecoder(transformer, num_decoder_layers) if decoded else PerToken(transformer=transformer)
        super().__init__(network, Direct(), Hypernetwork(encoder, readout), **kwargs)
