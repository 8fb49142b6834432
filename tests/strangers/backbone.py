"""A frozen backbone as encoder: a random convolutional network stands for a pretrained one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from composers.encoders import Encoder
from composers.latents import Layout


class FrozenBackbone(Encoder):
    """Features of a frozen convolutional network, one token per cell of 4 x 4 pixels.

    Args:
        signal_shape: ``(C, H, W)`` of the images; under the command line, the data module states it.
        embed_dim: Channels of the features.

    Raises:
        ValueError: If ``signal_shape`` is missing or not that of an image.
    """

    def __init__(self, signal_shape: Sequence[int] | None = None, embed_dim: int = 16) -> None:
        super().__init__(signal_shape)
        if signal_shape is None or len(signal_shape) != 3:
            raise ValueError(f"signal_shape is {signal_shape}: FrozenBackbone takes images, (channels, height, width).")
        channels, height, width = signal_shape
        self.embed_dim = embed_dim
        self.num_tokens = (height // 4) * (width // 4)
        self.backbone = nn.Sequential(
            nn.Conv2d(channels, embed_dim, kernel_size=2, stride=2),
            nn.BatchNorm2d(embed_dim),
            nn.ReLU(),
            nn.Conv2d(embed_dim, embed_dim, kernel_size=2, stride=2),
        )
        self.freeze()

    def layout(self, signal: Any) -> Layout:
        """Return the number of cells along both axes."""
        return Layout(tuple(size // 4 for size in signal.shape[2:]), tuple(signal.shape[2:]))

    def tokens(self, signal: Any) -> Tensor:
        """Return tokens ``(B, T, E)`` of images ``(B, C, H, W)``."""
        features: Tensor = self.backbone(signal)
        return features.flatten(2).mT
