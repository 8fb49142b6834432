"""Metrics of scenes: computed per view, then averaged over the views of a scene (paper section 4.3)."""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from pathlib import Path
from typing import Literal, TypeGuard
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from composers.metrics import InstanceMetric, instance_mse, psnr_of_mse
from composers.rendering import Reconstruction
from datamodules.batch import Samples

_SSIM_WINDOW = 11  # pixels
_LPIPS_LEAST = 32  # pixels along each side, required by the downsampling of the networks
_BACKBONES = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


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


class ViewPSNR(InstanceMetric):
    """Mean PSNR in dB over the views of a scene; NaN unless the samples are complete views."""

    heading = "PSNR"
    unit = "dB"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the mean PSNR of every instance."""
        return (
            view_psnr(reconstruction.values, target, shape).mean(-1)
            if _views(shape)
            else _undefined(reconstruction.values)
        )


class WhiteView(InstanceMetric):
    """Mean PSNR in dB of white images over the views of a scene: a trivial baseline for objects on white."""

    heading = "PSNR of white"
    unit = "dB"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the PSNR of white for every instance; the prediction plays no part."""
        return ViewPSNR().measure(reconstruction._replace(values=torch.ones_like(reconstruction.values)), target, shape)


class OverWhite(WhiteView):
    """Mean PSNR in dB minus that of white images (`WhiteView`), because objects on white are mostly white."""

    heading = "over white"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the difference for every instance."""
        return ViewPSNR().measure(reconstruction, target, shape) - super().measure(reconstruction, target, shape)


class ViewSSIM(InstanceMetric):
    """Mean structural similarity over the views of a scene, as defined in `composers.metrics.SSIM`.

    NaN unless the samples are complete views of at least 11 x 11 pixels.
    """

    heading = "SSIM"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the mean SSIM of every instance."""
        if not _views(shape, _SSIM_WINDOW):
            return _undefined(reconstruction.values)
        pairs = zip(_images(reconstruction.values, shape), _images(target.measured, shape), strict=True)
        return torch.stack([_ssim(predicted, true) for predicted, true in pairs])  # scene by scene, for memory


class LPIPS(InstanceMetric):
    """Mean perceptual distance over the views of a scene, 0 at best (Zhang et al. 2018).

    Needs torchvision and the weights of one of its networks, which are not downloaded automatically. If one is missing, a
    warning says how to get it, and the result is NaN. Also NaN unless the samples are complete views of at least 32 x 32
    pixels.

    Args:
        network: ``alex``, ``vgg`` or ``squeeze``; values of different networks are not comparable.

    Raises:
        ValueError: If the network is unknown.
    """

    heading = "LPIPS"

    def __init__(self, network: Literal["alex", "vgg", "squeeze"] = "alex") -> None:
        if network not in _BACKBONES:
            raise ValueError(f"network is {network!r}: choose one of {', '.join(_BACKBONES)}.")
        self.distance: LearnedPerceptualImagePatchSimilarity | None = None
        if (missing := _missing(network)) is None:
            self.distance = LearnedPerceptualImagePatchSimilarity(network, normalize=True)
        else:
            warnings.warn(f"LPIPS is NaN: {missing}, or remove LPIPS from the metrics.", stacklevel=2)

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the mean LPIPS of every instance."""
        if self.distance is None or not _views(shape, _LPIPS_LEAST):
            return _undefined(reconstruction.values)
        distance = self.distance.net.to(reconstruction.values.device)
        pairs = zip(_images(reconstruction.values, shape), _images(target.measured, shape), strict=True)
        with torch.no_grad():
            return torch.stack(
                [distance(predicted.clamp(0, 1), true, normalize=True).mean() for predicted, true in pairs]
            )


def _missing(network: str) -> str | None:
    """Return what LPIPS needs but lacks and how to get it, or None if everything is available."""
    if importlib.util.find_spec("torchvision") is None:
        return "it needs the package torchvision, which is not installed: pip install torchvision"
    try:
        torchvision = importlib.import_module("torchvision")  # optional dependency
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch
        reason = str(error).splitlines()[0]
        return f"the package torchvision is incompatible with this torch, {reason}: pip install it again"
    url = getattr(torchvision.models, _BACKBONES[network]).DEFAULT.url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    return None if path.is_file() else f"it needs the file {path}: download it from {url}"


def _views(shape: tuple[int, ...] | None, min_size: int = 1) -> TypeGuard[tuple[int, ...]]:
    """Return whether ``shape`` is that of complete views, ``(Q, H, W)``, of a minimum size."""
    return shape is not None and len(shape) == 3 and min(shape[1:]) >= min_size and shape[0] > 0


def _undefined(prediction: Tensor) -> Tensor:
    """Return NaN for every instance."""
    return torch.full((len(prediction),), math.nan, device=prediction.device)


def _images(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return values ``(B, N, C)`` as images ``(B, Q, C, H, W)`` in float32."""
    images: Tensor = values.float().unflatten(1, shape)
    return images.movedim(-1, 2)


def _ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean SSIM of the views ``(Q, C, H, W)`` of one scene."""
    similarity = structural_similarity_index_measure(prediction, target, data_range=1.0)
    assert isinstance(similarity, Tensor)
    return similarity
