"""Entropy coding of quantised latents by a range coder, with static distributions of their indices.

A distribution is a row of integer frequencies, equal on all machines. An index within the range of a row is one symbol; with
more than 8 bits, the symbol is its upper 8 bits, and the lower bits are coded as uniformly distributed. An index outside the
range is an escape symbol, followed by its distance from the range in an exponential-Golomb code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from composers.codes.quantization import Indices

TOTAL = 1 << 18  # sum of the frequencies of a row
SYMBOL_BITS = 8  # of an index that a distribution describes
_MAX_LENGTH = 48  # bits of the distance of an escaped index
_LENGTHS = np.array([1 << (24 - length // 2) for length in range(_MAX_LENGTH)], np.int64)
_CHUNK = 16  # bits that are coded as one uniform symbol
_PRIOR = 32.0  # counts of the standard distribution in a learned one

Frequencies = NDArray[np.int32]
Shape = Literal["gaussian", "laplace", "between"]
SHAPES: tuple[Shape, ...] = ("gaussian", "laplace", "between")


class Distribution(NamedTuple):
    """Distribution of the indices of a channel.

    Attributes:
        frequencies: ``(L + 2,)``, positive, with the sum `TOTAL`: those of indices below the range, of ``L`` symbols, and of
            indices above.
        fine: Lower bits of an index that are uniformly distributed.
    """

    frequencies: Frequencies
    fine: int

    @property
    def levels(self) -> int:
        """Number of symbols without the two escapes."""
        return len(self.frequencies) - 2

    def symbols(self, indices: Indices) -> NDArray[np.int32]:
        """Return the symbols ``(N,)`` of indices."""
        symbols: NDArray[np.int32] = (np.clip(indices >> self.fine, -1, self.levels) + 1).astype(np.int32)
        return symbols

    @property
    def least_bits(self) -> float:
        """The bits of an index of the most frequent symbol."""
        return self.fine - math.log2(int(self.frequencies.max()) / TOTAL)

    def cost(self, indices: Indices) -> float:
        """Return the bits of indices without those of the distances of escapes: their cross-entropy, and the lower bits."""
        probabilities = self.frequencies[self.symbols(indices)] / TOTAL
        return float(-np.log2(probabilities).sum()) + self.fine * indices.size


def coarse(levels: int, is_integer: bool) -> tuple[int, int]:
    """Return the number of symbols of a range of indices, and the lower bits that are uniformly distributed."""
    fine = 0 if is_integer else max(0, levels.bit_length() - 1 - SYMBOL_BITS)
    return levels >> fine, fine


def learned_row(indices: Indices, levels: int, is_integer: bool) -> Distribution:
    """Return the distribution of indices: their counts, smoothed by those of a standard distribution.

    Args:
        indices: ``(N,)``.
        levels: Number of indices of the range.
        is_integer: Whether these are integers, rather than numbers around a mean.
    """
    symbols, fine = coarse(levels, is_integer)
    prior = standard_row("uniform" if is_integer else "between", levels)
    counts = np.bincount(prior.symbols(indices), minlength=symbols + 2)
    return Distribution(_frequencies(counts + _PRIOR * prior.frequencies / TOTAL), fine)


@cache
def standard_row(shape: Shape | Literal["uniform"], levels: int) -> Distribution:
    """Return a standard distribution, whose eight standard deviations are the range; equal on all machines.

    Args:
        shape: ``gaussian``, ``laplace``, the mean of both, or ``uniform`` for integers.
        levels: Number of indices of the range.
    """
    if shape == "uniform":
        return Distribution(_frequencies(np.array([1, *[64] * levels, 1])), 0)
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
        return Distribution(_frequencies(np.array([int(1000 * weight) for weight in parts[shape]], np.int64)), fine)


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


class IndexEncoder:
    """Range encoder of indices, row by row.

    Example:
        >>> row = standard_row("gaussian", 256)
        >>> encoder = IndexEncoder()
        >>> encoder.encode(np.array([128, 100, -3, 1000]), row)
        >>> IndexDecoder(encoder.content()).decode(4, row).tolist()
        [128, 100, -3, 1000]
    """

    def __init__(self) -> None:
        self._coder: Any = _streams().queue.RangeEncoder()

    def encode(self, indices: Indices, row: Distribution) -> None:
        """Append indices ``(N,)`` with the distribution of their row."""
        symbols = row.symbols(indices)
        self._coder.encode(symbols, _categorical(row.frequencies))
        if row.fine:
            self._coder.encode((indices & ((1 << row.fine) - 1)).astype(np.int32), _uniform(row.fine))
        upper = indices >> row.fine
        below, above = upper < 0, upper >= row.levels
        outside = upper[below | above]
        distances = np.where(outside < 0, -outside, outside - row.levels + 1)  # at least 1
        if not len(distances):
            return
        lengths = [int(distance).bit_length() - 1 for distance in distances]
        self._coder.encode(np.array(lengths, np.int32), _categorical(_LENGTHS))
        for distance, length in zip(distances.tolist(), lengths, strict=True):
            for start in range(0, length, _CHUNK):
                size = min(_CHUNK, length - start)
                chunk = distance >> start & ((1 << size) - 1)
                self._coder.encode(np.array([chunk], np.int32), _uniform(size))

    def content(self) -> bytes:
        """Return the stream: words of 32 bits in little-endian order."""
        content: bytes = self._coder.get_compressed().astype("<u4").tobytes()
        return content


class IndexDecoder:
    """Range decoder of a stream of `IndexEncoder`.

    Args:
        content: The stream.

    Raises:
        ValueError: If it does not consist of words of 32 bits.
    """

    def __init__(self, content: bytes) -> None:
        if len(content) % 4:
            raise ValueError("its stream has no whole number of words")
        words = np.frombuffer(content, "<u4").astype(np.uint32)
        self._coder: Any = _streams().queue.RangeDecoder(words)

    def decode(self, count: int, row: Distribution) -> Indices:
        """Return the next ``count`` indices, of the distribution of their row.

        Raises:
            ValueError: If the stream does not hold them.
        """
        try:
            return self._decode(count, row)
        except AssertionError as error:
            raise ValueError(f"its stream is damaged: {error}") from error

    def _decode(self, count: int, row: Distribution) -> Indices:
        upper = self._coder.decode(_categorical(row.frequencies), count).astype(np.int64) - 1
        fine = self._coder.decode(_uniform(row.fine), count).astype(np.int64) if row.fine else 0
        outside = (upper < 0) | (upper >= row.levels)
        if number := int(outside.sum()):
            lengths = self._coder.decode(_categorical(_LENGTHS), number)
            distances = []
            for length in lengths.tolist():
                distance = 1 << length
                for start in range(0, length, _CHUNK):
                    size = min(_CHUNK, length - start)
                    distance |= int(self._coder.decode(_uniform(size))) << start
                distances.append(distance)
            below = upper[outside] < 0
            escaped = np.array(distances, np.int64)
            upper[outside] = np.where(below, -escaped, escaped + row.levels - 1)
        indices: Indices = (upper << row.fine) | fine
        return indices

    def finish(self) -> None:
        """Check that nothing follows.

        Raises:
            ValueError: If the stream holds more than was decoded.
        """
        if not self._coder.maybe_exhausted():
            raise ValueError("its stream holds more numbers than its header states")


def empirical_entropy(symbols: Sequence[NDArray[np.integer[Any]]]) -> float:
    """Return the bits of symbols by the entropy of their own histogram, per row, without the cost of stating it."""
    bits = 0.0
    for row in symbols:
        counts = np.unique(row, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / row.size)).sum())
    return bits


def _streams() -> Any:
    """Return the coders of constriction."""
    import constriction  # here, because only compressed codes need it

    return constriction.stream


def _categorical(frequencies: NDArray[np.integer[Any]]) -> Any:
    """Return the distribution of a row of frequencies; exact, because they are multiples of a power of two."""
    return _streams().model.Categorical(frequencies / float(frequencies.sum()), perfect=False)


def _uniform(bits: int) -> Any:
    """Return the uniform distribution of numbers of so many bits."""
    return _streams().model.Uniform(1 << bits)
