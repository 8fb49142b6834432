"""A coordinate network that reads tokens by attention and predicts values in frequency bands (LA-INR)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.networks.coordinate_mlp import Modulations
from composers.networks.encodings import FourierFeatures
from composers.networks.network import CoordinateNetwork, Field
from composers.networks.placed_tokens import TokenSet
from composers.networks.token_attention import PlacedTokens, TokenAttention
from datamodules.domain import exact
from datamodules.spec import FromData, coord_dim, ranges, value_dim


class BandedMLP(CoordinateNetwork[Modulations]):
    """A coordinate network that attends to the tokens of an instance and adds values of several frequency bands (LA-INR).

    With Fourier features ``gamma(x; s)`` up to frequency ``s`` and ReLU after every sum that is not an output:

    - aggregation: ``m = Linear(attention(relu(Linear(gamma(x; query_frequency))), tokens))``;
    - band ``l``: ``m_l = relu(relu(Linear(gamma(x; bands[l]))) + Linear(m))``;
    - composition: ``v_1 = m_1``, ``v_l = relu(Linear(m_l + v_{l-1}))``, and the values are the sum of ``Linear(v_l)``.

    Everything but the tokens is shared by all instances; what depends on coordinates only is computed once for all of them.

    Args:
        coord_dim: ``D``, dimensions of a coordinate; the command line sets it from the data.
        value_dim: ``C``, channels of a value; set likewise.
        attention: Attention to the tokens; with two heads of 64 and free of distances if None.
        num_tokens: ``T``, tokens of an instance: a number, for tokens without places; the numbers along each axis, for tokens at
            the centres of a grid over ``ranges``; or None for a token per token of the encoder, in places likewise.
        token_dim: ``E``, entries of a token.
        hidden_dim: Width of the bands.
        bands: Highest frequency of every band, from coarse to fine.
        query_frequency: Highest frequency of the query.
        num_frequencies: Frequencies per axis of every encoding, log-spaced from 1.
        output_offset: Added to the output: 0.5 for images in [0, 1], 0 for audio.
        ranges: Lower and upper bound of the coordinates along each axis, where tokens have places; set from the data, [-1, 1]
            if None.

    Raises:
        ValueError: If sizes are missing, out of range or inconsistent.
    """

    from_data: ClassVar[FromData] = {"coord_dim": coord_dim, "value_dim": value_dim, "ranges": ranges}

    def __init__(
        self,
        coord_dim: int | None = None,
        value_dim: int | None = None,
        attention: TokenAttention | None = None,
        num_tokens: int | Sequence[int] | None = 256,
        token_dim: int = 256,
        hidden_dim: int = 256,
        bands: Sequence[float] = (32.0, 128.0),
        query_frequency: float = 16.0,
        num_frequencies: int = 64,
        output_offset: float = 0.5,
        ranges: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if coord_dim is None or value_dim is None:
            raise ValueError(
                "coord_dim and value_dim are missing: the command line sets them from the data module; in Python pass both."
            )
        if hidden_dim < 1 or not bands:
            raise ValueError(
                f"hidden_dim is {hidden_dim} and bands {list(bands)}: hidden_dim must be at least 1, and there must be at least "
                "one band."
            )
        self.coord_dim, self.value_dim = coord_dim, value_dim
        self.hidden_dim, self.output_offset = hidden_dim, output_offset
        self.attention = attention or TokenAttention()
        self.token_set = TokenSet(coord_dim, num_tokens, token_dim, ranges)
        self.slots = {"tokens": self.token_set.slot}
        self.query_encoding = FourierFeatures(num_frequencies, query_frequency)
        self.encodings = nn.ModuleList(FourierFeatures(num_frequencies, band) for band in bands)
        width = self.query_encoding.width(coord_dim)
        self.query = nn.Linear(width, hidden_dim)
        self.token_set.connect(self.attention, hidden_dim)
        self.aggregated = nn.Linear(self.attention.width, hidden_dim)
        self.of_coords = nn.ModuleList(nn.Linear(width, hidden_dim) for _ in bands)
        self.of_tokens = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in bands)
        self.composition = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in bands[1:])
        self.outputs = nn.ModuleList(nn.Linear(hidden_dim, value_dim) for _ in bands)

    @property
    def floats_per_coord(self) -> int:
        """Return the floats of the encodings, the scores of the tokens, and all layers."""
        bands = len(self.encodings)
        encodings = (bands + 1) * self.query_encoding.width(self.coord_dim)
        return encodings + self.token_set.floats_per_coord(self.attention) + (4 * bands + 2) * self.hidden_dim

    def bind(self, modulations: Modulations) -> Field:
        """Return the field of tokens ``(B, E, T)`` or ``(B, E, *grid)``, whose keys and values are computed once."""
        return partial(self._evaluate, tokens=self.token_set.project(self.attention, modulations["tokens"]))

    def forward(self, coords: Tensor, modulations: Modulations) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, ``(N, D)`` shared by all instances or ``(B, N, D)``.

        Raises:
            ValueError: If ``coords`` has another ``D``, or another number of instances than the modulations.
        """
        return self.bind(modulations)(coords)

    def activations(self, modulations: Modulations, coords: Tensor) -> dict[int, Tensor]:
        """Return the activations ``(B, N, O)`` of the bands, by band."""
        tokens = self.token_set.project(self.attention, modulations["tokens"])
        return dict(enumerate(self._bands(coords, tokens)))

    def _evaluate(self, coords: Tensor, tokens: PlacedTokens) -> Tensor:
        """Return the values at coordinates."""
        bands = self._bands(coords, tokens)
        with torch.autocast(coords.device.type, enabled=False):
            parts = [
                functional.linear(exact(band), exact(output.weight), exact(output.bias))
                for band, output in zip(bands, self.outputs, strict=True)
            ]
            return torch.stack(parts).sum(0) + self.output_offset

    def _bands(self, coords: Tensor, tokens: PlacedTokens) -> list[Tensor]:
        """Return the composition ``v_l (B, N, O)`` of every band."""
        self.token_set.check(coords, tokens)
        query = torch.relu(self.query(self.query_encoding(coords)))
        aggregated = self.aggregated(self.attention(query, tokens, self.token_set.positions(coords, tokens)))
        bands: list[Tensor] = []
        for index, encoding in enumerate(self.encodings):
            of_coords = torch.relu(self.of_coords[index](encoding(coords)))  # (N, O) or (B, N, O)
            band = torch.relu(of_coords + self.of_tokens[index](aggregated))
            bands.append(torch.relu(self.composition[index - 1](band + bands[-1])) if bands else band)
        return bands
