"""Convolutional mixing of the tokens of a grid of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.domain import exact

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Block(nn.Module):
    """``x += mlp(norm(convolution(norm(x))))`` with a depthwise convolution; the last layer is zero before training."""

    def __init__(self, embed_dim: int, kernel_size: int, mlp_ratio: int, axes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.convolution = _CONVOLUTIONS[axes - 1](embed_dim, embed_dim, kernel_size, padding="same", groups=embed_dim)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.expand = nn.Linear(embed_dim, mlp_ratio * embed_dim)
        self.project = nn.Linear(mlp_ratio * embed_dim, embed_dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(B, *grid, E)`` after this block."""
        mixed = self._convolved(self.norm(tokens).movedim(-1, 1)).movedim(1, -1)
        hidden = nn.functional.gelu(self.expand(self.mlp_norm(mixed)))
        return torch.add(tokens, self.project(hidden))

    def _convolved(self, channels: Tensor) -> Tensor:
        """Return the depthwise convolution of ``(B, E, *grid)``."""
        is_slow = channels.device.type == "cpu" and torch.is_grad_enabled()  # backward in bfloat16, two to three times
        enabled = torch.is_autocast_enabled(channels.device.type) and not is_slow
        with torch.autocast(channels.device.type, enabled=enabled):
            convolved: Tensor = self.convolution(exact(channels) if is_slow else channels)
        return convolved


class GridMixer(nn.Module):
    """Mix the tokens of a grid of any size and up to three axes by depthwise convolutions and MLPs (after ConvNeXt).

    Positions enter through the convolutions alone, and the cost is linear in the number of tokens. Before training, a mixer
    is the identity.

    Args:
        embed_dim: ``E``, numbers of a token.
        num_blocks: Number of blocks; 0 mixes nothing.
        kernel_size: Tokens along each axis that a block combines, odd.
        mlp_ratio: Hidden width of an MLP in multiples of ``embed_dim``.
        axes: Number of axes of the grid, 1 to 3.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, embed_dim: int, num_blocks: int, kernel_size: int, mlp_ratio: int, axes: int) -> None:
        super().__init__()
        if embed_dim < 1 or num_blocks < 0 or mlp_ratio < 1:
            raise ValueError(
                f"embed_dim is {embed_dim}, num_blocks {num_blocks}, mlp_ratio {mlp_ratio}; they must be at least 1, 0 and 1."
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd and at least 1.")
        if not 1 <= axes <= len(_CONVOLUTIONS):
            raise ValueError(f"The signal has {axes} axes; convolutions mix grids of 1 to {len(_CONVOLUTIONS)} axes.")
        self.blocks = nn.ModuleList(_Block(embed_dim, kernel_size, mlp_ratio, axes) for _ in range(num_blocks))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return mixed tokens ``(B, *grid, E)``."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens
