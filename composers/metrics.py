"""Numbers per instance, and their mean over instances (paper section 4: no clamp, no rounding, never pooled)."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    if target.values is None:
        raise ValueError("The samples have no values to compare with: give Samples(coords, values).")
    errors = (exact(prediction) - exact(target.values)).square().mean(-1)  # (B, N)
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
    assert target.values is not None
    weight = torch.ones_like(target.values[..., :1]) if target.mask is None else target.mask.unsqueeze(-1)
    mean = (target.values * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return mean.expand_as(target.values)


def defined(numbers: Tensor, prediction: Tensor) -> Tensor:
    """Return which instances have a number: NaN is none, as silence has no SI-SDR, unless the prediction is not finite.

    Args:
        numbers: ``(B,)``, what a metric measured.
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
        """Return one number per instance.

        Args:
            reconstruction: At the same ``N`` coordinates.
            target: What was measured at the same ``N`` places.
            shape: How ``N`` unflattens, or None.

        Returns:
            ``(B,)``; NaN where an instance has no such number, which no mean counts.
        """


class PSNR(InstanceMetric):
    """Peak signal-to-noise ratio in dB, peak 1, of the unclamped values (paper section 4)."""

    heading = "PSNR"
    unit = "dB"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the PSNR of every instance."""
        return psnr_of_mse(instance_mse(reconstruction.values, target))


class Gain(InstanceMetric):
    """PSNR in dB over the constant signal of the instance's own mean value: for images, over the mean-colour image."""

    heading = "gain over the mean"
    unit = "dB"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the gain of every instance."""
        constant = psnr_of_mse(instance_mse(instance_mean(target), target))
        return psnr_of_mse(instance_mse(reconstruction.values, target)) - constant


class SSIM(InstanceMetric):
    """Structural similarity of images in [0, 1] (Wang et al. 2004; Gaussian window of 11 pixels), else NaN.

    Borders are mirrored and counted, as in torchmetrics; other programs average inner windows only.
    """

    heading = "SSIM"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the SSIM of every instance."""
        assert target.values is not None
        if shape is None or len(shape) != 2 or min(shape) < 11:
            return reconstruction.values.new_full((len(reconstruction.values),), float("nan"))
        seen, true = (values.float().mT.unflatten(-1, shape) for values in (reconstruction.values, target.values))
        similarity = structural_similarity_index_measure(seen, true, data_range=1.0, reduction="none")
        assert isinstance(similarity, Tensor)
        return similarity
