"""From a code to the signal at any resolution, band by band, so that memory is bounded by a setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from composers.base import Composer
from composers.codes.code import InstanceCode
from datamodules.tiles import Box, blend_weight

_LARGEST_CHUNK = {"cpu": 4096}  # what fits the caches is fastest there
_LARGEST_BAND = 1 << 20  # samples; more would not be faster


class Axis(NamedTuple):
    """Where samples are wanted along one axis: sample ``i`` at ``(i + offset) * step`` samples of the signal.

    Attributes:
        number: How many.
        step: From one to the next, in samples of the signal.
        offset: Of the first, in new samples; half a sample where both divide the same extent into cells.
    """

    number: int
    step: Fraction
    offset: Fraction = Fraction(1, 2)

    def places(self, first: int, last: int) -> Tensor:
        """Return the places of a range of samples, in samples of the signal, in double precision."""
        indices = torch.arange(first, last, dtype=torch.float64) + float(self.offset)
        return indices * self.step.numerator / self.step.denominator

    def within(self, span: tuple[int, int], extent: int) -> tuple[int, int]:
        """Return the range of samples in a span of the signal; where the signal begins or ends, all that are beyond too."""
        first, last = (math.ceil(end / self.step - self.offset) for end in span)
        return 0 if span[0] <= 0 else first, self.number if span[1] >= extent else last


def decode(
    composer: Composer, code: InstanceCode, shape: Sequence[int] | None = None, max_memory: float = 500.0
) -> Iterator[Tensor]:
    """Decode a code at any resolution.

    Args:
        composer: The model of the code.
        code: Its tiles are blended where they overlap.
        shape: Extents wanted; the signal's own if None.
        max_memory: MB that decoding may take above the model and what the caller keeps.

    Yields:
        Bands of the first axis, from its start to its end: ``(rows, ..., C)`` on the CPU, unclipped.

    Raises:
        ValueError: If the code belongs to another model, or the shape or the memory is out of range.
    """
    wanted = tuple(shape or code.shape)
    if len(wanted) != len(code.shape) or min(wanted) < 1:
        raise ValueError(
            f"A code of {code.shape} cannot be decoded as {wanted}: give {len(code.shape)} extents, each at least 1."
        )
    axes = [Axis(new, Fraction(own, new)) for own, new in zip(code.shape, wanted, strict=True)]
    return decode_at(composer, code, axes, max_memory)


def decode_at(
    composer: Composer, code: InstanceCode, axes: Sequence[Axis], max_memory: float = 500.0
) -> Iterator[Tensor]:
    """Decode a code where samples are wanted along every axis; otherwise as `decode`.

    Args:
        composer: The model of the code.
        code: Its tiles are blended where they overlap.
        axes: As many as the signal has.
        max_memory: MB that decoding may take above the model and what the caller keeps.

    Yields:
        Bands of the first axis, from its start to its end: ``(rows, ..., C)`` on the CPU, unclipped.

    Raises:
        ValueError: If the code belongs to another model, or the memory is out of range.
    """
    code.check(composer)
    rows, chunk = _sizes(composer, tuple(axis.number for axis in axes), max_memory)
    for start in range(0, axes[0].number, rows):
        with torch.inference_mode():
            yield _band(composer, code, axes, (start, min(start + rows, axes[0].number)), chunk)


def _sizes(composer: Composer, wanted: tuple[int, ...], max_memory: float) -> tuple[int, int]:
    """Return the rows of a band and the coordinates of a chunk that stay within a memory in MB."""
    row = math.prod(wanted[1:])
    per_sample = 12 * (
        composer.network.value_dim + composer.network.coord_dim + 1
    )  # bytes; coordinates in double precision
    per_coordinate = 4 * composer.network.floats_per_coord
    rows, chunk = int(max_memory * 0.5e6 / (per_sample * row)), int(max_memory * 0.5e6 / per_coordinate)
    if rows < 1 or chunk < 1:
        needed = 2e-6 * max(per_sample * row, per_coordinate)
        raise ValueError(f"max_memory is {max_memory:g} MB; a signal of {wanted} needs at least {needed:.3g} MB.")
    return min(rows, max(1, _LARGEST_BAND // row)), min(chunk, _LARGEST_CHUNK.get(composer.device.type, 1 << 18))


def _band(composer: Composer, code: InstanceCode, axes: Sequence[Axis], rows: tuple[int, int], chunk: int) -> Tensor:
    """Return one band: the mean of its tiles, weighted where they overlap."""
    shape = (rows[1] - rows[0], *(axis.number for axis in axes[1:]))
    total, weights = torch.zeros(*shape, composer.network.value_dim), torch.zeros(*shape, 1)
    for index, box in enumerate(code.boxes):
        ranges = [axis.within(span, own) for axis, span, own in zip(axes, box, code.shape, strict=True)]
        ranges[0] = (max(ranges[0][0], rows[0]), min(ranges[0][1], rows[1]))
        if any(first >= last for first, last in ranges):
            continue
        coords, weight = _places(code, box, axes, ranges)
        values = _render(composer, code, index, coords, chunk).unflatten(0, weight.shape)
        first = ranges[0][0] - rows[0]
        where = (slice(first, first + len(weight)), *(slice(*span) for span in ranges[1:]))
        total[where] += values * weight.unsqueeze(-1)
        weights[where] += weight.unsqueeze(-1)
    return total / weights


def _places(
    code: InstanceCode, box: Box, axes: Sequence[Axis], ranges: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return the coordinates ``(N, D)`` of new samples in the frame of a tile, and the weight of the tile there."""
    inside, weight = [], torch.ones(())
    for axis, (span, own, new, wanted) in enumerate(zip(box, code.shape, axes, ranges, strict=True)):
        places = new.places(*wanted)
        inside.append(places - span[0])
        weight = weight.unsqueeze(-1) * blend_weight(places, span, own, _overlap(code, axis)).float()
    tile = [stop - start for start, stop in box]
    return code.domain.at(inside, tile, [float(new.step) for new in axes]), weight


def _overlap(code: InstanceCode, axis: int) -> int:
    """Return the least number of samples that neighbouring tiles share along an axis."""
    spans = sorted({box[axis] for box in code.boxes})
    return min((left[1] - right[0] for left, right in itertools.pairwise(spans)), default=0)


def _render(composer: Composer, code: InstanceCode, index: int, coords: Tensor, chunk: int) -> Tensor:
    """Return the values ``(N, C)`` of one tile, a chunk of coordinates at a time."""
    latents = {name: latent[index : index + 1].to(composer.device) for name, latent in code.latents.items()}
    modulations = composer.compose(latents, code.layout)
    parts = [composer.render(modulations, part.to(composer.device))[0].cpu() for part in coords.split(chunk)]
    return torch.cat(parts)
