"""Metrics with one value per instance, averaged over instances (paper section 4: no clamping, rounding or pooling)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from composers.rendering import Reconstruction
from datamodules.batch import Samples
from datamodules.domain import exact

_SMALLEST_ERROR = 1e-12  # a PSNR of 120 dB stands for perfect


def instance_mse(prediction: Tensor, target: Samples) -> Tensor:
    """Return the mean squared error of every instance over its unmasked samples and channels.

    Args:
        prediction: ``(B, N, C)``.
        target: With ``values (B, N, C)``.

    Returns:
        ``(B,)`` in float32 at least.

    Raises:
        ValueError: If the target has no values.

    Example:
        >>> instance_mse(torch.tensor([[[0.5], [1.0]]]), Samples(torch.zeros(2, 1), torch.zeros(1, 2, 1))).tolist()
        [0.625]
    """
    errors = (exact(prediction) - exact(target.measured)).square().mean(-1)  # (B, N)
    if target.mask is None:
        return errors.mean(-1)
    return (errors * target.mask).sum(-1) / target.mask.sum(-1).clamp(min=1)


def psnr_of_mse(mse: Tensor) -> Tensor:
    """Return ``-10 log10(mse)`` in dB for a peak of 1; errors below 1e-12 count as that.

    Example:
        >>> psnr_of_mse(torch.tensor(0.01)).item()
        20.0
    """
    return -10 * mse.clamp(min=_SMALLEST_ERROR).log10()


def instance_mean(target: Samples) -> Tensor:
    """Return for every sample the mean value of its instance, per channel: ``(B, N, C)``, the mean-colour image."""
    weight = torch.ones_like(target.measured[..., :1]) if target.mask is None else target.mask.unsqueeze(-1)
    mean = (target.measured * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return mean.expand_as(target.measured)


def defined(numbers: Tensor, prediction: Tensor) -> Tensor:
    """Return which instances have a value. NaN means no value (silence has no SI-SDR), unless the prediction is not finite.

    Args:
        numbers: Values of a metric, ``(B,)``.
        prediction: ``(B, N, C)``.

    Returns:
        ``(B,)`` booleans.

    Example:
        >>> numbers, prediction = torch.tensor([1.0, torch.nan, torch.nan]), torch.tensor([0.0, 0.0, torch.inf])
        >>> defined(numbers, prediction.view(3, 1, 1)).tolist()
        [True, False, True]
    """
    return ~(numbers.isnan() & prediction.isfinite().flatten(1).all(1))


class InstanceMetric(ABC):
    """Measure one value per instance; means are taken over these values, never over pooled errors.

    Attributes:
        heading: Name in tables and figures; the key of the metric in ``metrics`` if empty.
        unit: Unit of the values; empty if they have none.
    """

    heading: ClassVar[str] = ""
    unit: ClassVar[str] = ""

    @abstractmethod
    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return one value per instance.

        Args:
            reconstruction: Reconstruction at ``N`` coordinates.
            target: Measured values at the same coordinates.
            shape: Shape that ``N`` unflattens to; None for a subset of the samples.

        Returns:
            ``(B,)``; NaN for instances without a value, which means exclude.
        """

    def of_tiles(self, values: Sequence[float]) -> float:
        """Return the value of a signal from those of its tiles: their mean by default."""
        return sum(values) / len(values)


class PSNR(InstanceMetric):
    """Peak signal-to-noise ratio in dB, peak 1, of the unclamped values (paper section 4)."""

    heading = "PSNR"
    unit = "dB"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the PSNR of every instance."""
        return psnr_of_mse(instance_mse(reconstruction.values, target))

    def of_tiles(self, values: Sequence[float]) -> float:
        """Return the PSNR of the mean squared error over all tiles.

        Example:
            >>> round(PSNR().of_tiles([10.0, 20.0]), 2)
            12.6
        """
        return psnr_of_mse(torch.pow(10, -torch.tensor(values, dtype=torch.float64) / 10).mean()).item()


class Gain(InstanceMetric):
    """Increase of the PSNR in dB over a constant signal with the mean value of the instance: for images, the mean colour."""

    heading = "gain over the mean"
    unit = "dB"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the gain of every instance."""
        constant = psnr_of_mse(instance_mse(instance_mean(target), target))
        return psnr_of_mse(instance_mse(reconstruction.values, target)) - constant


class SSIM(InstanceMetric):
    """Structural similarity of images in [0, 1] (Wang et al. 2004; Gaussian window of 11 pixels); NaN for other signals.

    Borders are mirrored and included, as in torchmetrics; other implementations average complete windows only.
    """

    heading = "SSIM"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the SSIM of every instance."""
        if shape is None or len(shape) != 2 or min(shape) < 11:
            return reconstruction.values.new_full((len(reconstruction.values),), float("nan"))
        seen, true = (values.float().mT.unflatten(-1, shape) for values in (reconstruction.values, target.measured))
        similarity = structural_similarity_index_measure(seen, true, data_range=1.0, reduction="none")
        assert isinstance(similarity, Tensor)
        return similarity
