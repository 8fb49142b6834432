"""Augmentation of audio crops: gain, polarity, mixing and speed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from datamodules.storage.audio import resampled

Segment = Callable[[int], Tensor]  # number of samples n -> a random segment (C, n), or less of a shorter recording

_STEPS = 100  # speeds are multiples of 1 / _STEPS, so that each has a short resampling filter, which is computed once


@dataclass(frozen=True)
class AudioAugmentation:
    """Random changes of training crops of audio; each is off by default.

    A crop is read at a random speed, mixed with another crop, scaled, and its sign is flipped. If the peak of the result
    exceeds 1, the crop is divided by it, so nothing is clipped. Zero-padding of short recordings stays zero. Speeds are
    multiples of 0.01; pitch changes with speed.

    Args:
        gain: Lowest and highest gain in dB; the gain of a crop is uniform in between. None leaves the level unchanged.
        polarity: Probability of flipping the sign of a crop, in [0, 1].
        mixing: Probability of adding a random crop of another, or the same, recording, in [0, 1].
        mixing_gain: Lowest and highest gain in dB of the added crop, uniform in between.
        speed: Lowest and highest speed in [0.5, 2]; 1.1 raises all frequencies by 10 %. None leaves the speed unchanged.

    Raises:
        ValueError: If an argument is out of range.
    """

    gain: tuple[float, float] | None = None
    polarity: float = 0.0
    mixing: float = 0.0
    mixing_gain: tuple[float, float] = (-20.0, 0.0)
    speed: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("polarity", "mixing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability and must be in [0, 1].")
        for name in ("gain", "mixing_gain"):
            interval = getattr(self, name)
            if interval is not None and not -math.inf < interval[0] <= interval[1] < math.inf:
                raise ValueError(
                    f"{name} is {list(interval)}; it must be two finite numbers in dB, the lower one first."
                )
        if self.speed is not None and not (0.5 <= self.speed[0] <= self.speed[1] <= 2 and self._speeds):
            raise ValueError(
                f"speed is {list(self.speed)}; it must be two numbers in [0.5, 2], the lower one first, that include a "
                "multiple of 0.01."
            )

    def __str__(self) -> str:
        """Return the changes that are on, for the summary of a run."""
        changes = [f"gain {self.gain[0]:g} to {self.gain[1]:g} dB"] if self.gain else []
        changes += [f"polarity {self.polarity:g}"] if self.polarity else []
        low, high = self.mixing_gain
        changes += [f"mixing {self.mixing:g} at {low:g} to {high:g} dB"] if self.mixing else []
        changes += [f"speed {self.speed[0]:g} to {self.speed[1]:g}"] if self.speed else []
        return ", ".join(changes) or "none"

    def __call__(self, samples: int, segment: Segment, other: Segment, generator: torch.Generator) -> Tensor:
        """Return a changed random crop of a recording, without padding.

        Args:
            samples: Length of the crop.
            segment: Reads a random segment of the recording.
            other: Reads a random segment of the recording that is mixed in.
            generator: Source of all random numbers.

        Returns:
            ``(C, n)`` in [-1, 1]; ``n`` is ``samples``, or less for a recording that is too short.
        """
        values = self._at_random_speed(samples, segment, generator)
        if _happens(self.mixing, generator):
            values = values + self._mixed_in(values.shape[1], other, generator)
        if self.gain is not None:
            values = values * _random_factor(self.gain, generator)
        if _happens(self.polarity, generator):
            values = -values
        return values / values.abs().amax().clamp(min=1) if values.numel() else values

    @property
    def _speeds(self) -> range:
        """Return the possible speeds in percent."""
        low, high = (1.0, 1.0) if self.speed is None else self.speed
        return range(math.ceil(low * _STEPS - 1e-6), math.floor(high * _STEPS + 1e-6) + 1)

    def _mixed_in(self, samples: int, other: Segment, generator: torch.Generator) -> Tensor:
        """Return the crop to add, at its gain and zero-padded to ``samples``."""
        added = self._at_random_speed(samples, other, generator) * _random_factor(self.mixing_gain, generator)
        return pad(added, (0, samples - added.shape[1]))

    def _at_random_speed(self, samples: int, segment: Segment, generator: torch.Generator) -> Tensor:
        """Return at most ``samples`` samples of a segment at a random speed.

        At each end, one block of the filter is read in addition and dropped, so that the crop does not fade at its ends.
        """
        if self.speed is None:
            return segment(samples)
        percent = self._speeds[int(torch.randint(len(self._speeds), (), generator=generator))]
        length = math.ceil(samples * percent / _STEPS) + 2 * percent
        values = segment(length)
        if not values.shape[1]:
            return values
        first = _STEPS if values.shape[1] == length else 0  # a shorter segment is a whole recording
        return resampled(values, percent, _STEPS, clip=False)[:, first : first + samples]


def _happens(probability: float, generator: torch.Generator) -> bool:
    """Return True with a probability; 0 draws no random number."""
    return probability > 0 and float(torch.rand((), generator=generator)) < probability


def _random_factor(interval: tuple[float, float], generator: torch.Generator) -> float:
    """Return the factor of a gain that is uniform in an interval in dB."""
    low, high = interval
    gain = low + (high - low) * float(torch.rand((), generator=generator))
    return float(10 ** (gain / 20))
