"""A cross-attention network: coordinates query the tokens of their instance (Lee et al., NeurIPS 2023, section 3)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from composers.networks import CoordinateNetwork, FourierFeatures, Modulations, TensorSpec
from datamodules.spec import FromData, coord_dim, value_dim


class CrossAttention(CoordinateNetwork[Modulations]):
    """One block of cross-attention from coordinates to tokens ``(B, E, T)``, then an MLP.

    Args:
        coord_dim: ``D``, dimensions of a coordinate; the command line sets it from the data.
        value_dim: ``C``, channels of a value; set likewise.
        num_tokens: ``T``; as many as the encoder has if None.
        embed_dim: ``E``, width of a token, a multiple of ``num_heads``.
        num_heads: Heads of the attention.
    """

    from_data: ClassVar[FromData] = {"coord_dim": coord_dim, "value_dim": value_dim}

    def __init__(
        self,
        coord_dim: int = 2,
        value_dim: int = 3,
        num_tokens: int | None = 4,
        embed_dim: int = 16,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        self.coord_dim, self.value_dim, self.num_heads = coord_dim, value_dim, num_heads
        self.slots = {
            "tokens": TensorSpec((embed_dim, num_tokens or -1), partial(torch.randn, embed_dim, num_tokens or 1))
        }
        self.encoding = FourierFeatures(num_frequencies=4, max_frequency=8)
        self.query = nn.Linear(self.encoding.width(coord_dim), embed_dim)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.GELU(), nn.Linear(embed_dim, value_dim))

    @property
    def floats_per_coord(self) -> int:
        """Return the floats of the features, the query, what it gathers, and the hidden layer."""
        return self.query.in_features + 6 * self.query.out_features

    def forward(self, coords: Tensor, modulations: Modulations) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, ``(N, D)`` or ``(B, N, D)``."""
        tokens = modulations["tokens"].mT  # (B, T, E)
        query = self.query(self.encoding(coords)).expand(len(tokens), -1, -1)
        parts = (query, *self.key_value(tokens).chunk(2, dim=-1))
        heads = [part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts]
        gathered = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        values: Tensor = self.mlp(query + gathered)
        return values + 0.5
