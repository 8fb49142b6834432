"""Encodings of coordinates, computed in float32 even under autocast: rounding coordinates corrupts high frequencies."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from datamodules.domain import exact
from datamodules.spec import FromData, coord_dim


class Encoding(nn.Module, ABC):
    """A fixed map from coordinates to features."""

    @abstractmethod
    def width(self, coord_dim: int) -> int:
        """Return the number of features for coordinates with ``coord_dim`` dimensions."""

    @abstractmethod
    def features(self, coords: Tensor) -> Tensor:
        """Return the features ``(..., width)`` of float32 coordinates ``(..., D)``."""

    def highest_frequencies(self, coord_dim: int) -> tuple[float, ...] | None:
        """Return the highest frequency along each axis, in periods per unit of the coordinate.

        None, the default, for features that are not periodic.
        """
        return None

    def raised(self, factor: float) -> str:
        """Return the argument, with its value, that raises the highest frequencies by a factor."""
        return "its highest frequency"

    def forward(self, coords: Tensor) -> Tensor:
        """Return the features ``(..., width)`` of coordinates ``(..., D)``, at least in float32."""
        with torch.autocast(coords.device.type, enabled=False):
            return self.features(exact(coords))


class IdentityEncoding(Encoding):
    """The unchanged coordinates, for networks with periodic or localised activations."""

    def width(self, coord_dim: int) -> int:
        """Return ``coord_dim``."""
        return coord_dim

    def features(self, coords: Tensor) -> Tensor:
        """Return the coordinates unchanged."""
        return coords


class FourierFeatures(Encoding):
    """Log-spaced Fourier features (paper section 3, details from the released code): all cosines, then all sines.

    The frequencies are geometrically spaced from ``min_frequency`` to ``max_frequency``; features are ordered axis by axis.
    For scenes in world units, as in NeRF, set ``max_frequency`` to ``2 ** 8`` and ``use_pi`` to False.

    Args:
        num_frequencies: Number of frequencies of every axis, at least 1; or one number per axis.
        max_frequency: Highest frequency of every axis, at least 1; or one number per axis. Published values are 64 to 256 for
            images and 1024 for audio.
        use_pi: Whether to multiply phases by pi, so that frequency 1 has one period over ``[-1, 1]``.
        min_frequency: Lowest frequency of every axis, above 0 and at most the highest.

    Raises:
        ValueError: If an argument is out of range.
    """

    frequencies: Tensor

    def __init__(
        self,
        num_frequencies: int | Sequence[int] = 64,
        max_frequency: float | Sequence[float] = 128.0,
        use_pi: bool = True,
        min_frequency: float = 1.0,
    ) -> None:
        super().__init__()
        counts = [num_frequencies] if isinstance(num_frequencies, int) else list(num_frequencies)
        highest = list(max_frequency) if isinstance(max_frequency, Sequence) else [max_frequency]
        if not counts or min(counts) < 1:
            raise ValueError(f"num_frequencies is {num_frequencies}; it must be at least 1.")
        if not highest or min(highest) < 1:
            raise ValueError(f"max_frequency is {max_frequency}; it must be at least 1.")
        if not 0 < min_frequency <= min(highest):
            raise ValueError(
                f"min_frequency is {min_frequency} and max_frequency {max_frequency}: it must be above 0 and at most "
                "max_frequency."
            )
        self.per_axis = isinstance(num_frequencies, Sequence) or isinstance(max_frequency, Sequence)
        if isinstance(num_frequencies, int):
            counts *= len(highest)
        if not isinstance(max_frequency, Sequence):
            highest *= len(counts)
        if len(counts) != len(highest):
            raise ValueError(
                f"num_frequencies is {counts} and max_frequency {highest}: give each one number, or one per axis."
            )
        self.factor = math.pi if use_pi else 1.0
        self.counts = counts
        self.register_buffer(
            "frequencies", torch.cat([_log_spaced(*axis, min_frequency) for axis in zip(counts, highest, strict=True)])
        )

    def width(self, coord_dim: int) -> int:
        """Return twice the number of frequencies of all axes.

        Raises:
            ValueError: If frequencies are set per axis and the number of axes differs from ``coord_dim``.
        """
        if not self.per_axis:
            return 2 * self.frequencies.numel() * coord_dim
        if len(self.counts) != coord_dim:
            raise ValueError(
                f"FourierFeatures has frequencies for {len(self.counts)} axes, num_frequencies {self.counts}; the network has "
                f"coord_dim {coord_dim}: give one number, or one per axis."
            )
        return 2 * self.frequencies.numel()

    def highest_frequencies(self, coord_dim: int) -> tuple[float, ...]:
        """Return the highest frequency along each axis, in periods per unit: half of ``max_frequency`` with ``use_pi``.

        Example:
            >>> FourierFeatures(max_frequency=1024).highest_frequencies(1)
            (512.0,)
        """
        axes = self.frequencies.split(self.counts) if self.per_axis else [self.frequencies] * coord_dim
        return tuple(bands.max().item() * self.factor / (2 * math.pi) for bands in axes)

    def raised(self, factor: float) -> str:
        """Return ``max_frequency`` with its value."""
        return f"max_frequency to {math.ceil(round(factor * self.frequencies.max().item(), 3))}"

    def features(self, coords: Tensor) -> Tensor:
        """Return the cosines, then the sines of the phases, axis by axis: ``(..., width)``."""
        frequencies = self.frequencies * self.factor
        if self.per_axis:
            axes = zip(coords.unbind(-1), frequencies.split(self.counts), strict=True)
            phases = torch.cat([axis.unsqueeze(-1) * bands for axis, bands in axes], dim=-1)  # (..., K_1 + K_2 + ...)
        else:
            phases = (coords.unsqueeze(-1) * frequencies).flatten(-2)  # (..., D K)
        return torch.cat((phases.cos(), phases.sin()), dim=-1)


class PositionalEncoding(Encoding):
    """The coordinates, then the sines and cosines of ``2^k`` times them (NeRF, equation 4, with the coordinates; MetaSDF).

    Args:
        num_octaves: Number of frequencies ``2^k``, with ``k`` from 0.
        use_pi: Whether to multiply phases by pi, so that frequency 1 has one period over ``[-1, 1]``; False in MetaSDF.

    Raises:
        ValueError: If ``num_octaves`` is not positive.
    """

    def __init__(self, num_octaves: int = 5, use_pi: bool = False) -> None:
        super().__init__()
        if num_octaves < 1:
            raise ValueError(f"num_octaves is {num_octaves}; it must be at least 1.")
        self.num_octaves = num_octaves
        self.use_pi = use_pi

    def width(self, coord_dim: int) -> int:
        """Return one feature, and two per frequency, for every axis."""
        return coord_dim * (1 + 2 * self.num_octaves)

    def highest_frequencies(self, coord_dim: int) -> tuple[float, ...]:
        """Return the frequency of the last octave, in periods per unit, for every axis."""
        phase: float = 2 ** (self.num_octaves - 1) * (math.pi if self.use_pi else 1.0)
        return (phase / (2 * math.pi),) * coord_dim

    def raised(self, factor: float) -> str:
        """Return ``num_octaves`` with its value."""
        return f"num_octaves to {self.num_octaves + math.ceil(math.log2(factor))}"

    def features(self, coords: Tensor) -> Tensor:
        """Return the coordinates, then all sines, then all cosines, axis by axis: ``(..., width)``."""
        octaves = torch.arange(self.num_octaves, device=coords.device, dtype=coords.dtype)
        frequencies = octaves.exp2() * (math.pi if self.use_pi else 1.0)
        phases = (coords.unsqueeze(-1) * frequencies).flatten(-2)
        return torch.cat((coords, phases.sin(), phases.cos()), dim=-1)


class CosineFeatures(Encoding):
    """Products of cosines along all axes, the functions of the discrete cosine transform (DCT).

    Along an axis, the features are ``cos(pi k (x + 1) / 2)`` for ``k`` from 0 to the number of frequencies. With as many
    frequencies as samples on [-1, 1], the features at the samples are a basis of all signals.

    Args:
        num_frequencies: Number of frequencies along each axis, including 0.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, num_frequencies: Sequence[int]) -> None:
        super().__init__()
        if not num_frequencies or min(num_frequencies) < 1:
            raise ValueError(f"num_frequencies is {list(num_frequencies)}; give one number of at least 1 per axis.")
        self.num_frequencies = tuple(num_frequencies)

    def width(self, coord_dim: int) -> int:
        """Return the product of the numbers of frequencies.

        Raises:
            ValueError: If ``num_frequencies`` has not one number per axis.
        """
        if len(self.num_frequencies) != coord_dim:
            raise ValueError(
                f"num_frequencies is {list(self.num_frequencies)}, and coordinates have {coord_dim} dimensions: give one "
                "number per axis."
            )
        return math.prod(self.num_frequencies)

    def highest_frequencies(self, coord_dim: int) -> tuple[float, ...]:
        """Return the highest frequency along each axis, in periods per unit: half a period on [-1, 1] per cosine above 0."""
        return tuple((count - 1) / 4 for count in self.num_frequencies)

    def raised(self, factor: float) -> str:
        """Return ``num_frequencies`` with its values."""
        return f"num_frequencies to {[1 + math.ceil((count - 1) * factor) for count in self.num_frequencies]}"

    def features(self, coords: Tensor) -> Tensor:
        """Return the products, last axis fastest: ``(..., width)``."""
        features = coords.new_ones(*coords.shape[:-1], 1)
        for axis, count in zip(coords.unbind(-1), self.num_frequencies, strict=True):
            orders = torch.arange(count, device=coords.device, dtype=coords.dtype)
            cosines = torch.cos((axis.unsqueeze(-1) + 1) * (math.pi / 2) * orders)
            features = (features.unsqueeze(-1) * cosines.unsqueeze(-2)).flatten(-2)
        return features


def _log_spaced(count: int, highest: float, lowest: float = 1.0) -> Tensor:
    """Return ``count`` geometrically spaced frequencies from ``lowest`` to ``highest``."""
    return torch.linspace(math.log(lowest), math.log(highest), count, dtype=torch.float64).exp().float()


class GaussianFourierFeatures(Encoding):
    """Fourier features with random frequencies (Tancik et al. 2020, "Fourier features let networks learn ...").

    Args:
        coord_dim: Number of dimensions of a coordinate; set from the data module on the command line.
        num_frequencies: Number of random frequency vectors; the number of features is twice as large.
        scale: Standard deviation of the frequencies, in periods per unit of coordinate.
        seed: Seed of the frequency vectors, which are fixed and saved with the model.

    Raises:
        ValueError: If an argument is out of range or ``coord_dim`` is missing.
    """

    from_data: ClassVar[FromData] = {"coord_dim": coord_dim}
    frequencies: Tensor

    def __init__(
        self, coord_dim: int | None = None, num_frequencies: int = 128, scale: float = 10.0, seed: int = 0
    ) -> None:
        super().__init__()
        if coord_dim is None or coord_dim < 1:
            raise ValueError(
                f"coord_dim of GaussianFourierFeatures is {coord_dim}; pass the number of coordinate dimensions, at least 1."
            )
        if num_frequencies < 1 or scale <= 0:
            raise ValueError(f"num_frequencies is {num_frequencies} and scale {scale}; both must be positive.")
        generator = torch.Generator().manual_seed(seed)
        self.coord_dim = coord_dim
        self.scale = scale
        self.register_buffer("frequencies", scale * torch.randn(coord_dim, num_frequencies, generator=generator))

    def width(self, coord_dim: int) -> int:
        """Return twice the number of frequency vectors.

        Raises:
            ValueError: If ``coord_dim`` differs from that of the constructor.
        """
        if coord_dim != self.frequencies.shape[0]:
            raise ValueError(
                f"GaussianFourierFeatures has coord_dim {self.frequencies.shape[0]}, the network has {coord_dim}: "
                "set both to the same value; on the command line, omit coord_dim of the encoding."
            )
        return 2 * self.frequencies.shape[1]

    def highest_frequencies(self, coord_dim: int) -> tuple[float, ...]:
        """Return the largest component of the frequency vectors along each axis, in periods per unit."""
        return tuple(self.frequencies.abs().amax(-1).tolist())

    def raised(self, factor: float) -> str:
        """Return ``scale`` with its value."""
        return f"scale to {self.scale * factor:.3g}"

    def features(self, coords: Tensor) -> Tensor:
        """Return the cosines, then the sines: ``(..., 2 K)``."""
        phases = 2 * math.pi * (coords @ self.frequencies)
        return torch.cat((phases.cos(), phases.sin()), dim=-1)
