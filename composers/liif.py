"""LIIF: a local implicit image function on the feature map of an image (Chen et al., CVPR 2021)."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, TokenMap
from composers.inference import Hypernetwork
from composers.latents import Direct
from composers.losses import MeanAbsoluteError
from composers.networks import LocalMLP


class LIIF(Composer):
    """Predict a feature map from an image, which an MLP decodes at any position and scale (sections 3 and 4).

    The observed image has a lower resolution than the query, as in `datamodules.SuperResolution`.

    Args:
        network: MLP that reads the feature map; LTE is ``num_hidden: 3``, ``features: fourier``, ``skip: bilinear`` and
            ``clip_cells: true``.
        encoder: Encoder that returns a feature map with one cell per pixel.
        kwargs: Arguments of `Composer`; ``loss`` is `composers.losses.MeanAbsoluteError` by default.
    """

    def __init__(self, network: LocalMLP, encoder: Encoder, **kwargs: Any) -> None:
        kwargs["loss"] = kwargs.get("loss") or MeanAbsoluteError()
        super().__init__(network, Direct(), Hypernetwork(encoder, TokenMap()), **kwargs)
