"""Cross-attention from coordinates to the tokens of an instance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.domain import exact


class PlacedTokens(NamedTuple):
    """Keys and values of the tokens of instances, and the places of the tokens.

    Attributes:
        keys: ``(B, heads, T, head_dim)``.
        values: ``(B, heads, T, head_dim)``.
        places: ``(T, D)`` in token spacings; None for tokens without places.
    """

    keys: Tensor
    values: Tensor
    places: Tensor | None


class TokenAttention(nn.Module):
    """Multi-head cross-attention from coordinates to tokens, optionally local.

    Without options, it is the selective token aggregation of LA-INR (arXiv 2310.05624): no residual, norm or MLP around it.
    Two options make it local, for tokens with places in the domain (distances are in token spacings):

    - ``sharpness`` subtracts ``sharpness * distance ** 2`` from the scores of the first head, and up to e times as much for the
      last, so that a coordinate attends to the tokens around it.
    - ``relative`` rotates pairs of entries of a value by phases proportional to the offset of the coordinate from the token, as
      rotary embeddings do for queries and keys. The output is a windowed Fourier series around each token with the values as
      coefficients: a token describes its surroundings in the same way wherever it is. Without it, a network must learn the
      phase of every frequency at the place of every token before it can represent a wave.

    Args:
        num_heads: Number of heads.
        head_dim: Width of queries, keys and values of a head; must be even if ``relative`` is true.
        qkv_bias: Whether queries, keys and values have a bias.
        threshold: Weights below it are set to zero, and the others, less the threshold, are divided by their sum (ANR,
            arXiv 2407.15355); 0 keeps all. It must be less than ``1 / T``, the largest weight being at least ``1 / T``.
        sharpness: Factor of the squared distance; 0 for attention independent of the distance.
        relative: Whether values depend on the offset of the coordinate from the token.

    Raises:
        ValueError: If an argument is out of range.
    """

    frequencies: Tensor
    slopes: Tensor

    def __init__(
        self,
        num_heads: int = 2,
        head_dim: int = 64,
        qkv_bias: bool = False,
        threshold: float = 0.0,
        sharpness: float = 0.0,
        relative: bool = False,
    ) -> None:
        super().__init__()
        if min(num_heads, head_dim) < 1 or (relative and head_dim % 2):
            raise ValueError(
                f"num_heads is {num_heads} and head_dim {head_dim}: both must be at least 1, and head_dim even where relative "
                "is true."
            )
        if not 0 <= threshold < 1 or sharpness < 0:
            raise ValueError(
                f"threshold is {threshold} and sharpness {sharpness}: threshold must lie in [0, 1), and sharpness must be at "
                "least 0."
            )
        self.num_heads, self.head_dim, self.qkv_bias = num_heads, head_dim, qkv_bias
        self.threshold, self.sharpness, self.relative = threshold, sharpness, relative

    @property
    def local(self) -> bool:
        """Whether the attention depends on the places of the tokens."""
        return self.sharpness > 0 or self.relative

    @property
    def width(self) -> int:
        """Return the numbers that are read at a coordinate."""
        return self.num_heads * self.head_dim

    def connect(self, query_dim: int, token_dim: int, coord_dim: int, num_tokens: int | None) -> None:
        """Create the projections.

        Args:
            query_dim: Features of a coordinate.
            token_dim: ``E``, entries of a token.
            coord_dim: ``D``, dimensions of places.
            num_tokens: ``T``, or None if it depends on the signal.

        Raises:
            ValueError: If ``threshold`` may exceed all weights.
        """
        if num_tokens is not None:
            self.check_threshold(num_tokens)
        self.query = nn.Linear(query_dim, self.width, bias=self.qkv_bias)
        self.key = nn.Linear(token_dim, self.width, bias=self.qkv_bias)
        self.value = nn.Linear(token_dim, self.width, bias=self.qkv_bias)
        slopes = self.sharpness * torch.linspace(0, 1, self.num_heads).exp()
        self.register_buffer("slopes", slopes, persistent=False)
        frequencies = _lowest_frequencies(self.head_dim // 2, coord_dim) if self.relative else torch.zeros(0, coord_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def check_threshold(self, num_tokens: int) -> None:
        """Refuse tokens for which the threshold may exceed all weights.

        Raises:
            ValueError: If there are too many tokens.
        """
        if self.threshold * num_tokens >= 1:
            raise ValueError(
                f"threshold is {self.threshold}; with {num_tokens} tokens all weights may be below it: set it to less than "
                f"{1 / num_tokens:.3g}."
            )

    def floats_per_coord(self, num_tokens: int) -> int:
        """Return the floats that evaluation holds per coordinate and instance."""
        copies = 1 + 2 * (self.threshold > 0) + (self.sharpness > 0)  # of a score per head and token
        return self.num_heads * num_tokens * copies + 3 * self.width

    def project(self, tokens: Tensor, places: Tensor | None = None) -> PlacedTokens:
        """Return the keys and values of tokens ``(B, T, E)``, which do not depend on coordinates.

        Args:
            tokens: Tokens.
            places: ``(T, D)`` in token spacings, which local attention requires.

        Raises:
            ValueError: If the attention is local and there are no places.
        """
        self._require(places)
        keys, values = self._heads(self.key(tokens)), self._heads(self.value(tokens))
        if self.relative and places is not None:
            values = self._rotated(values, -places)
        return PlacedTokens(keys, values, places)

    def forward(self, queries: Tensor, tokens: PlacedTokens, positions: Tensor | None = None) -> Tensor:
        """Return what the heads read at coordinates, ``(B, N, heads * head_dim)``.

        Args:
            queries: Features of coordinates ``(N, query_dim)`` shared by all instances, or ``(B, N, query_dim)``.
            tokens: Projected tokens.
            positions: Coordinates ``(N, D)`` or ``(B, N, D)`` in token spacings, which local attention requires.

        Raises:
            ValueError: If the attention is local and there are no positions.
        """
        self._require(positions)
        query = self._heads(self.query(queries if queries.dim() == 3 else queries.unsqueeze(0)))
        query = query.expand(len(tokens.keys), -1, -1, -1)
        bias = self._bias(positions, tokens.places)
        if self.threshold:
            attended = self._thresholded(query, tokens, bias)
        else:
            keys, values = tokens.keys.to(query.dtype), tokens.values.to(query.dtype)
            mask = None if bias is None else bias.to(query.dtype)  # broadcast over instances
            attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        if self.relative and positions is not None:
            attended = self._rotated(attended, positions if positions.dim() == 2 else positions.unsqueeze(1))
        read: Tensor = attended.transpose(1, 2).flatten(2)
        return read

    def _require(self, places: Tensor | None) -> None:
        """Refuse to ignore that the attention is local."""
        if self.local and places is None:
            raise ValueError(
                "Attention with sharpness or relative depends on places: pass places to project, and positions to forward."
            )

    def _thresholded(self, query: Tensor, tokens: PlacedTokens, bias: Tensor | None) -> Tensor:
        """Return the attention without the weights below the threshold."""
        scores = exact(query @ tokens.keys.to(query.dtype).mT) / math.sqrt(self.head_dim)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        kept = torch.relu(weights - self.threshold)
        kept = kept / kept.sum(-1, keepdim=True)
        attended: Tensor = kept.to(query.dtype) @ tokens.values.to(query.dtype)
        return attended

    def _bias(self, positions: Tensor | None, places: Tensor | None) -> Tensor | None:
        """Return what is added to the scores ``(1 or B, heads, N, T)``; None if nothing is."""
        if not self.sharpness or positions is None or places is None:
            return None
        squared = (exact(positions).unsqueeze(-2) - places).square().sum(-1)  # (N, T) or (B, N, T)
        squared = squared if squared.dim() == 3 else squared.unsqueeze(0)
        return -self.slopes.view(-1, 1, 1) * squared.unsqueeze(1)

    def _rotated(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Return values ``(B, heads, M, head_dim)``, rotated by the phases of offsets ``(M, D)`` or ``(B, 1, M, D)``."""
        with torch.autocast(values.device.type, enabled=False):
            wrapped = exact(offsets) % 2  # the longest period, half a period per spacing; large phases would be rounded
            phases = math.pi * (wrapped @ self.frequencies.to(wrapped.dtype).mT)
            cosine, sine = phases.cos(), phases.sin()
            real, imaginary = exact(values).chunk(2, dim=-1)
            rotated = torch.cat((real * cosine - imaginary * sine, real * sine + imaginary * cosine), dim=-1)
        return rotated.to(values.dtype)

    def _heads(self, features: Tensor) -> Tensor:
        """Split ``(B, M, heads * head_dim)`` into ``(B, heads, M, head_dim)``."""
        return torch.unflatten(features, -1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _lowest_frequencies(count: int, axes: int) -> Tensor:
    """Return the ``count`` shortest integer vectors ``(count, D)``, with one of each pair of opposite vectors.

    Example:
        >>> _lowest_frequencies(3, 1).tolist()
        [[0.0], [1.0], [2.0]]
    """
    reach = 1
    while _half_ball(reach, axes) < count:
        reach += 1
    vectors = [v for v in itertools.product(range(-reach, reach + 1), repeat=axes) if v >= (0,) * axes]
    vectors.sort(key=lambda vector: (sum(number * number for number in vector), vector))
    return torch.tensor(vectors[:count], dtype=torch.float32)


def _half_ball(reach: int, axes: int) -> int:
    """Return the number of integer vectors of at most this length, opposite ones counted once."""
    vectors: Sequence[tuple[int, ...]] = list(itertools.product(range(-reach, reach + 1), repeat=axes))
    return sum(v >= (0,) * axes and sum(n * n for n in v) <= reach * reach for v in vectors)
