"""Uniform quantisation of latents, with an offset and a step for each channel.

A channel of a latent is an index of its fixed axes; tiles and -1 axes, which depend on the signal, are repetitions. A number
``z`` of channel ``c`` has the index ``round((z - offset[c]) / step[c])`` and is read back as ``offset[c] + step[c] * index``.
``2 ** bits`` steps cover eight standard deviations of the channel around its mean. Indices outside are valid as well: the
entropy coder writes them with an escape, so that nothing is clipped.

Numbers that state facts remain exact: integers, such as the index of a cluster, have a step of 1, and latents that are
``constant`` are not quantised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from composers.latents import Layout
from composers.networks import TensorSpec

BITS = (16, 8, 6, 4)
MAX_INDEX = 1 << 46  # float64 counts further, and an escape writes at most 47 bits
_DEVIATIONS = 8  # covered by all steps together
_RELATIVE_STEP = 2.0**-20  # of the size of the numbers; float32 resolves 2 ** -23
_FEW = 4  # numbers of a channel
_SMALLEST_STEP = 2.0**-100
_MOST_BITS = 4  # that a channel has in addition to the average

Indices = NDArray[np.int64]


def check_bits(bits: int, name: str = "bits") -> None:
    """Check that codes can be quantised with so many bits per number.

    Args:
        bits: The number.
        name: Name of the argument or option for the message.

    Raises:
        ValueError: If it is none of `BITS`.
    """
    if bits not in BITS:
        raise ValueError(f"{name} is {bits}; codes are quantised with {', '.join(map(str, BITS))} bits per number.")


class LatentShape(NamedTuple):
    """What quantisation needs to know of a latent, which a table and a file state.

    Attributes:
        shape: Shape without the tiles; -1 where it depends on the signal, as in `composers.networks.TensorSpec`.
        integers: Entries at the start of the last axis that hold integers.
        constant: Whether the latent is not quantised.
    """

    shape: tuple[int, ...]
    integers: int = 0
    constant: bool = False

    @classmethod
    def of(cls, spec: TensorSpec) -> Self:
        """Return that of the specification of a latent."""
        return cls(tuple(spec.shape), spec.integers, spec.constant)

    @property
    def channels(self) -> int:
        """Number of channels: entries of the fixed axes."""
        return math.prod(size for size in self.shape if size != -1)

    @property
    def repeats(self) -> bool:
        """Whether a tile has several numbers per channel, as many as the signal has tokens or cells."""
        return -1 in self.shape

    def is_integer(self) -> NDArray[np.bool_]:
        """Return which channels ``(C,)`` hold integers."""
        if not self.integers:
            return np.zeros(self.channels, bool)
        return np.arange(self.channels) % self.shape[-1] < self.integers

    def sizes(self, layout: Layout, tiles: int) -> tuple[int, ...]:
        """Return the complete shape ``(T, ...)`` of the latents of a code."""
        return tiles, *layout.shape(self.shape)

    def to_channels(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return latents ``(T, ...)`` as channels ``(C, N)``, with the repetitions of all tiles in order."""
        fixed = [axis for axis, size in enumerate(self.shape, start=1) if size != -1]
        others = [axis for axis in range(values.ndim) if axis not in fixed]
        return values.transpose(*fixed, *others).reshape(self.channels, -1)

    def from_channels(self, values: NDArray[np.generic], sizes: Sequence[int]) -> NDArray[np.generic]:
        """Return channels ``(C, N)`` as latents of the shape ``sizes``, ``(T, ...)``: the inverse of `to_channels`."""
        fixed = [axis for axis, size in enumerate(self.shape, start=1) if size != -1]
        order = [*fixed, *(axis for axis in range(len(sizes)) if axis not in fixed)]
        moved = values.reshape([sizes[axis] for axis in order])
        return np.ascontiguousarray(moved.transpose(np.argsort(order)))


class Quantizer(NamedTuple):
    """Offsets and steps of the channels of a latent.

    Attributes:
        latent: The latent.
        offset: ``(S,)`` float32, with ``S`` scales, each for equally many consecutive channels.
        step: ``(S,)`` float32, positive.
        levels: ``(S,)`` int64, number of steps of the range.
    """

    latent: LatentShape
    offset: NDArray[np.float32]
    step: NDArray[np.float32]
    levels: NDArray[np.int64]

    @classmethod
    def fit(
        cls,
        latent: LatentShape,
        values: NDArray[np.float32],
        bits: int,
        scales: int | None = None,
        sensitivity: NDArray[np.float64] | None = None,
    ) -> Self:
        """Choose offsets and steps for the numbers of a latent.

        By default, all channels have 2^bits steps. With sensitivities, steps are inversely proportional to them, so that every
        channel contributes the same error to the decoded values, with the same number of bits on average (reverse
        water-filling); a channel has at least two steps, and at most 16 times 2^bits.

        Args:
            latent: The latent.
            values: ``(C, N)``, finite.
            bits: Binary logarithm of the number of steps.
            scales: ``S``, a divisor of ``C``; one per channel if None.
            sensitivity: ``(C,)``, effect of each channel on the decoded values, up to a common factor.

        Raises:
            ValueError: If a channel of integers holds other numbers, or spans more than 65,536 of them.
        """
        scales = scales or latent.channels
        rows = values.reshape(scales, -1)
        mean = rows.mean(1, dtype=np.float64)
        deviation = np.sqrt(np.square(rows - mean[:, None]).mean(1))
        if rows.shape[1] < _FEW:  # too few for a deviation of their own
            deviation = np.maximum(deviation, values.std(dtype=np.float64))
        size = np.maximum(np.abs(mean), math.sqrt(np.square(rows, dtype=np.float64).mean()))
        smallest = np.maximum(_RELATIVE_STEP * size, _SMALLEST_STEP)
        share = np.full(scales, 1.0)
        if sensitivity is not None:
            share = _shares(deviation * sensitivity, latent.is_integer(), bits)
        step = np.maximum(_DEVIATIONS * deviation / (2**bits * share), smallest).astype(np.float32)
        levels = 2 * np.ceil(2 ** (bits - 1) * share).astype(np.int64)
        offset = (mean - step.astype(np.float64) * (levels // 2)).astype(np.float32)
        for channel in np.flatnonzero(latent.is_integer()):
            lowest, highest = _integer_range(rows[channel])
            offset[channel], step[channel], levels[channel] = lowest, 1.0, highest - lowest + 1
        return cls(latent, offset, step, levels)

    def quantize(self, latent: Tensor, name: str) -> Indices:
        """Return the indices ``(C, N)`` of latents ``(T, ...)``.

        Args:
            latent: The latents.
            name: Their name for messages.

        Raises:
            ValueError: If they are not finite or hold fractions in a channel of integers, or are too far from the range.
        """
        values = self.latent.to_channels(latent.detach().cpu().float().numpy()).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds numbers that are not finite, which have no index: encode the signal again.")
        exact = values[self.latent.is_integer()]
        if (exact != np.rint(exact)).any():
            raise ValueError(
                f"{name} holds fractions where its model expects integers, such as the index of a cluster: encode the signal "
                "again without weight decay in the refinement."
            )
        offset, step = self._scales(values.shape)
        indices = np.rint((values - offset) / step)
        if np.abs(indices).max(initial=0) >= MAX_INDEX:
            raise ValueError(
                f"{name} holds numbers that are {np.abs(indices).max():.3g} steps from the range of the quantiser: learn its "
                "table from codes like this one, or omit the table."
            )
        return indices.astype(np.int64)

    def dequantize(self, indices: Indices, sizes: Sequence[int]) -> Tensor:
        """Return the latents ``(T, ...)`` in float32 of indices ``(C, N)``; equal on all machines."""
        offset, step = self._scales(indices.shape)
        values = (offset + step * indices).astype(np.float32)
        return torch.from_numpy(self.latent.from_channels(values, sizes))

    def _scales(self, shape: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return offset and step ``(C, 1)`` of every channel in float64."""
        each = shape[0] // len(self.step)
        offset, step = (np.repeat(scales.astype(np.float64), each)[:, None] for scales in (self.offset, self.step))
        return offset, step


def _shares(effect: NDArray[np.float64], is_integer: NDArray[np.bool_], bits: int) -> NDArray[np.float64]:
    """Return the number of steps of every channel relative to 2^bits, in proportion to its effect on the decoded values."""
    shares, active = np.full(len(effect), 1.0), (effect > 0) & ~is_integer
    if active.any():
        logarithms, fewest, most = np.log2(effect[active]), 1 - bits, min(_MOST_BITS, 16 - bits)
        low, high = logarithms.min() - most, logarithms.max() - fewest
        for _ in range(60):  # find the level at which the limited bits are ``bits`` on average
            level = (low + high) / 2
            low, high = (level, high) if np.clip(logarithms - level, fewest, most).mean() > 0 else (low, level)
        shares[active] = 2.0 ** np.clip(logarithms - (low + high) / 2, fewest, most)
    return shares


def _integer_range(values: NDArray[np.float32]) -> tuple[int, int]:
    """Return the lowest and highest of numbers; raise a `ValueError` if they are no integers or too far from each other."""
    lowest, highest = int(values.min()), int(values.max())
    if (values != np.rint(values)).any() or highest - lowest >= 1 << 16 or max(-lowest, highest) >= 1 << 24:
        raise ValueError(
            f"A channel of integers holds numbers from {values.min():g} to {values.max():g}; they must be integers, at most "
            "65,536 different ones: encode the signals again without weight decay in the refinement."
        )
    return lowest, highest


def latent_shapes(specs: Mapping[str, TensorSpec]) -> dict[str, LatentShape]:
    """Return what quantisation needs to know of the latents of a model, by name in sorted order."""
    return {name: LatentShape.of(specs[name]) for name in sorted(specs)}
