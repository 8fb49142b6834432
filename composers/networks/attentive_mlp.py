"""An MLP of what a coordinate reads of tokens by attention (ANR)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.networks.encodings import Encoding, FourierFeatures
from composers.networks.token_attention import PlacedTokens
from composers.networks.token_network import TokenNetwork
from datamodules.domain import exact


class AttentiveMLP(TokenNetwork):
    """One attention from coordinates to the tokens of an instance, then an MLP (ANR, arXiv 2407.15355).

    The features of a coordinate are the query, and reach the output in no other way: there is no residual. A linear layer maps
    what the heads read to ``hidden_dim`` numbers; hidden layers with ReLU and a last layer follow.

    Reference: for novel views, the released code pads features with zeros to the width of a token. They are not padded here,
    because zeros do not affect the output.

    Args:
        encoding: From coordinates to features; 128 frequencies per axis up to 1024 if None.
        hidden_dim: Width of the hidden layers.
        num_hidden: Number of hidden layers, at least 1.
        kwargs: Arguments of `TokenNetwork`.

    Raises:
        ValueError: If sizes are missing, out of range or inconsistent.
    """

    def __init__(
        self, encoding: Encoding | None = None, hidden_dim: int = 512, num_hidden: int = 4, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if min(hidden_dim, num_hidden) < 1:
            raise ValueError(f"hidden_dim is {hidden_dim} and num_hidden {num_hidden}; both must be at least 1.")
        self.encoding = encoding or FourierFeatures(128, 1024.0)
        self.connect(self.encoding.width(self.coord_dim))
        self.projection = nn.Linear(self.attention.width, hidden_dim)
        self.hidden = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(num_hidden))
        self.last = nn.Linear(hidden_dim, self.value_dim)

    @property
    def floats_of_layers(self) -> int:
        """Return the floats of the features and of three arrays as wide as a hidden layer."""
        return 2 * self.encoding.width(self.coord_dim) + 3 * self.last.in_features

    @property
    def encoding_of_signal(self) -> Encoding | None:
        """The encoding; None where values depend on the offset from a token, which adds frequencies."""
        return None if self.attention.relative else self.encoding

    def evaluate(self, coords: Tensor, tokens: PlacedTokens) -> Tensor:
        """Return values ``(B, N, C)`` at coordinates ``(N, D)`` shared by all instances, or ``(B, N, D)``."""
        features = self.encoding(coords)
        hidden = self.projection(self.attend(features, coords, tokens))
        for layer in self.hidden:
            hidden = torch.relu(layer(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            values = functional.linear(exact(hidden), exact(self.last.weight), exact(self.last.bias))
        return torch.add(values, self.output_offset)
