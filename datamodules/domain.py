"""Domains: where signals are defined, the one maker of coordinates; and what is drawn of coordinates. Pure functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Domain(ABC):
    """Where signals of one kind are defined. Equal domains compare equal; `domain_config` is what files store of one."""

    @property
    @abstractmethod
    def coord_dim(self) -> int:
        """``D``, dimensions of a coordinate."""

    @abstractmethod
    def coords(self, shape: Sequence[int], *, device: torch.device | None = None) -> Tensor:
        """Return the coordinates of a signal sampled regularly with this shape, ``(N, D)`` float32, last axis fastest."""


@dataclass(frozen=True)
class Grid(Domain):
    """A box whose regular samples are the centres of equal cells.

    Args:
        ranges: Lower and upper end of every axis.

    Example:
        >>> Grid(((-1.0, 1.0), (-1.0, 1.0))).coords((2, 4))[5].tolist()
        [0.5, -0.25]
    """

    ranges: tuple[tuple[float, float], ...]

    @classmethod
    def unit(cls, axes: int) -> Grid:
        """Return ``[-1, 1]`` along so many axes."""
        return cls(((-1.0, 1.0),) * axes)

    @property
    def coord_dim(self) -> int:
        """As many as there are axes."""
        return len(self.ranges)

    def coords(self, shape: Sequence[int], *, device: torch.device | None = None) -> Tensor:
        """Return the centres of the cells that divide every axis into ``shape`` parts."""
        axes = [
            low + (high - low) * (torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n
            for (low, high), n in zip(self.ranges, shape, strict=True)
        ]
        return torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).reshape(-1, len(axes)).float()

    def cell(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Return the edge lengths of one cell of `coords`.

        Example:
            >>> Grid.unit(2).cell((2, 4))
            (1.0, 0.5)
        """
        return tuple((high - low) / n for (low, high), n in zip(self.ranges, shape, strict=True))


@dataclass(frozen=True)
class Rays(Domain):
    """Rays of posed views: origin and direction.

    Args:
        near: Depth at which rendering starts, in world units from the plane of the camera.
        far: Depth at which it ends.
    """

    near: float
    far: float

    @property
    def coord_dim(self) -> int:
        """6."""
        return 6

    def coords(self, shape: Sequence[int], *, device: torch.device | None = None) -> Tensor:
        """Refuse: rays need cameras, see `datamodules.cameras.pixel_rays`."""
        raise ValueError("Rays have no coordinates without cameras: use datamodules.cameras.pixel_rays.")


def grid(
    shape: Sequence[int],
    low: float = -1.0,
    high: float = 1.0,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Return the centres of the cells that divide ``[low, high]`` along every axis.

    Args:
        shape: Cells along each axis, in array order (rows before columns for a picture).
        low: Lower edge of the first cell.
        high: Upper edge of the last cell.
        device: Where the coordinates are wanted.

    Returns:
        ``(N, D)`` float32, ``N`` the product and ``D`` the length of ``shape``, last axis fastest.

    Example:
        >>> grid((2, 4))[5].tolist()
        [0.5, -0.25]
    """
    axes = [low + (high - low) * (torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n for n in shape]
    return torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).reshape(-1, len(shape)).float()


def exact(numbers: Tensor) -> Tensor:
    """Return numbers in float32, or in float64 if that is what they are; bfloat16 and float16 are converted.

    Example:
        >>> [exact(torch.zeros(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def cell_size(shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> tuple[float, ...]:
    """Return the edge lengths of one cell of `grid`.

    Example:
        >>> cell_size((2, 4))
        (1.0, 0.5)
    """
    return tuple((high - low) / n for n in shape)


def sampling_rate(samples: int, coord_range: tuple[float, float]) -> int:
    """Return the samples per second of signals whose coordinates are 2 units per second, as published.

    Example:
        >>> sampling_rate(48000, (-3.0, 3.0))
        16000
    """
    low, high = coord_range
    return round(2 * samples / (high - low))


def jitter(coords: Tensor, cell: Sequence[float], generator: torch.Generator) -> Tensor:
    """Move every coordinate uniformly within its cell (paper section 4, coordinate noise).

    Reference: the released code scales both axes by the first one's cell; here each axis has its own.

    Args:
        coords: ``(..., D)`` cell centres.
        cell: Edge lengths of a cell, one per axis.
        generator: Where the draw comes from; on the device of ``coords``.

    Returns:
        Coordinates of the same shape, at most half a cell away.
    """
    noise = torch.rand(coords.shape, generator=generator, device=coords.device, dtype=coords.dtype) - 0.5
    return coords + noise * coords.new_tensor(cell)


def subset(total: int, wanted: float | int, generator: torch.Generator) -> Tensor:
    """Draw a random subset of ``range(total)``.

    Args:
        total: How many there are.
        wanted: A ratio in (0, 1] if a float, a count of at least 1 if an integer; more than all means all.
        generator: Where the draw comes from; the indices lie on its device.

    Returns:
        Distinct indices in ascending order.

    Example:
        >>> subset(4, 1.0, torch.Generator()).tolist()
        [0, 1, 2, 3]
    """
    count = round(total * wanted) if isinstance(wanted, float) else wanted
    count = max(1, min(total, count))
    order = torch.randperm(total, generator=generator, device=generator.device)
    return order[:count].sort().values
