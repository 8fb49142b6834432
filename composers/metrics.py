"""Metrics per instance, averaged over instances (paper section 4): values are not clamped, rounded or pooled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.functional.image import structural_similarity_index_measure

from composers.rendering import Reconstruction
from datamodules.batch import Samples
from datamodules.domain import exact

_LUMA = (65.738 / 256, 129.057 / 256, 25.064 / 256)
SMALLEST_ERROR = 1e-12  # limits the PSNR to 120 dB


def instance_mse(prediction: Tensor, target: Samples) -> Tensor:
    """Return the mean squared error of every instance over its unmasked samples and channels.

    Args:
        prediction: Predicted values ``(B, N, C)``.
        target: Samples with ``values (B, N, C)``.

    Returns:
        ``(B,)``, at least in float32.

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
    """Return ``-10 log10(mse)`` in dB for a peak of 1; errors below 1e-12 are raised to 1e-12.

    Example:
        >>> psnr_of_mse(torch.tensor(0.01)).item()
        20.0
    """
    return -10 * mse.clamp(min=SMALLEST_ERROR).log10()


def instance_mean(target: Samples) -> Tensor:
    """Return the mean of every instance per channel, expanded to all samples ``(B, N, C)``: the mean-colour image."""
    weight = torch.ones_like(target.measured[..., :1]) if target.mask is None else target.mask.unsqueeze(-1)
    mean = (target.measured * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return mean.expand_as(target.measured)


def luminance(values: Tensor) -> Tensor:
    """Return the luminance ``(..., 1)`` of colours ``(..., 3)`` in [0, 1], with the weights of MATLAB's ``rgb2ycbcr``.

    The offset of 16 / 255 is left out, since it cancels in differences. Values lie in [0, 219 / 255] (ITU-R BT.601), while the
    peak of the PSNR remains 1. Grey values
    ``(..., 1)`` are returned unchanged.

    Example:
        >>> round(luminance(torch.ones(1, 3)).item(), 4)
        0.8588
    """
    if values.shape[-1] == 1:
        return values
    return (values * values.new_tensor(_LUMA)).sum(-1, keepdim=True)


def _compared(prediction: Tensor, target: Samples, clip: bool, luma: bool) -> tuple[Tensor, Samples]:
    """Return predicted values and target, clipped to [0, 1] and as luminance if asked for."""
    prediction = exact(prediction).clamp(0, 1) if clip else prediction
    if not luma:
        return prediction, target
    return luminance(exact(prediction)), target._replace(values=luminance(exact(target.measured)))


def _inner(mask: Tensor | None, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of an image ``shape`` that a mask ``(B, N)`` leaves of all images; all without a mask."""
    if mask is None:
        return slice(None), slice(None)
    inside = mask.all(0).view(shape)
    rows, columns = (inside.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return tuple(slice(kept[0], kept[-1] + 1) if kept else slice(0) for kept in (rows, columns))  # type: ignore[return-value]


def defined(numbers: Tensor, prediction: Tensor) -> Tensor:
    """Return for which instances a metric is defined.

    NaN means undefined, such as the SI-SDR of silence. If the prediction is not finite, NaN counts as a value.

    Args:
        numbers: Metric values ``(B,)``.
        prediction: Predicted values ``(B, N, C)``.

    Returns:
        Booleans ``(B,)``.

    Example:
        >>> numbers, prediction = torch.tensor([1.0, torch.nan, torch.nan]), torch.tensor([0.0, 0.0, torch.inf])
        >>> defined(numbers, prediction.view(3, 1, 1)).tolist()
        [True, False, True]
    """
    return ~(numbers.isnan() & prediction.isfinite().flatten(1).all(1))


class DefinedMean(MeanMetric):
    """Mean over the instances for which a metric is defined; None, which is not logged, if no device has any."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def compute(self) -> Tensor | None:  # type: ignore[override]
        """Return the mean."""
        return super().compute() if float(self.weight) else None


class InstanceMetric(ABC):
    """Compute one value per instance; the reported mean is taken over these values, not over pooled errors.

    Attributes:
        heading: Name in tables and figures; if empty, the key of the metric in ``metrics``.
        unit: Unit of the values; empty if dimensionless.
        note: How the values are measured, printed below tables; empty if the heading says it.
        undefined: For which signals it has no value, printed below tables of such signals.
        clip: Whether values are clipped to [0, 1] before they are compared.
        luma: Whether the luminance of colour images is compared.
        in_training: Whether a training step can measure it of its samples; False if that would take a whole signal.
        stages: Stages that measure it: ``val``, ``test``, ``predict``.
        missing: Why it cannot be measured here, as a sentence, in which case it is left out; empty if it can.
    """

    heading: str = ""
    unit: ClassVar[str] = ""
    note: str = ""
    undefined: ClassVar[str] = "for some signals"
    in_training: ClassVar[bool] = True
    stages: ClassVar[tuple[str, ...]] = ("val", "test", "predict")
    missing: str = ""
    clip: bool = False
    luma: bool = False

    @abstractmethod
    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return one value per instance.

        Args:
            reconstruction: Reconstruction at the ``N`` coordinates of the target.
            target: Measured samples at the same coordinates.
            shape: Grid shape with ``N`` elements, or None if the coordinates form no grid.

        Returns:
            ``(B,)``; NaN where the metric is undefined. Means exclude NaN.
        """

    def of_tiles(self, values: Sequence[float]) -> float:
        """Combine the values of the tiles of a signal into one; the mean by default."""
        return sum(values) / len(values)


class PSNR(InstanceMetric):
    """Peak signal-to-noise ratio in dB, peak 1, of values that are neither clipped nor rounded (paper section 4).

    Args:
        clip: Whether to clip values to [0, 1], as in published super-resolution.
        luma: Whether to measure the luminance of colour images, as on the benchmarks of super-resolution; see `luminance`.
    """

    heading = "PSNR"
    unit = "dB"

    def __init__(self, clip: bool = False, luma: bool = False) -> None:
        self.clip, self.luma = clip, luma

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the PSNR of every instance."""
        prediction, target = _compared(reconstruction.values, target, self.clip, self.luma)
        return psnr_of_mse(instance_mse(prediction, target))

    def of_tiles(self, values: Sequence[float]) -> float:
        """Return the PSNR of the mean squared error over all tiles.

        Example:
            >>> round(PSNR().of_tiles([10.0, 20.0]), 2)
            12.6
        """
        return psnr_of_mse(torch.pow(10, -torch.tensor(values, dtype=torch.float64) / 10).mean()).item()


class Gain(InstanceMetric):
    """PSNR gain in dB over a constant signal with the mean of the instance; for images, the mean-colour image.

    NaN, which is left out of means, for a constant signal, whose mean has a mean squared error below 1e-12.
    """

    heading = "gain over the mean"
    unit = "dB"
    undefined = "for constant signals, whose mean is exact"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the gain of every instance."""
        variance = instance_mse(instance_mean(target), target)
        gain = psnr_of_mse(instance_mse(reconstruction.values, target)) - psnr_of_mse(variance)
        return gain.masked_fill(variance < SMALLEST_ERROR, float("nan"))


class SSIM(InstanceMetric):
    """Structural similarity of images in [0, 1] (Wang et al. 2004; Gaussian window of 11 pixels).

    NaN for other signals and for images with a side below 11 pixels. Borders are mirrored and included, as in torchmetrics;
    other implementations average inner windows only. Masked pixels at the borders are cut off.

    Args:
        clip: Whether to clip values to [0, 1], as in published super-resolution.
        luma: Whether to measure the luminance of colour images, as on the benchmarks of super-resolution; see `luminance`.
    """

    heading = "SSIM"

    def __init__(self, clip: bool = False, luma: bool = False) -> None:
        self.clip, self.luma = clip, luma

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the SSIM of every instance."""
        undefined = reconstruction.values.new_full((len(reconstruction.values),), float("nan"))
        if shape is None or len(shape) != 2:
            return undefined
        values, target = _compared(reconstruction.values, target, self.clip, self.luma)
        rows, columns = _inner(target.mask, shape)
        prediction, image = (
            part.float().mT.unflatten(-1, shape)[..., rows, columns] for part in (values, target.measured)
        )
        if min(image.shape[-2:]) < 11:
            return undefined
        similarity = structural_similarity_index_measure(prediction, image, data_range=1.0, reduction="none")
        assert isinstance(similarity, Tensor)
        return similarity
