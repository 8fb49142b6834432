"""Super-resolved images: what a model adds to an image of a lower resolution."""

from __future__ import annotations

from composers.metrics import PSNR, SSIM, InstanceMetric
from modalities.images import Images


class SuperResolvedImages(Images):
    """Images that a model reconstructs from a lower resolution.

    Args:
        luma: Whether metrics compare the luminance, as on the benchmarks of super-resolution.
    """

    linear = None

    def __init__(self, luma: bool = False) -> None:
        self.luma = luma

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return PSNR and SSIM of clipped values."""
        return {"psnr": PSNR(clip=True, luma=self.luma), "ssim": SSIM(clip=True, luma=self.luma)}
