"""The transformer of the hypernetwork: pre-LN blocks, the last of which computes only the weight tokens, and decoder blocks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention of the last tokens of a sequence to all tokens, or of tokens to other tokens.

    Args:
        embed_dim: ``E``, width of a token, a multiple of ``num_heads`` if ``head_dim`` is None.
        num_heads: Number of heads.
        qkv_bias: Whether queries, keys and values have a bias (the IPC repository: yes; TransINR's own code: no).
        head_dim: Width of a head; ``E / num_heads`` if None.
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool, head_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        width = embed_dim if head_dim is None else num_heads * head_dim
        self.query = nn.Linear(embed_dim, width, bias=qkv_bias)
        self.key_value = nn.Linear(embed_dim, 2 * width, bias=qkv_bias)
        self.projection = nn.Linear(width, embed_dim)

    def forward(self, tokens: Tensor, num_read: int) -> Tensor:
        """Return the attention output for the last ``num_read`` of ``tokens (B, T, E)``: ``(B, num_read, E)``."""
        return self.attend(tokens[:, -num_read:], tokens)

    def attend(self, tokens: Tensor, others: Tensor) -> Tensor:
        """Return the output of the attention of ``tokens (B, K, E)`` to ``others (B, T, E)``: ``(B, K, E)``."""
        query = self._heads(self.query(tokens))
        key, value = (self._heads(part) for part in self.key_value(others).chunk(2, dim=-1))
        attended = functional.scaled_dot_product_attention(query, key, value)  # (B, heads, K, head_dim)
        output: Tensor = self.projection(attended.transpose(1, 2).flatten(2))
        return output

    def _heads(self, tokens: Tensor) -> Tensor:
        """Split ``(B, T, heads * head_dim)`` into ``(B, heads, T, head_dim)``."""
        return tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


class Block(nn.Module):
    """``x += attention(norm(x)); x += mlp(norm(x))`` with an exact GELU and dropout on both residual branches.

    Args:
        embed_dim: ``E``, width of a token.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP divided by ``embed_dim``.
        residual_dropout: Dropout probability of the residual branches.
        qkv_bias: Whether queries, keys and values have a bias.
        head_dim: Width of a head; ``E / num_heads`` if None.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: int,
        residual_dropout: float,
        qkv_bias: bool,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, qkv_bias, head_dim)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = _mlp(embed_dim, mlp_ratio)
        self.dropout = nn.Dropout(residual_dropout)

    def forward(self, tokens: Tensor, num_read: int) -> Tensor:
        """Return the last ``num_read`` of ``tokens (B, T, E)`` after this block."""
        residual = tokens[:, -num_read:] + self.dropout(self.attention(self.attention_norm(tokens), num_read))
        return torch.add(residual, self.dropout(self.mlp(self.mlp_norm(residual))))


class DecoderBlock(nn.Module):
    """A `Block` with attention to other tokens before the MLP: ``x += attention(norm(x), others)``, which are not normalised.

    Args:
        embed_dim: ``E``, width of a token.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP divided by ``embed_dim``.
        residual_dropout: Dropout probability of the residual branches.
        qkv_bias: Whether queries, keys and values have a bias.
        head_dim: Width of a head; ``E / num_heads`` if None.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: int,
        residual_dropout: float,
        qkv_bias: bool,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, qkv_bias, head_dim)
        self.cross_norm = nn.LayerNorm(embed_dim)
        self.cross_attention = Attention(embed_dim, num_heads, qkv_bias, head_dim)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = _mlp(embed_dim, mlp_ratio)
        self.dropout = nn.Dropout(residual_dropout)

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        """Return tokens ``(B, K, E)`` after this block, with ``others (B, T, E)``."""
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens), tokens.shape[1]))
        tokens = tokens + self.dropout(self.cross_attention.attend(self.cross_norm(tokens), others))
        return torch.add(tokens, self.dropout(self.mlp(self.mlp_norm(tokens))))


class Transformer(nn.Module):
    """A stack of pre-LN blocks without mask or final LayerNorm, as in the released code.

    Attributes:
        embed_dim: ``E``.
        decoder_block: Return a new `DecoderBlock` of the sizes of the blocks.

    Args:
        embed_dim: ``E``, width of a token, a multiple of ``num_heads`` if ``head_dim`` is None.
        num_blocks: Number of blocks, at least 1.
        num_heads: Number of attention heads of every block.
        mlp_ratio: Hidden width of every MLP divided by ``embed_dim``.
        residual_dropout: Dropout probability of the residual branches, in [0, 1).
        qkv_bias: Whether queries, keys and values have a bias (the IPC repository: yes; TransINR's own code: no).
        head_dim: Width of a head; ``E / num_heads`` if None.

    Raises:
        ValueError: If an argument is out of range, or ``num_heads`` does not divide ``embed_dim`` and ``head_dim`` is None.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        num_blocks: int = 6,
        num_heads: int = 12,
        mlp_ratio: int = 4,
        residual_dropout: float = 0.1,
        qkv_bias: bool = True,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        if min(embed_dim, num_blocks, num_heads, mlp_ratio, 1 if head_dim is None else head_dim) < 1:
            raise ValueError(
                f"embed_dim {embed_dim}, num_blocks {num_blocks}, num_heads {num_heads}, mlp_ratio {mlp_ratio}, head_dim "
                f"{head_dim}: all must be at least 1."
            )
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(
                f"num_heads {num_heads} does not divide embed_dim {embed_dim}: choose a divisor of embed_dim, or set head_dim."
            )
        if not 0 <= residual_dropout < 1:
            raise ValueError(f"residual_dropout is {residual_dropout}; it must lie in [0, 1).")
        self.embed_dim = embed_dim
        sizes = (embed_dim, num_heads, mlp_ratio, residual_dropout, qkv_bias, head_dim)
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(num_blocks))
        self.decoder_block = partial(DecoderBlock, *sizes)

    def encode(self, tokens: Tensor) -> Tensor:
        """Return all tokens ``(B, T, E)`` after attending to each other."""
        encoded: Tensor = self(tokens[:, :0], tokens)
        return encoded

    def forward(self, data_tokens: Tensor, weight_tokens: Tensor) -> Tensor:
        """Return the weight tokens ``(B, K, E)`` after attending to data tokens ``(B, T, E)`` and to each other.

        The last block does not compute the data tokens, which are not used.
        """
        tokens = torch.cat((data_tokens, weight_tokens), dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens, tokens.shape[1])
        output: Tensor = self.blocks[-1](tokens, weight_tokens.shape[1])
        return output


def _mlp(embed_dim: int, mlp_ratio: int) -> nn.Sequential:
    """Return the MLP of a block."""
    return nn.Sequential(
        nn.Linear(embed_dim, mlp_ratio * embed_dim), nn.GELU(), nn.Linear(mlp_ratio * embed_dim, embed_dim)
    )
