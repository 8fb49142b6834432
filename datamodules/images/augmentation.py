"""Random changes of images in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.batch import Signal


@dataclass(frozen=True)
class ImageAugmentation:
    """Random changes of square training images, for more variety in small data sets; all are off by default.

    Args:
        rotate: Whether to rotate by a random multiple of 90 degrees; with the flip of a crop, all eight symmetries of the
            square are equally likely.
        shuffle_colors: Probability of permuting the colour channels at random.
        contrast: Range of the factor of deviations from the mean colour of the image; unchanged if None.
        brightness: Range of the factor of the mean colour; unchanged if None.

    Raises:
        ValueError: If an argument is out of range.
    """

    rotate: bool = False
    shuffle_colors: float = 0.0
    contrast: tuple[float, float] | None = None
    brightness: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not 0 <= self.shuffle_colors <= 1:
            raise ValueError(f"shuffle_colors is {self.shuffle_colors}; it is a probability in [0, 1].")
        for name, bounds in (("contrast", self.contrast), ("brightness", self.brightness)):
            if bounds is not None and not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"{name} is {list(bounds)}; give a lower and an upper factor, both positive, or null.")

    def __call__(self, item: Signal, generator: torch.Generator) -> Signal:
        """Return a changed copy of an image ``(C, S, S)`` uint8."""
        values = item.values
        if self.rotate:
            values = values.rot90(int(torch.randint(4, (), generator=generator)), (-2, -1))
        if self.shuffle_colors and torch.rand((), generator=generator) < self.shuffle_colors:
            values = values[torch.randperm(len(values), generator=generator)]
        if self.contrast or self.brightness:
            values = self._shaded(values, generator)
        return item._replace(values=values)

    def _shaded(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Return the image with another contrast and brightness, clipped and rounded."""
        mean = values.float().mean((-2, -1), keepdim=True)
        contrast, brightness = (_drawn(bounds, generator) for bounds in (self.contrast, self.brightness))
        return ((values - mean) * contrast + mean * brightness).clamp(0, 255).round().to(values.dtype)


def _drawn(bounds: Sequence[float] | None, generator: torch.Generator) -> float:
    """Return a random factor, uniform within the bounds; 1 if there are none."""
    if bounds is None:
        return 1.0
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator).item()
