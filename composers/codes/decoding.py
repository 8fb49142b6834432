"""Decoding of a code at any resolution, in bands that bound the memory."""

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

_MAX_CHUNK = {"cpu": 4096}  # coordinates; fastest if activations fit into the cache
_MAX_BAND = 1 << 20  # samples; larger bands are not faster


class Axis(NamedTuple):
    """Positions of decoded samples along an axis: sample ``i`` is at ``(i + offset) * step`` samples of the signal.

    Attributes:
        number: Number of decoded samples.
        step: Distance between decoded samples, in samples of the signal.
        offset: Position of the first, in decoded samples; 1/2 if both divide the same extent into cells.
    """

    number: int
    step: Fraction
    offset: Fraction = Fraction(1, 2)

    def places(self, first: int, last: int) -> Tensor:
        """Return the positions of a range of decoded samples, in samples of the signal, as float64."""
        indices = torch.arange(first, last, dtype=torch.float64) + float(self.offset)
        return indices * self.step.numerator / self.step.denominator

    def within(self, span: tuple[int, int], extent: int) -> tuple[int, int]:
        """Return the range of decoded samples in a span of the signal; spans at an end include all samples beyond it."""
        first, last = (math.ceil(end / self.step - self.offset) for end in span)
        return 0 if span[0] <= 0 else first, self.number if span[1] >= extent else last


def decode(
    composer: Composer, code: InstanceCode, shape: Sequence[int] | None = None, max_memory: float = 500.0
) -> Iterator[Tensor]:
    """Decode a code at any resolution; tiles are blended where they overlap.

    Args:
        composer: The model of the code.
        code: The code.
        shape: Samples along every axis of the result; those of the signal if None.
        max_memory: Memory limit in MB, in addition to the model and the result.

    Yields:
        Consecutive bands of the first axis, ``(rows, ..., C)`` on the CPU, not clipped.

    Raises:
        ValueError: If the code belongs to another model, or ``shape`` or ``max_memory`` is out of range.
    """
    sizes = tuple(shape or code.shape)
    if len(sizes) != len(code.shape) or min(sizes) < 1:
        raise ValueError(
            f"shape is {sizes}; a code of shape {code.shape} can be decoded at {len(code.shape)} sizes of at least 1."
        )
    axes = [Axis(size, Fraction(extent, size)) for extent, size in zip(code.shape, sizes, strict=True)]
    return decode_at(composer, code, axes, max_memory)


def decode_at(
    composer: Composer, code: InstanceCode, axes: Sequence[Axis], max_memory: float = 500.0
) -> Iterator[Tensor]:
    """Decode a code at any positions along every axis; see `decode`.

    Args:
        composer: The model of the code.
        code: The code.
        axes: Positions along every axis of the signal.
        max_memory: Memory limit in MB, in addition to the model and the result.

    Yields:
        Consecutive bands of the first axis, ``(rows, ..., C)`` on the CPU, not clipped.

    Raises:
        ValueError: If the code belongs to another model, or ``max_memory`` is out of range.
    """
    code.check(composer)
    rows, chunk = _sizes(composer, tuple(axis.number for axis in axes), max_memory)
    for start in range(0, axes[0].number, rows):
        with torch.inference_mode():
            yield _band(composer, code, axes, (start, min(start + rows, axes[0].number)), chunk)


def _sizes(composer: Composer, shape: tuple[int, ...], max_memory: float) -> tuple[int, int]:
    """Return the rows of a band and the coordinates of a chunk that fit into memory, in MB."""
    row = math.prod(shape[1:])
    per_sample = 12 * (
        composer.network.value_dim + composer.network.coord_dim + 1
    )  # bytes; coordinates are computed in float64
    per_coordinate = 4 * composer.network.floats_per_coord
    rows, chunk = int(max_memory * 0.5e6 / (per_sample * row)), int(max_memory * 0.5e6 / per_coordinate)
    if rows < 1 or chunk < 1:
        needed = 2e-6 * max(per_sample * row, per_coordinate)
        raise ValueError(
            f"max_memory is {max_memory:g} MB; a signal of shape {shape} requires at least {needed:.3g} MB."
        )
    return min(rows, max(1, _MAX_BAND // row)), min(chunk, _MAX_CHUNK.get(composer.device.type, 1 << 18))


def _band(composer: Composer, code: InstanceCode, axes: Sequence[Axis], rows: tuple[int, int], chunk: int) -> Tensor:
    """Return one band: the weighted mean of its tiles."""
    shape = (rows[1] - rows[0], *(axis.number for axis in axes[1:]))
    total, weights = torch.zeros(*shape, composer.network.value_dim), torch.zeros(*shape, 1)
    for index, box in enumerate(code.boxes):
        ranges = [axis.within(span, extent) for axis, span, extent in zip(axes, box, code.shape, strict=True)]
        ranges[0] = (max(ranges[0][0], rows[0]), min(ranges[0][1], rows[1]))
        if any(first >= last for first, last in ranges):
            continue
        coords, weight = _tile_coords(code, box, axes, ranges)
        values = _render(composer, code, index, coords, chunk).unflatten(0, weight.shape)
        first = ranges[0][0] - rows[0]
        region = (slice(first, first + len(weight)), *(slice(*span) for span in ranges[1:]))
        total[region] += values * weight.unsqueeze(-1)
        weights[region] += weight.unsqueeze(-1)
    return total / weights


def _tile_coords(
    code: InstanceCode, box: Box, axes: Sequence[Axis], ranges: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return the coordinates ``(N, D)`` of decoded samples relative to a tile, and the blending weights of the tile there."""
    relative, weight = [], torch.ones(())
    for index, (span, extent, axis, decoded) in enumerate(zip(box, code.shape, axes, ranges, strict=True)):
        positions = axis.places(*decoded)
        relative.append(positions - span[0])
        weight = weight.unsqueeze(-1) * blend_weight(positions, span, extent, _overlap(code, index)).float()
    tile = [stop - start for start, stop in box]
    return code.domain.at(relative, tile, [float(axis.step) for axis in axes]), weight


def _overlap(code: InstanceCode, axis: int) -> int:
    """Return the smallest overlap of neighbouring tiles along an axis, in samples."""
    spans = sorted({box[axis] for box in code.boxes})
    return min((left[1] - right[0] for left, right in itertools.pairwise(spans)), default=0)


def _render(composer: Composer, code: InstanceCode, index: int, coords: Tensor, chunk: int) -> Tensor:
    """Return the values ``(N, C)`` of one tile, evaluated in chunks of coordinates."""
    latents = {name: latent[index : index + 1].to(composer.device) for name, latent in code.latents.items()}
    modulations = composer.compose(latents, code.layout)
    parts = [composer.render(modulations, part.to(composer.device))[0].cpu() for part in coords.split(chunk)]
    return torch.cat(parts)
