"""PatchIPC: instance patterns per patch of the signal, from a few numbers per patch."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, PatchProjection
from composers.inference import Hypernetwork
from composers.latents import PatchCodes
from composers.networks import PatchwiseMLP
from composers.networks.patch_grid import patch_sizes


class PatchIPC(Composer):
    """Predict a code of a few numbers per patch, which determines the second layer of a small network in this patch.

    The patterns are those of instance pattern composers (Kim et al., CVPR 2023, section 3.2), one matrix per patch in place of
    one per instance, as in HUVR (arXiv 2601.14256); here the code is the bottleneck, and what follows it reads nothing else.
    Signals of any size are encoded whole at their own resolution.

    Args:
        network: Coordinate network with patches.
        encoder: Encodes the signal as one token per patch, with the same patches.
        codes: Codes per patch and their expansion to patterns; 24 numbers per patch if None.
        kwargs: Arguments of `Composer`.

    Raises:
        ValueError: If the encoder and the network divide signals into different patches.
    """

    def __init__(self, network: PatchwiseMLP, encoder: Encoder, codes: PatchCodes | None = None, **kwargs: Any) -> None:
        patch_size = patch_sizes(getattr(encoder, "patch_size", network.patch_size), len(network.patch_size))
        if patch_size != network.patch_size:
            raise ValueError(
                f"patch_size of the encoder is {patch_size}, of the network {network.patch_size}: set the same."
            )
        codes = codes or PatchCodes()
        super().__init__(network, codes, Hypernetwork(encoder, PatchProjection(codes.num_clusters)), **kwargs)
