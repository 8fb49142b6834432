"""The hypernetwork: a signal to the columns of weights (paper section 3; section 3 of TransINR)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from composers.encoders.patches import Tokenizer
from composers.encoders.transformer import Transformer
from datamodules.batch import Views


class Columns(NamedTuple):
    """What one modulated layer asks of the hypernetwork.

    Attributes:
        number: Columns, for IPC the rank, for TransINR the weight groups.
        height: Numbers in a column, the inputs ``I`` of the layer.
        num_tokens: Weight tokens, a divisor of ``number``.
    """

    number: int
    height: int
    num_tokens: int


class Hypernetwork(nn.Module):
    """Predicts ``(B, I, columns)`` for every modulated layer from a signal.

    Data tokens are embedded and get learned positions; learned weight tokens of all layers follow them, layer by layer; what
    the transformer makes of those goes through one LayerNorm and Linear per layer, shared by the tokens of that layer.

    Args:
        tokenizer: From the signal to raw tokens.
        transformer: Over data and weight tokens.
        columns: What every modulated layer asks for.
        zero_start: Whether the heads start at zero, so that the prediction is zero before training.

    Raises:
        ValueError: If the tokens of a layer do not divide its columns.
    """

    def __init__(
        self, tokenizer: Tokenizer, transformer: Transformer, columns: Mapping[int, Columns], zero_start: bool = False
    ) -> None:
        super().__init__()
        if not columns:
            raise ValueError("The network has no modulated_layers, so there is nothing to predict: name at least one.")
        for layer, wanted in columns.items():
            if wanted.num_tokens < 1 or wanted.number % wanted.num_tokens:
                raise ValueError(
                    f"{wanted.num_tokens} weight tokens do not divide the {wanted.number} columns of layer {layer}: "
                    "choose a divisor."
                )
        embed_dim = transformer.embed_dim
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.tokens_per_layer = [wanted.num_tokens for wanted in columns.values()]
        self.embedding = nn.Linear(tokenizer.token_dim, embed_dim)
        self.positions = nn.Parameter(torch.randn(1, tokenizer.num_tokens, embed_dim))
        self.weight_tokens = nn.Parameter(torch.randn(sum(self.tokens_per_layer), embed_dim))
        self.heads = nn.ModuleDict(
            {str(layer): _head(embed_dim, wanted, zero_start) for layer, wanted in columns.items()}
        )
        self.heights = {layer: wanted.height for layer, wanted in columns.items()}

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Data tokens and weight tokens of one instance."""
        return self.tokenizer.num_tokens, sum(self.tokens_per_layer)

    def forward(self, signal: Tensor | Views) -> dict[int, Tensor]:
        """Return for every modulated layer its columns ``(B, I, columns)``."""
        data_tokens = self.embedding(self.tokenizer(signal)) + self.positions  # (B, T, E)
        weight_tokens = self.weight_tokens.expand(data_tokens.shape[0], -1, -1)
        read = self.transformer(data_tokens, weight_tokens).split(self.tokens_per_layer, dim=1)
        return {
            layer: self.heads[str(layer)](tokens).unflatten(-1, (-1, height)).flatten(1, 2).mT
            for (layer, height), tokens in zip(self.heights.items(), read, strict=True)
        }


def _head(embed_dim: int, wanted: Columns, zero_start: bool) -> nn.Sequential:
    """Return the LayerNorm and Linear from a token of a layer to its columns."""
    linear = nn.Linear(embed_dim, wanted.height * wanted.number // wanted.num_tokens)
    if zero_start:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(embed_dim), linear)
