"""Super-resolved images: what a model adds to an image of a lower resolution, beside bicubic interpolation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from composers.base import Composer
from composers.codes import InstanceCode
from composers.metrics import PSNR, SSIM, InstanceMetric
from composers.rendering import Reconstruction
from datamodules.batch import Cell, Instance
from datamodules.code_size import CodeSize
from modalities.drawing import enlarged as enlarged_drawing
from modalities.drawing import image_grid
from modalities.drawn import GALLERY_SIZE
from modalities.enlarging import EnlargementWriter
from modalities.images import Images
from modalities.resampling import interpolated

_LARGEST = 2 * GALLERY_SIZE  # longer side of an image in a gallery in pixels


def enlarged(signal: Tensor, shape: Sequence[int]) -> Tensor:
    """Return images enlarged by bicubic interpolation, the baseline of super-resolution.

    The kernel is that of Pillow (Keys 1981, a = -0.5). Values are computed in floating point, clipped, and not rounded.

    Args:
        signal: ``(..., h, w)`` in [0, 1].
        shape: Rows and columns of the result, at least ``(h, w)``; any factors.

    Returns:
        ``(..., *shape)`` in [0, 1].

    Raises:
        ValueError: If the result has fewer rows or columns than the signal.

    Example:
        >>> import torch
        >>> enlarged(torch.full((3, 4, 6), 0.5), (9, 7)).shape
        torch.Size([3, 9, 7])
    """
    channels = signal.reshape(1, -1, *signal.shape[-2:])
    return interpolated(channels, shape, "bicubic").clamp(0, 1).view(*signal.shape[:-2], *shape)


def repeated(signal: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an image ``(C, h, w)`` enlarged to ``shape`` by repeating its pixels: each of the result shows the nearest."""
    return interpolate(signal[None], tuple(shape), mode="nearest-exact")[0]


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

    def code_size(self, numbers: int, shape: Sequence[int], sample_rate: int | None = None) -> CodeSize:
        """Return the size of an instance code, with the bits per pixel of the image that the model observes."""
        return CodeSize(numbers, math.prod(shape), "bits per input pixel")

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return PSNR and SSIM of clipped values."""
        return {"psnr": PSNR(clip=True, luma=self.luma), "ssim": SSIM(clip=True, luma=self.luma)}

    def context(self, instance: Instance) -> list[Cell]:
        """Return the image that the model observes, and its bicubic enlargement to the size of the target."""
        signal = instance.signal
        if not isinstance(signal, Tensor):
            return []
        bicubic = enlarged(signal, instance.shape).flatten(1).mT
        return [
            Cell("input", signal.flatten(1).mT, tuple(signal.shape[1:]), instance.domain),
            Cell("bicubic", bicubic, instance.shape, instance.domain),
        ]

    def extras(
        self, composer: Composer, reconstruction: Reconstruction, shown: Instance, max_memory: float = 500.0
    ) -> list[Cell]:
        """Return the image decoded at the resolution of the gallery, if the target is smaller."""
        if max(shown.shape) >= GALLERY_SIZE:
            return []
        return super().extras(composer, reconstruction, shown, max_memory)

    def reduced(self, cell: Cell) -> Cell:
        """Return a cell with at most 512 pixels along its longer side, by area averaging; see `Modality.reduced`."""
        factor = _LARGEST / max(cell.shape)
        if factor >= 1:
            return cell
        shape = tuple(max(1, round(extent * factor)) for extent in cell.shape)
        values = interpolate(cell.values.mT.unflatten(-1, cell.shape)[None], shape, mode="area")[0]
        return cell._replace(values=values.flatten(1).mT, shape=shape)

    def figure(self, rows: Sequence[Sequence[Cell]], compact: bool = False) -> Image.Image:
        """Return cells in rows and columns; all images of a row have the size and proportions of its target.

        Inputs are enlarged by repeating pixels.
        """
        if compact:
            return super().figure(rows, compact)
        return image_grid([self._drawn_row([self.reduced(cell) for cell in row]) for row in rows])

    def _drawn_row(self, row: Sequence[Cell]) -> list[tuple[str, Image.Image]]:
        """Return the labelled images of a row, all of the size of the largest one, at least 256 pixels."""
        largest = max(row, key=lambda cell: math.prod(cell.shape))
        size = enlarged_drawing(self.panel(largest.values, largest.shape), GALLERY_SIZE).size
        return [
            (cell.label, self.panel(cell.values, cell.shape).resize(size, Image.Resampling.NEAREST)) for cell in row
        ]

    def media(self, composer: Composer, reconstruction: Reconstruction, instance: Instance) -> dict[str, Any]:
        """Return the observed image, its bicubic enlargement, the reconstruction, the target, and the error scaled by 5."""
        media = super().media(composer, reconstruction, instance)
        cells = {cell.label: self.panel(cell.values, cell.shape) for cell in self.context(instance)}
        target, prediction, error = media.values()
        return cells | {"reconstruction": prediction, "original": target, "error x 5": error}

    def decodes(self, code: InstanceCode) -> bool:
        """Return False, since feature maps are not stored as codes."""
        return False
