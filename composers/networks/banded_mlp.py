"""A coordinate network that reads tokens by attention and predicts values in frequency bands (LA-INR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.networks.coordinate_mlp import Modulations
from composers.networks.encodings import Encoding, FourierFeatures
from composers.networks.token_attention import PlacedTokens
from composers.networks.token_network import TokenNetwork
from datamodules.domain import exact


class BandedMLP(TokenNetwork):
    """One attention from coordinates to the tokens of an instance, then values of several frequency bands (LA-INR).

    With Fourier features ``gamma(x; s)`` up to frequency ``s``:

    - aggregation: ``m = Linear(attention(relu(Linear(gamma(x; query_frequency))), tokens))``;
    - band ``l``: ``m_l = relu(relu(Linear(gamma(x; bands[l]))) + Linear(m))``;
    - composition: ``v_1 = m_1``, ``v_l = relu(Linear(m_l + v_{l-1}))``, and the values are the sum of ``Linear(v_l)``.

    The query and the first part of a band depend on coordinates only, and are computed once for all instances that share them.

    Args:
        bands: Highest frequency of every band, from coarse to fine.
        query_frequency: Highest frequency of the query.
        num_frequencies: Frequencies per axis of every encoding, log-spaced from ``min_frequency``.
        hidden_dim: Width of the bands.
        min_frequency: Lowest frequency of every encoding.
        unit_coords: Whether to encode coordinates in [0, 1] over ``ranges``, in place of the coordinates as they are.
        norm: Whether to normalise what the attention reads (LayerNorm).
        kwargs: Arguments of `TokenNetwork`.

    Raises:
        ValueError: If sizes are missing, out of range or inconsistent.
    """

    def __init__(
        self,
        bands: Sequence[float] = (32.0, 128.0),
        query_frequency: float = 16.0,
        num_frequencies: int = 64,
        hidden_dim: int = 256,
        min_frequency: float = 1.0,
        unit_coords: bool = False,
        norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if hidden_dim < 1 or not bands:
            raise ValueError(
                f"hidden_dim is {hidden_dim} and bands {list(bands)}: hidden_dim must be at least 1, and bands must name at "
                "least one frequency."
            )
        self.hidden_dim = hidden_dim
        self.unit_coords = unit_coords
        self.query_encoding = FourierFeatures(num_frequencies, query_frequency, min_frequency=min_frequency)
        self.encodings = nn.ModuleList(
            FourierFeatures(num_frequencies, band, min_frequency=min_frequency) for band in bands
        )
        width = self.query_encoding.width(self.coord_dim)
        self.query = nn.Linear(width, hidden_dim)
        self.connect(hidden_dim)
        self.norm = nn.LayerNorm(self.attention.width) if norm else nn.Identity()
        self.aggregation = nn.Linear(self.attention.width, hidden_dim)
        self.of_coords = nn.ModuleList(nn.Linear(width, hidden_dim) for _ in bands)
        self.of_tokens = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in bands)
        self.composition = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in bands[1:])
        self.last = nn.Linear(len(bands) * hidden_dim, self.value_dim)  # the linear maps of all bands, and their sum

    @property
    def floats_of_layers(self) -> int:
        """Return the floats of the encodings and of all layers."""
        bands = len(self.encodings)
        return (bands + 1) * self.query_encoding.width(self.coord_dim) + (4 * bands + 2) * self.hidden_dim

    @property
    def encoding_of_signal(self) -> Encoding | None:
        """The encoding of the last band; None where values depend on the offset from a token, which adds frequencies."""
        last = self.encodings[-1]
        return last if isinstance(last, Encoding) and not (self.attention.relative or self.unit_coords) else None

    def evaluate(self, coords: Tensor, tokens: PlacedTokens) -> Tensor:
        """Return values ``(B, N, C)`` at coordinates ``(N, D)`` shared by all instances, or ``(B, N, D)``."""
        bands = self._bands(coords, tokens)
        with torch.autocast(coords.device.type, enabled=False):
            values = functional.linear(exact(torch.cat(bands, dim=-1)), exact(self.last.weight), exact(self.last.bias))
            return torch.add(values, self.output_offset)

    def activations(self, modulations: Modulations, coords: Tensor) -> dict[int, Tensor]:
        """Return the activations ``(B, N, O)`` after the composition of every band."""
        return dict(enumerate(self._bands(exact(coords), self.project(modulations))))

    def _bands(self, coords: Tensor, tokens: PlacedTokens) -> list[Tensor]:
        """Return ``v_l (B, N, O)`` of every band."""
        encoded = self._unit(coords) if self.unit_coords else coords
        query = torch.relu(self.query(self.query_encoding(encoded)))
        aggregated = self.aggregation(self.norm(self.attend(query, coords, tokens)))
        bands: list[Tensor] = []
        for index, encoding in enumerate(self.encodings):
            of_coords = torch.relu(self.of_coords[index](encoding(encoded)))  # (N, O) or (B, N, O)
            band = torch.relu(of_coords + self.of_tokens[index](aggregated))
            bands.append(torch.relu(self.composition[index - 1](band + bands[-1])) if bands else band)
        return bands

    def _unit(self, coords: Tensor) -> Tensor:
        """Return the positions in [0, 1] over ``ranges``; sizes, where coordinates have them, in the same unit."""
        low, high = coords.new_tensor(self.ranges).unbind(-1)
        positions, *sizes = coords.split(len(self.ranges), dim=-1)
        return torch.cat(((positions - low) / (high - low), *(size / (high - low) for size in sizes)), dim=-1)
