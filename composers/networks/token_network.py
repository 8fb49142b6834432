"""Base class of coordinate networks that attend to the tokens of an instance."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from composers.networks.coordinate_mlp import Modulations
from composers.networks.network import CoordinateNetwork, Field, TensorSpec
from composers.networks.token_attention import PlacedTokens, TokenAttention
from datamodules.domain import Grid, exact
from datamodules.spec import FromData, coord_dim, ranges, value_dim

_COUNTED = 256  # tokens that `floats_per_coord` counts where their number depends on the signal


class TokenNetwork(CoordinateNetwork[Modulations]):
    """Base class of networks whose modulations are tokens, which `TokenAttention` reads at every coordinate.

    The modulation is ``tokens (B, E, T)``. Tokens have places where they form a grid on the domain, those of the centres of its
    cells; without a grid they are a set, which only attention independent of places can read. A subclass calls `connect` at
    the end of its constructor, and implements `evaluate`.

    Args:
        coord_dim: ``D``, dimensions of a coordinate; the command line sets it from the data and the renderer. Positions with
            sizes (`datamodules.domain.CellGrid`) are allowed; the attention ignores the sizes.
        value_dim: ``C``, channels of a value; set likewise.
        token_dim: ``E``, entries of a token.
        num_tokens: Number ``T`` of tokens, which are a set, or a row if signals have one axis; or the numbers of tokens along
            each axis of a grid; or None for the tokens that the encoder returns, on its grid.
        attention: Attention from coordinates to tokens; default sizes if None.
        output_offset: Added to the output: 0.5 for images in [0, 1], 0 for audio and views.
        ranges: Lower and upper bound of the coordinates of a signal along each axis, between which the grid lies; set from the
            data, [-1, 1] if None.

    Raises:
        ValueError: If sizes are missing, out of range or inconsistent.
    """

    from_data: ClassVar[FromData] = {"coord_dim": coord_dim, "value_dim": value_dim, "ranges": ranges}

    def __init__(
        self,
        coord_dim: int | None = None,
        value_dim: int | None = None,
        token_dim: int = 256,
        num_tokens: int | Sequence[int] | None = 256,
        attention: TokenAttention | None = None,
        output_offset: float = 0.5,
        ranges: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if coord_dim is None or value_dim is None:
            raise ValueError(
                "coord_dim and value_dim are missing: the command line sets them from the data module; in Python pass both."
            )
        domain = Grid.unit(coord_dim) if ranges is None else Grid(tuple((low, high) for low, high in ranges))
        self.ranges, axes = domain.ranges, domain.coord_dim
        if coord_dim not in (axes, 2 * axes):
            raise ValueError(
                f"ranges is {ranges} and coord_dim {coord_dim}: give a lower and an upper bound for every dimension, or for "
                "every position of positions with sizes."
            )
        counts = () if num_tokens is None else (num_tokens,) if isinstance(num_tokens, int) else tuple(num_tokens)
        if token_dim < 1 or min(counts, default=1) < 1 or len(counts) not in (0, 1, axes):
            raise ValueError(
                f"token_dim is {token_dim} and num_tokens {num_tokens}; token_dim must be at least 1, and num_tokens one "
                f"number of at least 1, one for each of {axes} axes, or null."
            )
        self.coord_dim, self.value_dim = coord_dim, value_dim
        self.token_dim, self.output_offset = token_dim, output_offset
        self.num_tokens = math.prod(counts) if counts else None
        self.grid = counts if len(counts) == axes else None
        self.attention = attention or TokenAttention()
        if self.attention.local and self.num_tokens is not None and self.grid is None:
            raise ValueError(
                f"num_tokens is {num_tokens}, a set of tokens without places, and the attention depends on places: give one "
                f"number for each of {axes} axes, or null, or set sharpness of the attention to 0 and relative to false."
            )
        shape = (token_dim, *(-1,) * axes) if self.num_tokens is None else (token_dim, self.num_tokens)
        self.slots = {"tokens": TensorSpec(shape, partial(torch.randn, *(max(size, 1) for size in shape)))}

    def connect(self, query_dim: int) -> None:
        """Create the projections of the attention for queries of this width."""
        self.attention.connect(query_dim, self.token_dim, len(self.ranges), self.num_tokens)

    @abstractmethod
    def evaluate(self, coords: Tensor, tokens: PlacedTokens) -> Tensor:
        """Return values ``(B, N, C)`` at coordinates ``(N, D)`` shared by all instances, or ``(B, N, D)``.

        Args:
            coords: Coordinates, in float32 at least.
            tokens: Projected tokens of ``B`` instances.
        """

    @property
    @abstractmethod
    def floats_of_layers(self) -> int:
        """Return the floats that evaluation holds per coordinate and instance apart from those of the attention."""

    @property
    def floats_per_coord(self) -> int:
        """Return the floats of the layers and of the attention.

        Where the number of tokens depends on the signal, 256 are counted, and a field of more tokens evaluates coordinates in
        as many more parts.
        """
        return self.floats_of_layers + self.attention.floats_per_coord(self.num_tokens or _COUNTED)

    def bind(self, modulations: Modulations) -> Field:
        """Return the field of tokens, whose keys and values are computed once.

        Raises:
            ValueError: If the modulations are not tokens of this network.
        """
        return partial(self._in_parts, tokens=self.project(modulations))

    def forward(self, coords: Tensor, modulations: Modulations) -> Tensor:
        """Return values ``(B, N, C)`` at coordinates ``(N, D)`` shared by all instances, or ``(B, N, D)``.

        Args:
            coords: Coordinates.
            modulations: ``tokens (B, E, T)``, or ``(B, E, *grid)`` where the number of tokens depends on the signal.

        Raises:
            ValueError: If ``coords`` has another ``D``, or another number of instances than the tokens, or the modulations are
                not tokens of this network.
        """
        return self._in_parts(coords, self.project(modulations))

    def project(self, modulations: Modulations) -> PlacedTokens:
        """Return the keys, values and places of tokens.

        Raises:
            ValueError: If the modulations are not tokens of this network.
        """
        shapes = {name: tuple(modulation.shape[1:]) for name, modulation in modulations.items()}
        stated = self.slots["tokens"].shape
        tokens = modulations.get("tokens")
        if tokens is None or len(shapes) > 1 or not _fits(shapes["tokens"], stated):
            raise ValueError(
                f"Modulations have the shapes {shapes} per instance; this network takes tokens {stated}, where -1 is any size."
            )
        grid = self.grid
        if self.num_tokens is None:
            grid = shapes["tokens"][1:]
            self.attention.check_threshold(math.prod(grid))
        # Products are rounded differently for other strides, which latents read from a code file have.
        rows = tokens.flatten(2).mT.contiguous()
        return self.attention.project(rows, None if grid is None else self._places(grid, tokens))

    def attend(self, queries: Tensor, coords: Tensor, tokens: PlacedTokens) -> Tensor:
        """Return what the attention reads at coordinates: ``(B, N, heads * head_dim)``.

        Args:
            queries: Features of the coordinates, ``(N, query_dim)`` or ``(B, N, query_dim)``.
            coords: ``(N, D)`` or ``(B, N, D)``.
            tokens: Projected tokens.
        """
        read: Tensor = self.attention(queries, tokens, self._positions(coords, tokens))
        return read

    def _places(self, grid: Sequence[int], like: Tensor) -> Tensor:
        """Return the places ``(T, axes)`` of a grid of tokens in spacings, last axis fastest."""
        places = [torch.arange(count, device=like.device, dtype=torch.float32) + 0.5 for count in grid]
        return torch.stack(torch.meshgrid(places, indexing="ij"), dim=-1).flatten(0, -2)

    def _positions(self, coords: Tensor, tokens: PlacedTokens) -> Tensor | None:
        """Return the positions of coordinates in spacings of the tokens."""
        if tokens.places is None or not self.attention.local:
            return None
        low, high = coords.new_tensor(self.ranges).unbind(-1)
        spacings = (tokens.places[-1] + 0.5).to(coords.dtype)  # the number of tokens along each axis
        return (coords[..., : len(self.ranges)] - low) / (high - low) * spacings

    def _in_parts(self, coords: Tensor, tokens: PlacedTokens) -> Tensor:
        """Return values at coordinates, in parts where there are more tokens than `floats_per_coord` counts."""
        instances = len(tokens.keys)
        if coords.shape[-1] != self.coord_dim or (coords.dim() == 3 and len(coords) != instances):
            raise ValueError(
                f"coords have the shape {tuple(coords.shape)}; this network takes (N, {self.coord_dim}), or ({instances}, N, "
                f"{self.coord_dim}) for as many instances as the tokens."
            )
        coords = exact(coords)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.num_tokens is not None:
            return self.evaluate(coords, tokens)
        parts = min(math.ceil(tokens.keys.shape[-2] / _COUNTED), max(1, coords.shape[-2]))
        if parts <= 1:
            return self.evaluate(coords, tokens)
        return torch.cat([self.evaluate(part, tokens) for part in coords.chunk(parts, dim=-2)], dim=-2)


def _fits(shape: Sequence[int], stated: Sequence[int]) -> bool:
    """Return whether a shape is the stated one, in which -1 is any size."""
    return len(shape) == len(stated) and all(given in (-1, size) for given, size in zip(stated, shape, strict=True))
