"""Instance patterns per patch from a feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from composers.latents.layout import Latents, Layout
from composers.latents.parametrization import Parametrization
from composers.networks import CoordinateNetwork, PatchModulations, TensorSpec
from composers.networks.neighbours import neighbourhoods
from composers.networks.patch_grid import grid_shape


class PatchPatterns(Parametrization[PatchModulations]):
    """Patch-wise instance patterns: the features of a patch and its neighbours determine the second layer of that patch.

    The latents are a feature map ``map (B, E, *grid)`` and, for a network with a skip connection, the observed ``image``, as
    `composers.encoders.TokenMap` returns them. A Linear expands the neighbourhood of a patch to its patterns ``V (I, R)``. In
    contrast to `PatchCodes`, the map is no bottleneck: this is for super-resolution rather than for codes.

    Before training, patterns do not reach the outputs, which are those of the skip connection or of ``output_offset``.

    Args:
        feature_dim: ``E``, channels of the map; those of the encoder.
        context: Patches along each axis of the neighbourhood, odd; 3 as the unfolding of LIIF.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, feature_dim: int = 64, context: int = 3) -> None:
        super().__init__()
        if feature_dim < 1 or context < 1 or context % 2 == 0:
            raise ValueError(
                f"feature_dim is {feature_dim} and context {context}: both must be at least 1, and context must be odd."
            )
        self.feature_dim, self.context, self.radius = feature_dim, context, context // 2

    def connect(self, network: CoordinateNetwork[PatchModulations]) -> None:
        """Create the Linear.

        Raises:
            ValueError: If the network has no patches.
        """
        patches = network.patches
        if patches is None:
            raise ValueError(
                f"PatchPatterns modulates patches; {type(network).__name__} has none: use network PatchwiseMLP."
            )
        axes = len(patches.size)
        self.patch_size, self.pattern_shape = patches.size, patches.pattern_shape
        channels = {"map": self.feature_dim} | ({"image": patches.image_channels} if patches.image_channels else {})
        self.latents = {
            name: TensorSpec((count, *(-1,) * axes), partial(torch.zeros, count, *(1,) * axes))
            for name, count in channels.items()
        }
        self.patterns = nn.Linear(self.feature_dim * self.context**axes, math.prod(patches.pattern_shape))
        self._start_from_zero(patches.linear_patterns())

    @torch.no_grad()
    def _start_from_zero(self, patterns: Tensor) -> None:
        """Set to zero what determines the columns that reach the outputs before training."""
        reaching = (patterns.abs().amax((0, 1)) > 0).expand(self.pattern_shape).flatten()
        bias = torch.randn(self.pattern_shape) / math.sqrt(self.pattern_shape[0])
        self.patterns.bias.copy_(bias.flatten())
        self.patterns.bias[reaching] = 0
        self.patterns.weight[reaching] = 0

    def layout(self, shape: Sequence[int]) -> Layout:
        """Return the grid of patches of a signal with ``shape`` samples."""
        return Layout(grid_shape(shape, self.patch_size), tuple(shape))

    def compose(self, latents: Latents, layout: Layout) -> PatchModulations:
        """Return the patterns of all patches.

        Raises:
            ValueError: If the layout has no grid, or another one than the map.
        """
        features = latents["map"]
        if layout.grid is None or layout.extent is None or layout.grid != features.shape[2:]:
            raise ValueError(
                f"The map has the grid {tuple(features.shape[2:])}, and the layout states {layout.grid}: pass the layout of "
                "the observation, as Composer.layout returns it."
            )
        tokens = neighbourhoods(features.movedim(1, -1), self.context).flatten(1, -2)
        return PatchModulations(tokens, self._expanded, layout.grid, layout.extent, latents.get("image"))

    def _expanded(self, tokens: Tensor) -> Tensor:
        """Return the patterns ``(..., I, R)`` of neighbourhoods."""
        return torch.unflatten(self.patterns(tokens), -1, self.pattern_shape)
