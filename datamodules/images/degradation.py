"""Degradations: how an image of a low resolution comes about."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from kornia.filters import gaussian_blur2d
from PIL import Image
from torch import Tensor

from datamodules.storage.images import from_pillow, resized, to_pillow

_FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX)


class Degradation(ABC):
    """Base class of degradations, which make the image of a low resolution that a model observes.

    Attributes:
        random: Whether the result depends on random numbers.
    """

    random: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return a smaller image ``(C, h, w)`` uint8.

        Args:
            image: ``(C, H, W)`` uint8, with 1 or 3 channels.
            size: ``(h, w)``, at most ``(H, W)``.
            generator: Source of all random numbers.
        """


class Bicubic(Degradation):
    """Pillow's bicubic filter (Keys 1981, a = -0.5), antialiased and rounded to 8 bits, as in published training."""

    random = False

    def __call__(self, image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return the resized image."""
        return resized(image, size)


class Realistic(Degradation):
    """Blur, downscaling with one of three filters, noise and JPEG compression, all drawn at random.

    Models trained on clean bicubic images amplify the noise and the artefacts of real ones.

    Args:
        blur: Range of the standard deviation of a Gaussian blur before downscaling, in pixels of the low resolution.
        noise: Range of the standard deviation of Gaussian noise, in levels of 255.
        quality: Range of the JPEG quality, in [1, 100]; no compression if None.
        probability: Probability of each of blur, noise and compression; without all three, the filter alone remains.

    Raises:
        ValueError: If a range is not ascending or out of bounds.
    """

    def __init__(
        self,
        blur: tuple[float, float] = (0.0, 0.8),
        noise: tuple[float, float] = (0.0, 10.0),
        quality: tuple[int, int] | None = (40, 95),
        probability: float = 0.8,
    ) -> None:
        for name, bounds in (("blur", blur), ("noise", noise)):
            if not 0 <= bounds[0] <= bounds[1] < math.inf:
                raise ValueError(f"{name} is {list(bounds)}; give a lower and an upper bound, at least 0.")
        if quality is not None and not 1 <= quality[0] <= quality[1] <= 100:
            raise ValueError(f"quality is {list(quality)}; give a lower and an upper bound in [1, 100], or null.")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}; it must lie in [0, 1].")
        self.blur, self.noise, self.quality, self.probability = tuple(blur), tuple(noise), quality, probability

    def __call__(self, image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return the degraded image."""
        chosen = torch.rand(3, generator=generator) < self.probability
        sigma, std = (_uniform(bounds, generator) for bounds in (self.blur, self.noise))
        method = _FILTERS[int(torch.randint(len(_FILTERS), (), generator=generator))]
        if chosen[0] and sigma > 0:
            image = _blurred(image, (sigma * image.shape[1] / size[0], sigma * image.shape[2] / size[1]))
        small = resized(image, size, method)
        if chosen[1]:
            levels = small + std * torch.randn(small.shape, generator=generator)
            small = levels.round().clamp(0, 255).to(torch.uint8)
        if chosen[2] and self.quality is not None:
            low, high = self.quality
            small = _compressed(small, int(torch.randint(low, high + 1, (), generator=generator)))
        return small


def _blurred(image: Tensor, sigmas: tuple[float, float]) -> Tensor:
    """Return an image after a Gaussian blur with a standard deviation along each axis, in pixels."""
    rows, columns = (
        2 * min(math.ceil(3 * sigma), (extent - 1) // 2) + 1
        for sigma, extent in zip(sigmas, image.shape[1:], strict=True)
    )
    blurred = gaussian_blur2d(image.unsqueeze(0).float(), (rows, columns), sigmas)[0]
    return blurred.round().clamp(0, 255).to(torch.uint8)


def _compressed(image: Tensor, quality: int) -> Tensor:
    """Return an image after JPEG compression."""
    file = io.BytesIO()
    to_pillow(image).save(file, format="JPEG", quality=quality)
    with Image.open(file) as decoded:
        return from_pillow(decoded, len(image))


def _uniform(bounds: Sequence[float], generator: torch.Generator) -> float:
    """Return a random number, uniform within the bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator).item()
