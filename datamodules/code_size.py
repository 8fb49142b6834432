"""Size of instance codes: the number of latents, kilobytes, and the rate per pixel or second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

_BITS = 32  # of a number in float32


class CodeSize(NamedTuple):
    """Size of an instance code.

    Attributes:
        numbers: Number of latents; the mean of several codes need not be an integer.
        extent: Pixels of an image, or milliseconds of audio; 0 if the modality has no rate.
        unit: Unit of the bits per ``extent``; empty if the modality has no rate.
        file_bytes: Bytes of the file of a compressed code; 0 if the numbers are stored in float32.

    Example:
        >>> CodeSize(1536, 64 * 64, "bits per pixel").describe()
        '1,536 numbers, 6.1 kB in float32, 12.00 bits per pixel'
        >>> CodeSize(1536, 64 * 64, "bits per pixel", 1280).describe()
        '1,536 numbers, 1.3 kB compressed, 2.50 bits per pixel'
        >>> CodeSize(4096).describe()
        '4,096 numbers, 16.4 kB in float32'
    """

    numbers: float
    extent: float = 0.0
    unit: str = ""
    file_bytes: float = 0.0

    @property
    def kilobytes(self) -> float:
        """Return the size in kB, 1000 bytes each."""
        return (self.file_bytes or self.numbers * _BITS / 8) / 1000

    @property
    def rate(self) -> float | None:
        """Return the bits per extent; None if the modality has no rate or the signal is empty."""
        return 8000 * self.kilobytes / self.extent if self.extent else None

    def describe(self) -> str:
        """Return the size as text, in numbers, kB and bits per extent."""
        rate = [] if self.rate is None else [f"{self.rate:,.2f} {self.unit}"]
        numbers = "1 number" if self.numbers == 1 else f"{self.numbers:,.0f} numbers"
        stored = "compressed" if self.file_bytes else "in float32"
        return ", ".join([numbers, f"{self.kilobytes:,.1f} kB {stored}", *rate])

    def facts(self) -> dict[str, str]:
        """Return the size as columns of a table, and as facts of a code file.

        Example:
            >>> CodeSize(1536, 4096, "bits per pixel").facts()
            {'code size': '1536', 'kB': '6.144', 'bits per pixel': '12.000'}
        """
        rate = {} if self.rate is None else {self.unit: f"{self.rate:.3f}"}
        return {"code size": f"{self.numbers:.0f}", "kB": f"{self.kilobytes:.3f}"} | rate

    @classmethod
    def mean(cls, sizes: Sequence[Self]) -> Self:
        """Return the mean size of codes; its rate is the number of all bits over the extent of all signals.

        Args:
            sizes: At least one size, all of one modality.

        Example:
            >>> CodeSize.mean([CodeSize(10, 4.0, "kbit/s"), CodeSize(20, 8.0, "kbit/s")])
            CodeSize(numbers=15.0, extent=6.0, unit='kbit/s', file_bytes=0.0)
        """
        numbers, extents, units, stored = zip(*sizes, strict=True)
        return cls(sum(numbers) / len(sizes), sum(extents) / len(sizes), units[0], sum(stored) / len(sizes))


def describe_sizes(sizes: Sequence[CodeSize]) -> str:
    """Return a line on the sizes of codes, or on their mean if their numbers differ.

    Example:
        >>> describe_sizes([CodeSize(4096), CodeSize(4096)]), describe_sizes([CodeSize(1000), CodeSize(2000)])
        ('Code size: 4,096 numbers, 16.4 kB in float32', 'Mean code size: 1,500 numbers, 6.0 kB in float32')
    """
    label = "Code size" if len({size.numbers for size in sizes}) == 1 else "Mean code size"
    return f"{label}: {CodeSize.mean(sizes).describe()}"
