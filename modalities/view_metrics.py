"""Numbers per scene: of every view its own, then their mean over the views of the scene (paper section 4.3)."""

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
from datamodules.batch import Samples

_SSIM_WINDOW = 11  # pixels
_LPIPS_LEAST = 32  # pixels along each side, fewer of which the networks behind it cannot halve often enough
_BACKBONES = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


def view_psnr(prediction: Tensor, target: Samples, shape: tuple[int, ...]) -> Tensor:
    """Return the PSNR in dB, peak 1, of every view, unclamped.

    Args:
        prediction: ``(B, N, C)``.
        target: With ``values (B, N, C)``.
        shape: ``(Q, H, W)``, views and their pixels.

    Returns:
        ``(B, Q)``.

    Example:
        >>> target = Samples(torch.zeros(2, 6), torch.zeros(1, 2, 3))
        >>> view_psnr(torch.tensor([[[0.1] * 3, [0.01] * 3]]), target, (2, 1, 1)).round().tolist()
        [[20.0, 40.0]]
    """
    assert target.values is not None
    views = (len(prediction) * shape[0], -1)
    mask = None if target.mask is None else target.mask.reshape(views)
    true = Samples(target.coords, target.values.reshape(*views, target.values.shape[-1]), mask)
    errors = instance_mse(prediction.reshape(*views, prediction.shape[-1]), true)
    return psnr_of_mse(errors).view(len(prediction), shape[0])


class ViewPSNR(InstanceMetric):
    """PSNR in dB of every view, then the mean over the views of a scene; NaN for anything but whole views."""

    heading = "PSNR"
    unit = "dB"

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the mean PSNR of every instance."""
        return view_psnr(prediction, target, shape).mean(-1) if _views(shape) else _undefined(prediction)


class WhiteView(InstanceMetric):
    """PSNR in dB of white images, per view, then their mean: what a scene gives away for nothing."""

    heading = "PSNR of white"
    unit = "dB"

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the PSNR of white for every instance; the prediction plays no part."""
        return ViewPSNR().measure(torch.ones_like(prediction), target, shape)


class OverWhite(WhiteView):
    """PSNR in dB over that of white images, per view, then the mean: objects on white are mostly white."""

    heading = "over white"

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the difference for every instance."""
        return ViewPSNR().measure(prediction, target, shape) - super().measure(prediction, target, shape)


class ViewSSIM(InstanceMetric):
    """Structural similarity of every view, as `composers.metrics.SSIM` has it, then the mean over the views of a scene.

    NaN for anything but whole views of at least 11 pixels along each side.
    """

    heading = "SSIM"

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the mean SSIM of every instance."""
        assert target.values is not None
        if not _views(shape, _SSIM_WINDOW):
            return _undefined(prediction)
        pairs = zip(_images(prediction, shape), _images(target.values, shape), strict=True)
        return torch.stack([_ssim(seen, true) for seen, true in pairs])  # scene by scene, for memory


class LPIPS(InstanceMetric):
    """Perceptual distance of every view, 0 at best (Zhang et al. 2018), then the mean over the views of a scene.

    It needs torchvision and the weights of a network of its, which are never downloaded here: where one is missing, a warning
    says so and how to get it, and the number is NaN for all. Also NaN for anything but whole views of at least 32 pixels.

    Args:
        network: ``alex``, ``vgg`` or ``squeeze``: their numbers do not compare.

    Raises:
        ValueError: If there is no such network.
    """

    heading = "LPIPS"

    def __init__(self, network: Literal["alex", "vgg", "squeeze"] = "alex") -> None:
        if network not in _BACKBONES:
            raise ValueError(f"network of LPIPS is {network}; allowed are {', '.join(_BACKBONES)}.")
        self.distance: LearnedPerceptualImagePatchSimilarity | None = None
        if (missing := _missing(network)) is None:
            self.distance = LearnedPerceptualImagePatchSimilarity(network, normalize=True)
        else:
            warnings.warn(f"LPIPS is NaN: {missing}, or leave LPIPS out.", stacklevel=2)

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the mean LPIPS of every instance."""
        assert target.values is not None
        if self.distance is None or not _views(shape, _LPIPS_LEAST):
            return _undefined(prediction)
        distance = self.distance.net.to(prediction.device)
        pairs = zip(_images(prediction, shape), _images(target.values, shape), strict=True)
        with torch.no_grad():
            return torch.stack([distance(seen.clamp(0, 1), true, normalize=True).mean() for seen, true in pairs])


def _missing(network: str) -> str | None:
    """Return what LPIPS lacks and the way to it; None if it has all."""
    if importlib.util.find_spec("torchvision") is None:
        return "it needs the package torchvision, which is not installed: pip install torchvision"
    try:
        torchvision = importlib.import_module("torchvision")  # here, because nothing else needs it
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch
        return f"the package torchvision does not fit this torch, {str(error).splitlines()[0]}: pip install it anew"
    address = getattr(torchvision.models, _BACKBONES[network]).DEFAULT.url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(address).path).name)
    return None if path.is_file() else f"it needs the file {path}: get it from {address}"


def _views(shape: tuple[int, ...] | None, least: int = 1) -> TypeGuard[tuple[int, ...]]:
    """Return whether samples are whole views of so many pixels along each side, in order."""
    return shape is not None and len(shape) == 3 and min(shape[1:]) >= least and shape[0] > 0


def _undefined(prediction: Tensor) -> Tensor:
    """Return NaN for every instance."""
    return torch.full((len(prediction),), math.nan, device=prediction.device)


def _images(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return values ``(B, N, C)`` as images ``(B, Q, C, H, W)`` in float32."""
    images: Tensor = values.float().unflatten(1, shape)
    return images.movedim(-1, 2)


def _ssim(seen: Tensor, true: Tensor) -> Tensor:
    """Return the mean SSIM of the views ``(Q, C, H, W)`` of one scene."""
    similarity = structural_similarity_index_measure(seen, true, data_range=1.0)
    assert isinstance(similarity, Tensor)
    return similarity
