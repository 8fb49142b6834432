"""Convolutional encoders without up-sampling: one token per pixel of an image of any size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from composers.encoders.encoder import Encoder
from composers.latents import Layout
from datamodules.batch import Views
from datamodules.spec import FromData, open_signal_shape


class ConvolutionalEncoder(Encoder):
    """Base class of convolutional trunks, which turn an image of any size into a feature map of the same size.

    Images in [0, 1] are scaled to [-1, 1].

    Args:
        signal_shape: ``(C, -1, -1)``; set from the data module on the command line.
        width: Channels of the feature map.

    Raises:
        ValueError: If sizes are missing or out of range.
    """

    from_data: ClassVar[FromData] = {"signal_shape": open_signal_shape}

    def __init__(self, signal_shape: Sequence[int] | None, width: int) -> None:
        if signal_shape is None or len(signal_shape) != 3 or width < 1:
            raise ValueError(
                f"signal_shape is {signal_shape} and width {width}: the command line sets signal_shape from a data module of "
                "images; in Python pass (channels, -1, -1). width must be at least 1."
            )
        super().__init__((signal_shape[0], -1, -1))
        self.embed_dim = width

    @abstractmethod
    def features(self, image: Tensor) -> Tensor:
        """Return the feature map ``(B, E, H, W)`` of images ``(B, C, H, W)`` in [-1, 1]."""

    def layout(self, signal: Tensor | Views) -> Layout:
        """Return one token per pixel."""
        assert isinstance(signal, Tensor)
        size = tuple(signal.shape[2:])
        return Layout(size, size)

    def tokens(self, signal: Tensor | Views) -> Tensor:
        """Return tokens ``(B, H W, E)`` of images ``(B, C, H, W)``, a view of the feature map.

        Raises:
            ValueError: If the images have another number of channels.
        """
        assert isinstance(signal, Tensor)
        assert self.signal_shape is not None
        if signal.dim() != 4 or signal.shape[1] != self.signal_shape[0]:
            raise ValueError(
                f"The signal has the shape {tuple(signal.shape)}; this encoder takes images (B, {self.signal_shape[0]}, H, W)."
            )
        return self.features(2 * signal - 1).flatten(2).mT


class _ResidualBlock(nn.Module):
    """Two convolutions with a skip connection, without normalisation (Lim et al., EDSR, 2017, figure 2)."""

    def __init__(self, width: int, residual_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), nn.ReLU(), _convolution(width, width))
        self.residual_scale = residual_scale

    def forward(self, features: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return torch.add(features, self.body(features), alpha=self.residual_scale)


class EDSR(ConvolutionalEncoder):
    """The trunk of EDSR without up-sampling (Lim et al., CVPR workshops 2017; "baseline" at the default sizes).

    Args:
        signal_shape: ``(C, -1, -1)``; set from the data module on the command line.
        width: Channels of all maps.
        num_blocks: Number of residual blocks.
        residual_scale: Factor of the residuals; the large EDSR has 0.1.
    """

    def __init__(
        self,
        signal_shape: Sequence[int] | None = None,
        width: int = 64,
        num_blocks: int = 16,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__(signal_shape, width)
        assert self.signal_shape is not None
        self.head = _convolution(self.signal_shape[0], width)
        self.blocks = nn.Sequential(*(_ResidualBlock(width, residual_scale) for _ in range(num_blocks)))
        self.tail = _convolution(width, width)
        self.context = 2 + 2 * num_blocks  # one pixel per convolution of 3 x 3

    def features(self, image: Tensor) -> Tensor:
        """Return the feature map; see `ConvolutionalEncoder.features`."""
        shallow = self.head(image)
        return torch.add(self.tail(self.blocks(shallow)), shallow)


class _DenseBlock(nn.Module):
    """Convolutions that read the outputs of all before them, fused to the width of the input (RDN, section 3.2)."""

    def __init__(self, width: int, growth: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_convolution(width + growth * layer, growth) for layer in range(num_layers))
        self.fusion = nn.Conv2d(width + growth * num_layers, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return a map of the same shape."""
        read = features
        for layer in self.layers:
            read = torch.cat((read, torch.relu(layer(read))), dim=1)
        return torch.add(self.fusion(read), features)


class RDN(ConvolutionalEncoder):
    """The trunk of RDN without up-sampling (Zhang et al., CVPR 2018, figure 2; configuration B at the default sizes).

    Args:
        signal_shape: ``(C, -1, -1)``; set from the data module on the command line.
        width: Channels of the maps between blocks.
        growth: Channels that a convolution of a block adds.
        num_blocks: Number of dense blocks.
        num_layers: Convolutions of a block.
    """

    def __init__(
        self,
        signal_shape: Sequence[int] | None = None,
        width: int = 64,
        growth: int = 64,
        num_blocks: int = 16,
        num_layers: int = 8,
    ) -> None:
        super().__init__(signal_shape, width)
        assert self.signal_shape is not None
        self.num_layers = num_layers
        self.head = _convolution(self.signal_shape[0], width)
        self.second = _convolution(width, width)
        self.blocks = nn.ModuleList(_DenseBlock(width, growth, num_layers) for _ in range(num_blocks))
        self.fusion = nn.Sequential(nn.Conv2d(width * num_blocks, width, 1), _convolution(width, width))
        self.context = 3 + num_layers * num_blocks  # one pixel per convolution of 3 x 3

    def features(self, image: Tensor) -> Tensor:
        """Return the feature map; see `ConvolutionalEncoder.features`."""
        shallow = self.head(image)
        features, outputs = self.second(shallow), []
        for block in self.blocks:
            features = block(features)
            outputs.append(features)
        return torch.add(self.fusion(torch.cat(outputs, dim=1)), shallow)


def _convolution(channels: int, width: int) -> nn.Conv2d:
    """Return a convolution of 3 x 3 with zero padding."""
    return nn.Conv2d(channels, width, 3, padding=1)
