"""Readout of one code per patch: a projection that is computed from training data, and a learned correction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from composers.encoders.encoder import Encoder, Features
from composers.encoders.readouts import Readout
from composers.latents import Latents, PatchMixture
from composers.networks import TensorSpec


class PatchProjection(Readout):
    """Project every patch to the principal directions of its cluster, and add a learned function of its token.

    The projection is computed from training data by `initialize` and does not change afterwards; the correction is zero
    before training. With several clusters, the first number of a code is the index of the cluster.

    Args:
        num_clusters: Number of clusters ``X``, as in `composers.latents.PatchCodes`.
    """

    means: Tensor
    directions: Tensor
    scales: Tensor

    def __init__(self, num_clusters: int = 1) -> None:
        super().__init__()
        self.num_clusters = num_clusters

    def connect(self, encoder: Encoder, latents: Mapping[str, TensorSpec]) -> None:
        """Create the projection, with random directions, and the correction.

        Raises:
            ValueError: If tokens do not hold patches, or the latents are not one code per patch.
        """
        if not encoder.patch_values:
            raise ValueError(
                f"PatchProjection reads the values of patches, which the tokens of {type(encoder).__name__} do not hold: use "
                "encoder MixedPatches or Patches."
            )
        shapes = {name: spec.shape for name, spec in latents.items()}
        [shape] = shapes.values() if len(shapes) == 1 else [()]
        numbers = shape[-1] - (self.num_clusters > 1) if shape else 0
        if numbers < 1 or set(shape[:-1]) != {-1}:
            raise ValueError(
                f"PatchProjection with num_clusters {self.num_clusters} predicts one code per patch, of shape (-1, ..., K) "
                f"with K at least {1 + (self.num_clusters > 1)}; this parametrization has {shapes}: use parametrization "
                "PatchCodes with the same num_clusters."
            )
        [self.name], self.free_axes = shapes, len(shape) - 1
        self.patch_values = encoder.patch_values
        directions = torch.linalg.qr(torch.randn(self.num_clusters, self.patch_values, numbers))[0]
        self.register_buffer("means", torch.zeros(self.num_clusters, self.patch_values))
        self.register_buffer("directions", nn.functional.pad(directions, (0, numbers - directions.shape[-1])))
        self.register_buffer("scales", torch.ones(numbers))
        self.correction = nn.Linear(encoder.embed_dim, numbers)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    @torch.no_grad()
    def initialize(self, mixture: PatchMixture) -> None:
        """Set the projection.

        Raises:
            ValueError: If the mixture has other clusters, patches or numbers.
        """
        if mixture.directions.shape != self.directions.shape:
            raise ValueError(
                f"PatchProjection has {_sizes(self.directions)}; the parametrization codes {_sizes(mixture.directions)}: set "
                "num_clusters of both, and patch_size of encoder and network, to the same."
            )
        self.means.copy_(mixture.means)
        self.directions.copy_(mixture.directions)
        self.scales.copy_(mixture.scales)

    def forward(self, features: Features) -> Latents:
        """Return the codes ``(B, *grid, K)``, at least in float32.

        Raises:
            ValueError: If the features have no grid, and the codes have one.
        """
        tokens = features.tokens
        if features.grid is None and self.free_axes > 1:
            raise ValueError(
                f"The codes have a grid of {self.free_axes} axes, and the features of this encoder have none: use encoder "
                "MixedPatches or Patches."
            )
        with torch.autocast(tokens.device.type, enabled=False):
            mixture = PatchMixture(self.means, self.directions, self.scales)
            projected = mixture.encode(tokens[..., : self.patch_values])
        correction = self.correction(tokens).to(projected)
        codes = projected + nn.functional.pad(correction, (projected.shape[-1] - correction.shape[-1], 0))
        grid = features.grid if features.grid and self.free_axes > 1 else tokens.shape[1:2]
        return {self.name: codes.unflatten(1, grid)}


def _sizes(directions: Tensor) -> str:
    """Return the sizes of directions ``(X, P, J)`` as text."""
    clusters, values, numbers = directions.shape
    return f"{clusters} clusters of patches of {values} values, {numbers} numbers each"
