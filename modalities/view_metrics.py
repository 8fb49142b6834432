"""Metrics of scenes: computed per view, then averaged over the views of a scene (paper section 4.3)."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, TypeGuard

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from composers.metrics import InstanceMetric, instance_mse, psnr_of_mse
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from modalities.perceptual import Backbone, PerceptualDistance, how_to_get_weights, weights_file

_SSIM_WINDOW = 11  # pixels
_LPIPS_LEAST = 32  # pixels along each side, required by the downsampling of the networks


def view_psnr(prediction: Tensor, target: Samples, shape: tuple[int, ...]) -> Tensor:
    """Return the PSNR in dB of every view, for peak value 1 and without clamping.

    Args:
        prediction: ``(B, N, C)``.
        target: With ``values (B, N, C)``.
        shape: ``(Q, H, W)``, number and size of the views.

    Returns:
        ``(B, Q)``.

    Example:
        >>> target = Samples(torch.zeros(2, 6), torch.zeros(1, 2, 3))
        >>> view_psnr(torch.tensor([[[0.1] * 3, [0.01] * 3]]), target, (2, 1, 1)).round().tolist()
        [[20.0, 40.0]]
    """
    views = (len(prediction) * shape[0], -1)
    mask = None if target.mask is None else target.mask.reshape(views)
    true = Samples(target.coords, target.measured.reshape(*views, target.measured.shape[-1]), mask)
    errors = instance_mse(prediction.reshape(*views, prediction.shape[-1]), true)
    return psnr_of_mse(errors).view(len(prediction), shape[0])


class ViewMetric(InstanceMetric):
    """Base class of metrics that are computed per view and averaged over the views of a scene.

    Values are NaN unless the samples are complete views of at least ``min_size`` pixels along each side.
    """

    min_size: ClassVar[int] = 1

    @abstractmethod
    def of_views(self, prediction: Tensor, target: Samples, shape: tuple[int, ...]) -> Tensor:
        """Return the values of complete views.

        Args:
            prediction: ``(B, Q * H * W, C)``.
            target: With ``values (B, Q * H * W, C)``.
            shape: ``(Q, H, W)``.

        Returns:
            ``(B, Q)``.
        """

    def per_view(self, prediction: Tensor, target: Samples, shape: tuple[int, ...]) -> Tensor:
        """Return the value of every view, ``(B, Q)``; NaN where it is undefined."""
        if min(shape[1:]) < self.min_size:
            return torch.full((len(prediction), shape[0]), math.nan, device=prediction.device)
        return self.of_views(prediction, target, shape)

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the mean over the views of every instance."""
        values = reconstruction.values
        if not complete_views(shape):
            return torch.full((len(values),), math.nan, device=values.device)
        return self.per_view(values, target, shape).mean(-1)


class ViewPSNR(ViewMetric):
    """Mean PSNR in dB over the views of a scene; NaN unless the samples are complete views."""

    heading = "PSNR"
    unit = "dB"

    def of_views(self, prediction: Tensor, target: Samples, shape: tuple[int, ...]) -> Tensor:
        """Return the PSNR of every view."""
        return view_psnr(prediction, target, shape)


class WhiteView(ViewMetric):
    """Mean PSNR in dB of white images over the views of a scene: a trivial baseline for objects on white."""

    heading = "PSNR of white"
    unit = "dB"

    def of_views(self, prediction: Tensor, target: Samples, shape: tuple[int, ...]) -> Tensor:
        """Return the PSNR of white for every view; the prediction plays no part."""
        return view_psnr(torch.ones_like(prediction), target, shape)


class OverWhite(ViewMetric):
    """Mean PSNR in dB minus that of white images (`WhiteView`), because objects on white are mostly white."""

    heading = "over white"
    unit = "dB"

    def of_views(self, prediction: Tensor, target: Samples, shape: tuple[int, ...]) -> Tensor:
        """Return the difference for every view."""
        return view_psnr(prediction, target, shape) - view_psnr(torch.ones_like(prediction), target, shape)


class ViewSSIM(ViewMetric):
    """Mean structural similarity over the views of a scene, as defined in `composers.metrics.SSIM`.

    NaN unless the samples are complete views of at least 11 x 11 pixels.
    """

    heading = "SSIM"
    min_size = _SSIM_WINDOW

    def of_views(self, prediction: Tensor, target: Samples, shape: tuple[int, ...]) -> Tensor:
        """Return the SSIM of every view."""
        pairs = zip(_images(prediction, shape), _images(target.measured, shape), strict=True)
        return torch.stack([_ssim(predicted, true) for predicted, true in pairs])  # scene by scene, for memory


class LPIPS(ViewMetric):
    """Mean perceptual distance over the views of a scene, 0 at best (Zhang et al. 2018).

    The weights of its network are read from a file and never downloaded. Without ``weights``, they are looked for in the cache
    of `torch.hub`; if they are not there, a warning says how to get them, and the result is NaN. Also NaN unless the samples
    are complete views of at least 32 x 32 pixels. Values are clipped to [0, 1].

    Args:
        network: ``alex``, ``vgg`` or ``squeeze``; values of different networks are not comparable.
        weights: File with the weights of the network as published by torchvision; None for the cache of `torch.hub`.

    Raises:
        ValueError: If the network is unknown, if the file ``weights`` is missing, or if a file does not hold the weights of the
            network.
    """

    heading = "LPIPS"
    min_size = _LPIPS_LEAST
    in_training: ClassVar[bool] = False

    def __init__(self, network: Backbone = "alex", weights: str | None = None) -> None:
        path = weights_file(network) if weights is None else Path(weights)
        self.distance: PerceptualDistance | None = None
        if weights is not None or path.is_file():
            self.distance = PerceptualDistance(network, path)
        else:
            fix = f"{how_to_get_weights(network, path)}, pass another file as weights, or remove LPIPS from the metrics"
            warnings.warn(f"LPIPS is NaN, because the weights of {network} are missing: {fix}.", stacklevel=2)

    def of_views(self, prediction: Tensor, target: Samples, shape: tuple[int, ...]) -> Tensor:
        """Return the distance of every view; NaN without weights."""
        if self.distance is None:
            return torch.full((len(prediction), shape[0]), math.nan, device=prediction.device)
        distance = self.distance.to(prediction.device)
        pairs = zip(_images(prediction, shape), _images(target.measured, shape), strict=True)
        with torch.no_grad():
            return torch.stack([distance(predicted.clamp(0, 1), true) for predicted, true in pairs])


def complete_views(shape: tuple[int, ...] | None) -> TypeGuard[tuple[int, ...]]:
    """Return whether ``shape`` is that of complete views, ``(Q, H, W)``."""
    return shape is not None and len(shape) == 3 and min(shape) > 0


def _images(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return values ``(B, N, C)`` as images ``(B, Q, C, H, W)`` in float32."""
    images: Tensor = values.float().unflatten(1, shape)
    return images.movedim(-1, 2)


def _ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the SSIM ``(Q,)`` of the views ``(Q, C, H, W)`` of one scene."""
    similarity = structural_similarity_index_measure(prediction, target, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return similarity
