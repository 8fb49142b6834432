"""A readout with a decoder: weight tokens attend to the encoded data tokens in separate blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from composers.encoders.encoder import Encoder, Features
from composers.encoders.readouts import EmbeddingReadout
from composers.encoders.transformer import Transformer
from composers.latents import Latents, module_key
from composers.networks import TensorSpec


class TokenDecoder(EmbeddingReadout):
    """Predict the columns of the latents from learned weight tokens in a transformer decoder (ANR, arXiv 2407.15355).

    Data tokens are embedded, learned positions are added where tokens are ordered, and the blocks of the transformer encode
    them. Every decoder layer lets the weight tokens, one per column, attend to each other and then to the encoded data tokens.
    The columns are ``scale * Linear(LayerNorm(token)) + base`` with a learned scale per entry, initially 1, and a learned base
    per entry, initially ``N(0, 1)``, which tells the columns apart before training.

    Args:
        transformer: Transformer that encodes the data tokens; the decoder layers have the same sizes. Default sizes if None.
        num_layers: Number of decoder layers, at least 1.

    Raises:
        ValueError: If ``num_layers`` is not positive.
    """

    def __init__(self, transformer: Transformer | None = None, num_layers: int = 6) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers of TokenDecoder is {num_layers}; it must be at least 1.")
        self.transformer = transformer or Transformer()
        self.layers = nn.ModuleList(self.transformer.decoder_block() for _ in range(num_layers))

    def connect(self, encoder: Encoder, latents: Mapping[str, TensorSpec]) -> None:
        """Create embedding, positions, weight tokens and heads.

        Raises:
            ValueError: If there are no latents, or one has other than two axes, or axes that depend on the signal.
        """
        shapes = {name: spec.shape for name, spec in latents.items()}
        if not shapes or any(len(shape) != 2 or -1 in shape for shape in shapes.values()):
            raise ValueError(
                f"TokenDecoder predicts latents of two fixed axes; this parametrization has {shapes}: state num_tokens of the "
                "network, or use readout PerToken or WeightTokens."
            )
        embed_dim = self.transformer.embed_dim
        self.columns = {name: columns for name, (_, columns) in shapes.items()}
        self.num_weight_tokens = sum(self.columns.values())
        self.create_embedding(encoder, embed_dim)
        self.weight_tokens = nn.Parameter(torch.randn(self.num_weight_tokens, embed_dim))
        self.heads, self.scales, self.bases = nn.ModuleDict(), nn.ParameterDict(), nn.ParameterDict()
        for name, (height, columns) in shapes.items():
            key = module_key(name)
            self.heads[key] = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, height))
            self.scales[key] = nn.Parameter(torch.ones(columns, height))
            self.bases[key] = nn.Parameter(torch.randn(columns, height))

    def forward(self, features: Features) -> Latents:
        """Return the latents, each ``(B, I, R)``."""
        encoded = self.transformer.encode(self.embed(features.tokens))  # (B, T, E)
        tokens = self.weight_tokens.expand(len(encoded), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, encoded)
        latents = {}
        for name, read in zip(self.columns, tokens.split(list(self.columns.values()), dim=1), strict=True):
            key = module_key(name)
            latents[name] = (self.scales[key] * self.heads[key](read) + self.bases[key]).mT
        return latents
