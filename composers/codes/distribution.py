"""Distributions of quantised latents, and their adaptation to the file that is coded.

A distribution is a row of integer frequencies, equal on all machines. An index within the range of a row is one symbol; with
more than 8 bits, the symbol is its upper 8 bits, and the lower bits are uniformly distributed. An index outside the range is
an escape symbol.

While the symbols of a row are coded, its frequencies are updated with those that precede: the distribution counts as
``inertia`` symbols, and every coded symbol as one, spread over its neighbours with triangular weights, because a file has few
symbols per level. The weights become narrower with the number of coded symbols. The updates are exact integer arithmetic at
positions that the number of symbols alone determines, so that encoder and decoder agree on every machine without side
information.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal, localcontext
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from composers.codes.quantization import Indices

TOTAL = 1 << 18  # sum of the frequencies of a row
SYMBOL_BITS = 8  # of an index that a distribution describes
INERTIAS = (0, 8, 32, 128)  # that are chosen from; 0 is static
MAX_INERTIA = 1 << 8
_PRIOR = 32.0  # counts of the standard distribution in a learned one
_VALIDATED = 24  # training codes that choose the inertia of a learned distribution
_STATIC_GAIN = 0.005  # share of bits that a static distribution must save: held-out codes may differ from others
_FIRST_BLOCK, _BLOCK_SHARE = 4, 8  # symbols before the first update; then an eighth of those coded
_WEIGHT_BITS = 44  # of a sum that times `TOTAL` fits into 64 bits

Frequencies = NDArray[np.int32]
Shape = Literal["gaussian", "laplace", "between"]
SHAPES: tuple[Shape, ...] = ("gaussian", "laplace", "between")


class Distribution(NamedTuple):
    """Distribution of the indices of a channel.

    Attributes:
        frequencies: ``(L + 2,)``, positive, with the sum `TOTAL`: those of indices below the range, of ``L`` symbols, and of
            indices above.
        fine: Lower bits of an index that are uniformly distributed.
        inertia: Number of coded symbols that have the same weight as ``frequencies``; 0 if they are never updated.
        ordered: Whether a symbol makes its neighbours more probable, unlike the index of a cluster.
    """

    frequencies: Frequencies
    fine: int
    inertia: int = 0
    ordered: bool = True

    @property
    def levels(self) -> int:
        """Number of symbols without the two escapes."""
        return len(self.frequencies) - 2

    def symbols(self, indices: Indices) -> NDArray[np.int32]:
        """Return the symbols ``(N,)`` of indices."""
        symbols: NDArray[np.int32] = (np.clip(indices >> self.fine, -1, self.levels) + 1).astype(np.int32)
        return symbols

    def blocks(self, count: int) -> Iterator[slice]:
        """Yield the parts of ``count`` symbols that are coded with the same frequencies."""
        start = 0
        while start < count:
            size = max(_FIRST_BLOCK, start // _BLOCK_SHARE) if self.inertia else count
            yield slice(start, start := min(start + size, count))

    def updated(self, counts: NDArray[np.int64]) -> Frequencies:
        """Return the frequencies after symbols with the counts ``(L + 2,)``."""
        coded = int(counts.sum())
        if not coded or not self.inertia:
            return self.frequencies
        width = self._width(coded)
        weights = self.inertia * width**2 * self.frequencies.astype(np.int64) + TOTAL * _spread(counts, width)
        return _frequencies(weights >> max(0, int(weights.sum()).bit_length() - _WEIGHT_BITS))

    def _width(self, coded: int) -> int:
        """Return half the width of the weights of a symbol; of ``L`` symbols, ``L / 8`` are a standard deviation."""
        return max(1, self.levels // (4 + coded.bit_length())) if self.ordered else 1

    def cost(self, indices: Indices) -> float:
        """Return the bits of indices, coded from the first to the last, without those of the distances of escapes."""
        symbols, counts, bits = self.symbols(indices), np.zeros(len(self.frequencies), np.int64), 0.0
        for block in self.blocks(len(symbols)):
            bits -= float(np.log2(self.updated(counts)[symbols[block]] / TOTAL).sum())
            counts += np.bincount(symbols[block], minlength=len(counts))
        return bits + self.fine * indices.size

    def least_bits(self, count: int) -> float:
        """Return the bits that ``count`` indices take at least, whatever they are."""
        largest, bits = int(self.frequencies.max()) / TOTAL, float(self.fine * count)
        for block in self.blocks(count):
            coded = block.start
            share = (self.inertia * largest + coded / self._width(coded)) / (self.inertia + coded) if coded else largest
            share = min(1.0, share + len(self.frequencies) / TOTAL)  # rounding
            bits -= (block.stop - coded) * max(-2.0, math.log2(share))  # the distance of an escape takes 2 bits or more
        return bits


def _spread(counts: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return counts times width², spread with triangular weights; those beyond the ends remain there."""
    if width == 1:
        return counts
    triangle = width - np.abs(np.arange(1 - width, width))
    wide = np.convolve(counts, triangle)
    spread: NDArray[np.int64] = wide[width - 1 : 1 - width].copy()
    spread[0] += wide[: width - 1].sum()
    spread[-1] += wide[1 - width :].sum()
    return spread


def coarse(levels: int, is_integer: bool) -> tuple[int, int]:
    """Return the number of symbols of a range of indices, and the lower bits that are uniformly distributed."""
    fine = 0 if is_integer else max(0, levels.bit_length() - 1 - SYMBOL_BITS)
    return levels >> fine, fine


def learned_row(codes: Sequence[Indices], levels: int, is_integer: bool) -> Distribution:
    """Return the distribution of the indices of training codes: their counts, smoothed by those of a standard distribution.

    The inertia is the one with which some of these codes take the fewest bits, by the distribution of all others; the
    distribution is static only where updates cost at least 0.5 %.

    Args:
        codes: Indices ``(N,)`` of every code.
        levels: Number of indices of the range.
        is_integer: Whether these are integers, rather than numbers around a mean.
    """
    prior = standard_row("uniform" if is_integer else "between", levels)
    smallest = _PRIOR * prior.frequencies / TOTAL
    counts = [np.bincount(prior.symbols(indices), minlength=len(smallest)) for indices in codes]
    total, bits = np.sum(counts, axis=0), dict.fromkeys(INERTIAS, 0.0)
    for code in range(0, len(codes), -(-len(codes) // _VALIDATED)):
        others = prior._replace(frequencies=_frequencies(total - counts[code] + smallest))
        for inertia in INERTIAS:
            bits[inertia] += others._replace(inertia=inertia).cost(codes[code])
    bits[0] *= 1 + _STATIC_GAIN
    inertia = min(INERTIAS, key=bits.__getitem__)
    return prior._replace(frequencies=_frequencies(total + smallest), inertia=inertia)


@cache
def standard_row(shape: Shape | Literal["uniform"], levels: int, inertia: int = 0) -> Distribution:
    """Return a standard distribution, whose eight standard deviations are the range; equal on all machines.

    Args:
        shape: ``gaussian``, ``laplace``, the mean of both, or ``uniform`` for integers.
        levels: Number of indices of the range.
        inertia: Number of coded symbols that have the same weight; 0 for a static distribution.
    """
    if shape == "uniform":
        return Distribution(_frequencies(np.array([1, *[64] * levels, 1])), 0, inertia, ordered=False)
    symbols, fine = coarse(levels, False)
    with localcontext() as context:
        context.prec = 30  # decimal arithmetic is exactly specified, unlike that of the C library
        positions = [abs(Decimal(index) - Decimal(symbols) / 2) * 8 / symbols for index in range(-1, symbols + 1)]
        gaussian = [(-(position**2) / 2).exp() for position in positions]
        laplace = [(-position * Decimal(2).sqrt()).exp() for position in positions]
        for densities in (gaussian, laplace):  # of all indices beyond the range
            densities[0] = densities[-1] = Decimal(symbols) / 800
        parts = {
            "gaussian": [TOTAL * density / sum(gaussian, Decimal()) for density in gaussian],
            "laplace": [TOTAL * density / sum(laplace, Decimal()) for density in laplace],
        }
        parts["between"] = [(one + other) / 2 for one, other in zip(parts["gaussian"], parts["laplace"], strict=True)]
        weights = np.array([int(1000 * weight) for weight in parts[shape]], np.int64)
        return Distribution(_frequencies(weights), fine, inertia)


def standard_rows(levels: int, is_integer: bool) -> list[Distribution]:
    """Return the standard distributions of a range of indices, which a file names by their position.

    Args:
        levels: Number of indices of the range.
        is_integer: Whether these are integers, rather than numbers around a mean.
    """
    shapes: tuple[Shape | Literal["uniform"], ...] = ("uniform",) if is_integer else SHAPES
    return [standard_row(shape, levels, inertia) for inertia in INERTIAS for shape in shapes]


def _frequencies(weights: NDArray[np.generic]) -> Frequencies:
    """Return positive integers with the sum `TOTAL`, in proportion to weights; the same for the same integers everywhere."""
    spare = TOTAL - len(weights)
    if weights.dtype.kind == "f":
        shares = np.floor(weights * (spare / weights.sum())).astype(np.int64)
    else:
        shares = weights.astype(np.int64) * spare // int(weights.sum())
    frequencies = shares + 1
    frequencies[frequencies.argmax()] += TOTAL - frequencies.sum()
    result: Frequencies = frequencies.astype(np.int32)
    return result
