"""Super-resolved images: what a model adds to an image of a lower resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composers.metrics import PSNR, SSIM, InstanceMetric
from modalities.enlarging import EnlargementWriter
from modalities.images import Images


class SuperResolvedImages(Images):
    """Images that a model reconstructs from a lower resolution.

    Args:
        luma: Whether metrics compare the luminance, as on the benchmarks of super-resolution.
    """

    task = "super-resolution"
    reader = "datamodules.LowResolutionFiles"
    reading = ("scale", "size", "max_pixels")
    writer = EnlargementWriter
    decoding = ()
    weights = "photos_liif"
    linear = None

    def __init__(self, luma: bool = False) -> None:
        self.luma = luma

    def takes(self, facts: Mapping[str, Any]) -> bool:
        """Return whether a model was trained at scales between what it observes and what it reconstructs."""
        return facts.get("scales") is not None

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return PSNR and SSIM of clipped values."""
        return {"psnr": PSNR(clip=True, luma=self.luma), "ssim": SSIM(clip=True, luma=self.luma)}
