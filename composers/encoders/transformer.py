"""The transformer of the hypernetwork: pre-LN blocks, the last of which computes only the weight tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention of the last tokens of a sequence to all tokens.

    Args:
        embed_dim: ``E``, width of a token, a multiple of ``num_heads``.
        num_heads: Number of heads.
        qkv_bias: Whether queries, keys and values have a bias (the IPC repository: yes; TransINR's own code: no).
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim, bias=qkv_bias)
        self.projection = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, num_read: int) -> Tensor:
        """Return the attention output for the last ``num_read`` of ``tokens (B, T, E)``: ``(B, num_read, E)``."""
        query = self._heads(self.query(tokens[:, -num_read:]))
        key, value = (self._heads(part) for part in self.key_value(tokens).chunk(2, dim=-1))
        attended = functional.scaled_dot_product_attention(query, key, value)  # (B, heads, num_read, E / heads)
        output: Tensor = self.projection(attended.transpose(1, 2).flatten(2))
        return output

    def _heads(self, tokens: Tensor) -> Tensor:
        """Split ``(B, T, E)`` into ``(B, heads, T, E / heads)``."""
        return tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


class Block(nn.Module):
    """``x += attention(norm(x)); x += mlp(norm(x))`` with an exact GELU and dropout on both residual branches.

    Args:
        embed_dim: ``E``, width of a token.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP divided by ``embed_dim``.
        residual_dropout: Dropout probability of the residual branches.
        qkv_bias: Whether queries, keys and values have a bias.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int, residual_dropout: float, qkv_bias: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, qkv_bias)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, mlp_ratio * embed_dim), nn.GELU(), nn.Linear(mlp_ratio * embed_dim, embed_dim)
        )
        self.dropout = nn.Dropout(residual_dropout)

    def forward(self, tokens: Tensor, num_read: int) -> Tensor:
        """Return the last ``num_read`` of ``tokens (B, T, E)`` after this block."""
        residual = tokens[:, -num_read:] + self.dropout(self.attention(self.attention_norm(tokens), num_read))
        return torch.add(residual, self.dropout(self.mlp(self.mlp_norm(residual))))


class Transformer(nn.Module):
    """A stack of pre-LN blocks without mask or final LayerNorm, as in the released code.

    Args:
        embed_dim: ``E``, width of a token, a multiple of ``num_heads``.
        num_blocks: Number of blocks, at least 1.
        num_heads: Number of attention heads of every block.
        mlp_ratio: Hidden width of every MLP divided by ``embed_dim``.
        residual_dropout: Dropout probability of the residual branches, in [0, 1).
        qkv_bias: Whether queries, keys and values have a bias (the IPC repository: yes; TransINR's own code: no).

    Raises:
        ValueError: If an argument is out of range or ``num_heads`` does not divide ``embed_dim``.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        num_blocks: int = 6,
        num_heads: int = 12,
        mlp_ratio: int = 4,
        residual_dropout: float = 0.1,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if min(embed_dim, num_blocks, num_heads, mlp_ratio) < 1:
            raise ValueError(
                f"embed_dim {embed_dim}, num_blocks {num_blocks}, num_heads {num_heads}, mlp_ratio {mlp_ratio}: "
                "all must be at least 1."
            )
        if embed_dim % num_heads:
            raise ValueError(
                f"num_heads {num_heads} does not divide embed_dim {embed_dim}: choose a divisor of embed_dim."
            )
        if not 0 <= residual_dropout < 1:
            raise ValueError(f"residual_dropout is {residual_dropout}; it must lie in [0, 1).")
        self.embed_dim = embed_dim
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, residual_dropout, qkv_bias) for _ in range(num_blocks)
        )

    def forward(self, data_tokens: Tensor, weight_tokens: Tensor) -> Tensor:
        """Return the weight tokens ``(B, K, E)`` after attending to data tokens ``(B, T, E)`` and to each other.

        The last block does not compute the data tokens, which are not used.
        """
        tokens = torch.cat((data_tokens, weight_tokens), dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens, tokens.shape[1])
        output: Tensor = self.blocks[-1](tokens, weight_tokens.shape[1])
        return output
