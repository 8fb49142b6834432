"""Point sets as tokens: cross-attention from a few query points to all points (Zhang et al., 3DShape2VecSet, 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.encoders.encoder import Encoder
from composers.networks.encodings import FourierFeatures
from datamodules.batch import Views
from datamodules.domain import exact
from datamodules.spec import FromData, open_point_set

Queries = Literal["farthest", "random", "learned"]

_MULTIPLIER = 2654435761  # 2^32 divided by the golden ratio, whose multiples scatter (Knuth, volume 3, section 6.4)
_AXES = 3  # leading numbers of a point, its coordinates; the others are features


class PointTokens(Encoder):
    """Tokens of a set of points in space, any number of them in any order (3DShape2VecSet sections 4.1 and 4.2).

    A point is its coordinates and further numbers, such as a normal or a signed distance. It is embedded by a linear map of
    Fourier features of its coordinates, the coordinates and the further numbers. A few of the points become queries, which
    attend to all points, with residual connections around the attention and the MLP after it. The order of the points changes
    neither tokens nor their order; a set with fewer points than tokens gives repeated tokens.

    Reference: the MLP has a GELU instead of a gated GELU, and attention has several heads instead of one.

    Args:
        signal_shape: ``(-1, K)``, K numbers per point; set from the data module on the command line.
        num_tokens: Number of tokens.
        embed_dim: ``E``, width of a token, a multiple of ``num_heads``.
        num_heads: Number of attention heads.
        num_frequencies: Number of Fourier frequencies per axis, the powers of two from 1.
        queries: ``farthest``: points chosen by farthest-point sampling, which covers the shape evenly. ``random``:
            pseudo-random points, always the same for a given set, which is faster. ``learned``: learned queries, independent of
            the points (Jaegle et al., Perceiver, ICML 2021).

    Raises:
        ValueError: If sizes are missing or out of range.
    """

    from_data: ClassVar[FromData] = {"signal_shape": open_point_set}
    ordered: ClassVar[bool] = False

    def __init__(
        self,
        signal_shape: Sequence[int] | None = None,
        num_tokens: int = 256,
        embed_dim: int = 256,
        num_heads: int = 4,
        num_frequencies: int = 8,
        queries: Queries = "farthest",
    ) -> None:
        if signal_shape is None or len(signal_shape) != 2 or signal_shape[1] < _AXES:
            raise ValueError(
                f"signal_shape is {signal_shape if signal_shape is None else tuple(signal_shape)}: the command line sets it "
                "from a data module of shapes; in Python pass (-1, K) with K numbers per point, at least 3."
            )
        if min(num_tokens, embed_dim, num_heads, num_frequencies) < 1 or embed_dim % num_heads:
            raise ValueError(
                f"num_tokens is {num_tokens}, embed_dim {embed_dim}, num_heads {num_heads}, num_frequencies {num_frequencies}: "
                "each must be at least 1, and num_heads must divide embed_dim."
            )
        if queries not in get_args(Queries):
            raise ValueError(f"queries is {queries!r}: choose one of {', '.join(get_args(Queries))}.")
        super().__init__((-1, signal_shape[1]))
        self.num_tokens: int = num_tokens
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.queries = queries
        self.encoding = FourierFeatures(num_frequencies, 2.0 ** (num_frequencies - 1))
        self.embedding = nn.Linear(self.encoding.width(_AXES) + signal_shape[1], embed_dim)
        if queries == "learned":
            self.learned = nn.Parameter(torch.randn(num_tokens, embed_dim))
        self.query_norm, self.point_norm, self.mlp_norm = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim)
        self.projection = nn.Linear(embed_dim, embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, 4 * embed_dim), nn.GELU(), nn.Linear(4 * embed_dim, embed_dim))

    def tokens(self, signal: Tensor | Views) -> Tensor:
        """Return tokens ``(B, T, E)`` of point sets ``(B, P, K)``.

        Raises:
            ValueError: If the signal is no point set of this encoder.
        """
        points = sorted_points(exact(self._checked(signal)))
        embedded = self.embedding(self._features(points))  # (B, P, E)
        if self.queries == "learned":
            queries = self.learned.to(embedded.dtype).expand(points.shape[0], -1, -1)
        else:
            queries = taken(embedded, self._chosen(points))
        queries = torch.add(queries, self._attended(self.query_norm(queries), self.point_norm(embedded)))
        return torch.add(queries, self.mlp(self.mlp_norm(queries)))

    def _checked(self, signal: Tensor | Views) -> Tensor:
        """Return the point sets, or raise a ``ValueError``."""
        assert self.signal_shape is not None
        width = self.signal_shape[1]
        if not isinstance(signal, Tensor):
            raise ValueError("PointTokens takes point sets (B, P, K) but received posed views: choose data of shapes.")
        if signal.dim() != 3 or signal.shape[2] != width or not signal.shape[1]:
            raise ValueError(
                f"The signal has shape {tuple(signal.shape)}; this model takes point sets (B, P, {width}) of at least one "
                f"point: use data with {width} numbers per point (3: points, 4: with distances, 6: with normals)."
            )
        return signal

    def _features(self, points: Tensor) -> Tensor:
        """Return the Fourier features of the coordinates, and all numbers of a point, in float32 even under autocast."""
        return torch.cat((self.encoding(points[..., :_AXES]), points), dim=-1)

    def _chosen(self, points: Tensor) -> Tensor:
        """Return the indices ``(B, T)`` of the points that become queries."""
        if self.queries == "farthest":
            return farthest_points(points[..., :_AXES], self.num_tokens)
        places = torch.arange(points.shape[1], device=points.device)
        scattered = (places * _MULTIPLIER % 2**32).argsort()[: self.num_tokens]
        return _repeated(scattered, self.num_tokens).expand(points.shape[0], -1)

    def _attended(self, queries: Tensor, points: Tensor) -> Tensor:
        """Return the output ``(B, T, E)`` of the attention of the queries to the points."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query(queries), *self.key_value(points).chunk(2, dim=-1))
        )
        attended = functional.scaled_dot_product_attention(query, key, value)  # (B, heads, T, E / heads)
        output: Tensor = self.projection(attended.transpose(1, 2).flatten(2))
        return output


def sorted_points(points: Tensor) -> Tensor:
    """Return point sets ``(B, P, K)`` in lexicographic order, so that what follows does not depend on their order."""
    for column in reversed(range(points.shape[-1])):
        order = points[..., column].argsort(dim=1, stable=True)
        points = taken(points, order)
    return points


def taken(points: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of ``points (B, P, K)`` at ``indices (B, T)``, which `torch.export` traces for any number of sets."""
    return points.gather(1, indices.unsqueeze(-1).expand(-1, -1, points.shape[-1]))


@torch.no_grad()
def farthest_points(points: Tensor, count: int) -> Tensor:
    """Choose points far from each other, greedily (farthest-point sampling).

    The first is the farthest from the centre of the bounding box, each following the farthest from all before it; of equally
    far points, the first in the given order. A set of fewer than ``count`` points is repeated.

    Args:
        points: ``(B, P, D)``, finite.
        count: Number of points to choose.

    Returns:
        Indices ``(B, count)``.

    Example:
        >>> import torch
        >>> line = torch.tensor([0.0, 1.0, 2.0, 9.0])[None, :, None]
        >>> farthest_points(line, 3).tolist(), farthest_points(line, 6).tolist()
        ([[0, 3, 2]], [[0, 3, 2, 1, 0, 3]])
    """
    centre = (points.amin(1, keepdim=True) + points.amax(1, keepdim=True)) / 2
    newest = (points - centre).square().sum(-1).argmax(1, keepdim=True)  # (B, 1)
    nearest = points.new_full(points.shape[:2], math.inf)  # squared distance to the chosen points
    chosen = [newest]
    for _ in range(min(count, points.shape[1]) - 1):
        distances = (points - taken(points, newest)).square().sum(-1)
        nearest = torch.minimum(nearest, distances)
        newest = nearest.argmax(1, keepdim=True)
        chosen.append(newest)
    return _repeated(torch.cat(chosen, dim=1), count)


def _repeated(indices: Tensor, count: int) -> Tensor:
    """Return ``count`` indices ``(..., count)``, from the start again where there are fewer."""
    places = torch.arange(count, device=indices.device) % indices.shape[-1]
    return indices[..., places]
