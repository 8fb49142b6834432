"""Decoding of a code at any resolution, in bands that bound the memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composers.base import Composer
from composers.codes.code import InstanceCode
from datamodules.tiles import Box, blend_weight

_MAX_CHUNK = {"cpu": 4096}  # coordinates; fastest if activations fit into the cache
_MAX_BLOCK = {"cpu": 1 << 15}  # coordinates of a block of patches, whose network divides its work further
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
    if min(axis.step for axis in axes) <= 0:
        raise ValueError("The code has no extent along an axis: encode the signal again with cli.py predict.")
    rows, block = _sizes(composer, axes, max_memory)
    modulations = _Modulations(composer, code)
    for start in range(0, axes[0].number, rows):
        with torch.inference_mode():
            yield _band(modulations, axes, (start, min(start + rows, axes[0].number)), block)


class _Block(NamedTuple):
    """What is evaluated at a time.

    Attributes:
        shape: Decoded samples along every axis.
        chunk: Coordinates of these; the network decides if it has patches.
    """

    shape: tuple[int, ...]
    chunk: int

    def of(self, ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Yield the blocks that a box of decoded samples consists of."""
        spans = [
            [(start, min(start + size, last)) for start in range(first, last, size)]
            for (first, last), size in zip(ranges, self.shape, strict=True)
        ]
        yield from map(list, itertools.product(*spans))


class _Modulations:
    """The modulations of the tiles of a code; those of the last tile are kept, because bands often share it.

    Args:
        composer: The model of the code.
        code: The code.
    """

    def __init__(self, composer: Composer, code: InstanceCode) -> None:
        self.composer, self.code = composer, code
        self._last: tuple[int, Any] | None = None

    def of_tile(self, index: int) -> Any:
        """Return the modulations of a tile."""
        if self._last is None or self._last[0] != index:
            latents = {
                name: latent[index : index + 1].to(self.composer.device) for name, latent in self.code.latents.items()
            }
            self._last = (index, self.composer.compose(latents, self.code.layout))
        return self._last[1]


def _sizes(composer: Composer, axes: Sequence[Axis], max_memory: float) -> tuple[int, _Block]:
    """Return the rows of a band and the block of samples that fit into memory, in MB.

    A network with patches evaluates blocks of whole patches, because it computes the modulations of a patch once per block.
    """
    shape = tuple(axis.number for axis in axes)
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
    rows = min(rows, max(1, _MAX_BAND // row))
    if (patches := composer.network.patches) is None:
        return rows, _Block(shape, min(chunk, _MAX_CHUNK.get(composer.device.type, 1 << 18)))
    block = _block_of_patches(axes, patches.size, min(chunk, _MAX_BLOCK.get(composer.device.type, 1 << 20)))
    return max(1, rows // block.shape[0]) * block.shape[0] if rows > block.shape[0] else rows, block


def _block_of_patches(axes: Sequence[Axis], patch_size: Sequence[int], chunk: int) -> _Block:
    """Return a block of whole patches, about as many along every axis, of at most ``chunk`` samples where a patch has less."""
    cells = [max(1, round(size / axis.step)) for size, axis in zip(patch_size, axes, strict=True)]
    patches, sizes = max(1, chunk // math.prod(cells)), list[int]()
    for index, (cell, axis) in enumerate(zip(cells, axes, strict=True)):
        count = min(int(patches ** (1 / (len(axes) - index))), math.ceil(axis.number / cell))
        sizes.append(count * cell)
        patches //= count
    return _Block(tuple(sizes), chunk)


def _band(modulations: _Modulations, axes: Sequence[Axis], rows: tuple[int, int], block: _Block) -> Tensor:
    """Return one band: the weighted mean of its tiles."""
    composer, code = modulations.composer, modulations.code
    shape = (rows[1] - rows[0], *(axis.number for axis in axes[1:]))
    total: Tensor | None = None
    weights = torch.zeros(*shape, 1)
    for index, box in enumerate(code.boxes):
        ranges = [axis.within(span, extent) for axis, span, extent in zip(axes, box, code.shape, strict=True)]
        ranges[0] = (max(ranges[0][0], rows[0]), min(ranges[0][1], rows[1]))
        if any(first >= last for first, last in ranges):
            continue
        of_tile = modulations.of_tile(index)
        for spans in block.of(ranges):
            coords, weight = _tile_coords(code, box, axes, spans)
            parts = [composer.render(of_tile, part.to(composer.device))[0].cpu() for part in coords.split(block.chunk)]
            first = spans[0][0] - rows[0]
            region = (slice(first, first + len(weight)), *(slice(*span) for span in spans[1:]))
            values = torch.cat(parts).unflatten(0, weight.shape)
            if total is None:  # a value may have fewer channels than the network
                total = values.new_zeros(*shape, values.shape[-1])
            total[region] += values * weight.unsqueeze(-1)
            weights[region] += weight.unsqueeze(-1)
    if total is None or not bool((weights > 0).all()):
        raise ValueError("The tiles of the code do not cover its signal: encode the signal again with cli.py predict.")
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
