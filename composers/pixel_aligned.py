"""PixelAligned: features of the support views, read where they see a point (Yu et al., pixelNeRF, CVPR 2021)."""

from __future__ import annotations

from typing import Any

from composers.base import Composer
from composers.encoders import Encoder, ViewFeatures, ViewMaps
from composers.inference import Hypernetwork
from composers.latents import Direct
from composers.networks import PixelAlignedMLP


class PixelAligned(Composer):
    """Read the feature maps of the support views at the projections of a point (pixelNeRF, section 4).

    A baseline for novel views from few images. Its code consists of the feature maps and their cameras, so that a code file is
    rendered without the images.

    Args:
        network: MLP that reads the feature maps.
        encoder: Encoder of the views; `composers.encoders.ViewFeatures` of default size if None.
        kwargs: Arguments of `Composer`.
    """

    def __init__(self, network: PixelAlignedMLP, encoder: Encoder | None = None, **kwargs: Any) -> None:
        encoder = encoder or ViewFeatures((-1, 3, -1, -1))
        super().__init__(network, Direct(), Hypernetwork(encoder, ViewMaps()), **kwargs)
