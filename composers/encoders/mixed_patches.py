"""Patches of a signal of any size, mixed by convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from composers.encoders.encoder import Encoder
from composers.latents import Layout
from composers.networks import GridMixer
from composers.networks.patch_grid import cut, extend, grid_shape, patch_sizes
from datamodules.batch import Views
from datamodules.spec import FromData, open_signal_shape


class MixedPatches(Encoder):
    """Non-overlapping patches of a signal of any size and up to three axes, mixed by convolutions.

    A token holds the values of its patch, flattened channel by channel, then ``embed_dim`` features. Before training, the
    features are the same values and zeros; the blocks add functions of the neighbourhood. Positions do not enter, so a model
    encodes signals of any size at their own resolution, at a cost linear in the number of samples. A signal whose size is no
    multiple of the patch, or that is smaller, is extended by its last values; the padding is not part of any loss or metric.

    Args:
        signal_shape: ``(C, -1, ...)``, with one -1 per axis; set from the data module on the command line.
        patch_size: Samples along each axis of a patch; or one number per axis.
        embed_dim: Number of features of a token, at least the values of a patch, to which it is set if None.
        num_blocks: Number of blocks.
        kernel_size: Patches along each axis that a block combines, odd.
        mlp_ratio: Hidden width of the blocks in multiples of ``embed_dim``.

    Raises:
        ValueError: If sizes are missing, out of range or inconsistent.
    """

    from_data: ClassVar[FromData] = {"signal_shape": open_signal_shape}

    def __init__(
        self,
        signal_shape: Sequence[int] | None = None,
        patch_size: int | Sequence[int] = 8,
        embed_dim: int | None = None,
        num_blocks: int = 2,
        kernel_size: int = 5,
        mlp_ratio: int = 3,
    ) -> None:
        if signal_shape is None or len(signal_shape) < 2:
            raise ValueError(
                f"signal_shape is {signal_shape}: the command line sets it from the data module; in Python pass (channels, "
                "-1, ...) with one -1 per axis, for images (3, -1, -1)."
            )
        axes = len(signal_shape) - 1
        super().__init__((signal_shape[0], *(-1,) * axes))
        self.patch_size = patch_sizes(patch_size, axes)
        values = signal_shape[0] * math.prod(self.patch_size)
        self.num_features = embed_dim or values
        self.embed_dim = values + self.num_features
        if self.num_features < values:
            raise ValueError(f"embed_dim is {embed_dim}; a patch has {values} values: set at least {values}, or null.")
        self.patch_values = values
        self.mixer = GridMixer(self.num_features, num_blocks, kernel_size, mlp_ratio, axes)

    def layout(self, signal: Tensor | Views) -> Layout:
        """Return the number of patches and of samples along every axis of a signal ``(B, C, *shape)``."""
        if isinstance(signal, Views):
            return Layout()
        shape = tuple(signal.shape[2:])
        return Layout(grid_shape(shape, self.patch_size), shape)

    def patches(self, signal: Tensor) -> Tensor:
        """Return the values of all patches ``(B, *grid, P)`` of a signal ``(B, C, *shape)``.

        Raises:
            ValueError: If the signal is empty, or has other channels or axes than this model.
        """
        channels, axes = self.signal_shape[0] if self.signal_shape else 0, len(self.patch_size)
        if signal.dim() != axes + 2 or signal.shape[1] != channels or 0 in signal.shape[2:]:
            raise ValueError(
                f"The signal has shape {tuple(signal.shape[1:])}; this model takes {channels} channels and {axes} axes of at "
                "least one sample: convert the signal, or use a model that was trained on such signals."
            )
        return cut(extend(signal, self.patch_size), self.patch_size)

    def tokens(self, signal: Tensor | Views) -> Tensor:
        """Return tokens ``(B, T, E)`` of a signal ``(B, C, *shape)``."""
        if isinstance(signal, Views):
            raise ValueError(
                "MixedPatches takes signals (B, C, *shape) but received posed views: choose encoder ViewPatches."
            )
        patches = self.patches(signal)
        features = self.mixer(functional.pad(patches, (0, self.num_features - patches.shape[-1])))
        return torch.cat((patches, features.to(patches)), dim=-1).flatten(1, -2)
