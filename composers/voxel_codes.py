"""VoxelCodes: a grid of features in space, predicted from posed views and read at every point."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, PerToken
from composers.inference import Hypernetwork
from composers.latents import Direct
from composers.networks import VoxelMLP


class VoxelCodes(Composer):
    """Predict a code that is local in space: features of voxels, which an MLP decodes at any point.

    It is the counterpart of `PatchIPC` and `LIIF` for views: every voxel is predicted from what the support views show there,
    so that a part of an object is decoded where it is, rather than through a single code of the object. The code is a feature
    grid as in direct voxel optimisation, but predicted in one pass; `Refinement` improves it on the support views.

    Args:
        network: MLP that reads the voxels.
        encoder: Encoder with one token per voxel; `composers.encoders.ViewVoxels` projects voxels into the views.
        kwargs: Arguments of `Composer`; the renderer is usually a `composers.rendering.VolumeRenderer`.

    Raises:
        ValueError: If the encoder and the network have different boxes.
    """

    def __init__(self, network: VoxelMLP, encoder: Encoder, **kwargs: Any) -> None:
        if (box := getattr(encoder, "half_extent", network.half_extent)) != network.half_extent:
            raise ValueError(
                f"half_extent of the encoder is {box}, of the network {network.half_extent}: set the same."
            )
        super().__init__(network, Direct(), Hypernetwork(encoder, PerToken()), **kwargs)
