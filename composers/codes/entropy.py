"""Entropy coding of quantised latents by a range coder, with distributions that adapt to the file.

The indices of a row are coded in this order: the symbols of all of them by their `Distribution`, whose frequencies are updated
after every block; their lower bits, as uniformly distributed; the distances of those outside of the range from it, in an
exponential-Golomb code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from composers.codes.distribution import Distribution
from composers.codes.quantization import Indices

_MAX_LENGTH = 48  # bits of the distance of an escaped index
_LENGTHS = np.array([1 << (24 - length // 2) for length in range(_MAX_LENGTH)], np.int64)
_CHUNK = 16  # bits that are coded as one uniform symbol


class IndexEncoder:
    """Range encoder of indices, row by row.

    Example:
        >>> from composers.codes.distribution import standard_row
        >>> row = standard_row("gaussian", 256, inertia=8)
        >>> encoder = IndexEncoder()
        >>> encoder.encode(np.array([128, 100, -3, 1000]), row)
        >>> IndexDecoder(encoder.content()).decode(4, row).tolist()
        [128, 100, -3, 1000]
    """

    def __init__(self) -> None:
        self._coder: Any = _streams().queue.RangeEncoder()

    def encode(self, indices: Indices, row: Distribution) -> None:
        """Append indices ``(N,)`` with the distribution of their row."""
        symbols, counts = row.symbols(indices), np.zeros(len(row.frequencies), np.int64)
        for block in row.blocks(len(symbols)):
            self._coder.encode(symbols[block], _categorical(row.updated(counts)))
            counts += np.bincount(symbols[block], minlength=len(counts))
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
        symbols, counts = np.empty(count, np.int32), np.zeros(len(row.frequencies), np.int64)
        for block in row.blocks(count):
            symbols[block] = self._coder.decode(_categorical(row.updated(counts)), block.stop - block.start)
            counts += np.bincount(symbols[block], minlength=len(counts))
        upper = symbols.astype(np.int64) - 1
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
