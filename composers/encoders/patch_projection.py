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
        if len(latents) != 1 or next(iter(latents.values())).shape[:-1].count(-1) == 0:
            raise ValueError(
                f"PatchProjection predicts one code per patch; this parametrization has "
                f"{ {name: spec.shape for name, spec in latents.items()} }: use parametrization PatchCodes."
            )
        [(self.name, spec)] = latents.items()
        self.patch_values = encoder.patch_values
        numbers = spec.shape[-1] - (self.num_clusters > 1)
        directions = torch.linalg.qr(torch.randn(self.num_clusters, self.patch_values, max(numbers, 1)))[0]
        missing = numbers - directions.shape[-1]
        self.register_buffer("means", torch.zeros(self.num_clusters, self.patch_values))
        self.register_buffer("directions", nn.functional.pad(directions, (0, missing)))
        self.register_buffer("scales", torch.ones(numbers))
        self.correction = nn.Linear(encoder.embed_dim, numbers)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    @torch.no_grad()
    def initialize(self, mixture: PatchMixture) -> None:
        """Set the projection."""
        self.means.copy_(mixture.means)
        self.directions.copy_(mixture.directions)
        self.scales.copy_(mixture.scales)

    def forward(self, features: Features) -> Latents:
        """Return the codes ``(B, *grid, K)``.

        Raises:
            ValueError: If the features have no grid.
        """
        if features.grid is None:
            raise ValueError(
                "PatchProjection predicts one code per patch, and the features of this encoder have no grid."
            )
        patches = features.tokens[..., : self.patch_values]
        with torch.autocast(patches.device.type, enabled=False):
            projected = PatchMixture(self.means, self.directions, self.scales).encode(patches.to(self.means))
        correction = self.correction(features.tokens).to(projected)
        codes = projected + nn.functional.pad(correction, (projected.shape[-1] - correction.shape[-1], 0))
        return {self.name: codes.unflatten(1, features.grid)}
