"""Domains: where signals are defined, the one maker of coordinates; and what is drawn of coordinates. Leaf: torch only."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Box = Sequence[tuple[int, int]]
Cameras = tuple[Tensor, Tensor]


class Domain(ABC):
    """Where signals of one kind are defined, and the maker of their coordinates.

    A subclass is a frozen dataclass of plain numbers, so that equal domains compare equal, and files store a domain by its
    class and its fields (`config`, `from_config`).
    """

    @property
    @abstractmethod
    def coord_dim(self) -> int:
        """``D``, dimensions of a coordinate."""

    @abstractmethod
    def coords(
        self,
        shape: Sequence[int],
        box: Box | None = None,
        cameras: Cameras | None = None,
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the coordinates of a signal that is sampled regularly.

        Args:
            shape: Samples along each axis of the signal, in array order (rows before columns).
            box: Start and stop of the samples along each axis; all if None. The coordinates are those of the whole signal, so
                that a large signal can be made band by band.
            cameras: Poses and focal lengths, where the signal is made of views; other domains ignore them.
            device: Where the coordinates are made.

        Returns:
            ``(N, D)`` float32, last axis fastest.

        Raises:
            ValueError: If the shape does not fit the domain.
        """

    def at(self, places: Sequence[Tensor], shape: Sequence[int], steps: Sequence[float] | None = None) -> Tensor:
        """Return coordinates between the samples of a signal.

        Args:
            places: For each axis ``(n,)`` places in double precision, in samples of the signal: the centre of sample ``i`` is
                at ``i + 0.5``.
            shape: Samples of the signal along each axis.
            steps: Distance of neighbouring places along each axis, in samples of the signal; 1 if None.

        Returns:
            ``(N, D)`` float32 where the places of all axes cross, last axis fastest.

        Raises:
            ValueError: If the domain has no coordinates between samples, or the axes differ in number.
        """
        raise ValueError(f"{type(self).__name__} has no coordinates between samples.")

    def cell(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Return how far each number of a coordinate reaches within its cell, for `jitter`; 0 where it must not move.

        Args:
            shape: Samples along each axis of the signal.

        Returns:
            ``D`` edge lengths.
        """
        return (0.0,) * self.coord_dim

    @abstractmethod
    def describe(self) -> str:
        """Return the domain in words, for error messages."""

    def agrees(self, other: Domain) -> bool:
        """Return whether a model that was trained on this domain can be used on another, up to rounding.

        Example:
            >>> Grid.unit(2).agrees(Grid.unit(1)), Grid.unit(1).agrees(Grid(((-1.0, 1.0 + 1e-12),)))
            (False, True)
        """
        first, second = (list(_flat(dataclasses.astuple(domain))) for domain in (self, other))  # type: ignore[call-overload]
        return type(self) is type(other) and len(first) == len(second) and all(map(_close, first, second))

    def config(self) -> dict[str, Any]:
        """Return the domain as ``class_path`` and ``init_args``, plain data that JSON holds.

        Example:
            >>> Volume(1.5).config()
            {'class_path': 'datamodules.domain.Volume', 'init_args': {'bound': 1.5}}
        """
        fields = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"class_path": _path(type(self)), "init_args": fields}

    @staticmethod
    def from_config(config: Any) -> Domain:
        """Return the domain of a `config`.

        Only classes that are imported already are found, so that reading a file runs no foreign code.

        Raises:
            ValueError: If the config names no domain, or its arguments do not fit.

        Example:
            >>> Domain.from_config({"class_path": "datamodules.domain.Grid", "init_args": {"ranges": [[-1, 1]]}})
            Grid(ranges=((-1.0, 1.0),))
        """
        if not isinstance(config, Mapping) or not isinstance(config.get("init_args", {}), Mapping):
            raise ValueError(f"A domain is stored as class_path and init_args, found: {config!r}.")
        known = {_path(domain): domain for domain in _subclasses(Domain)}  # type: ignore[type-abstract]
        if (domain := known.get(str(config.get("class_path")))) is None:
            raise ValueError(
                f"The domain {config.get('class_path')!r} is unknown; known are {', '.join(sorted(known))}: import the module "
                "that defines it first."
            )
        try:
            made: Domain = domain(**config.get("init_args", {}))
        except TypeError as error:
            raise ValueError(f"The domain {config['class_path']} cannot be made: {error}") from error
        return made


@dataclass(frozen=True)
class Grid(Domain):
    """A box whose regular samples are the centres of equal cells.

    Args:
        ranges: Lower and upper end of every axis.

    Raises:
        ValueError: If a range is not two finite numbers in ascending order.

    Example:
        >>> Grid(((-1.0, 1.0), (-1.0, 1.0))).coords((2, 4))[5].tolist()
        [0.5, -0.25]
    """

    ranges: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Make tuples of what files store as lists, and check them."""
        try:
            ranges = tuple((float(low), float(high)) for low, high in self.ranges)
        except (TypeError, ValueError) as error:
            raise ValueError(f"ranges is {self.ranges!r}: give a lower and an upper end for every axis.") from error
        if not ranges or not all(math.isfinite(high - low) and low < high for low, high in ranges):
            raise ValueError(f"ranges is {ranges}: the ends of an axis are finite, the lower one first.")
        object.__setattr__(self, "ranges", ranges)

    @classmethod
    def unit(cls, axes: int) -> Grid:
        """Return ``[-1, 1]`` along so many axes."""
        return cls(((-1.0, 1.0),) * axes)

    @property
    def coord_dim(self) -> int:
        """As many as there are axes."""
        return len(self.ranges)

    def coords(
        self,
        shape: Sequence[int],
        box: Box | None = None,
        cameras: Cameras | None = None,
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the centres of the cells that divide every axis into ``shape`` parts; see `Domain.coords`."""
        places = [
            torch.arange(start, stop, dtype=torch.float64, device=device) + 0.5 for start, stop in _spans(shape, box)
        ]
        return self.at(places, shape)

    def at(self, places: Sequence[Tensor], shape: Sequence[int], steps: Sequence[float] | None = None) -> Tensor:
        """Return the positions of places between samples; see `Domain.at`.

        Example:
            >>> Grid.unit(1).at([torch.tensor([0.0, 0.5, 4.0])], (4,)).flatten().tolist()
            [-1.0, -0.75, 1.0]
        """
        if not len(places) == len(shape) == len(self.ranges):
            raise ValueError(f"shape is {tuple(shape)}; this domain has {len(self.ranges)} axes, {self.ranges}.")
        axes = [low + (high - low) * at / n for (low, high), at, n in zip(self.ranges, places, shape, strict=True)]
        return torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).reshape(-1, len(axes)).float()

    def cell(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Return the edge lengths of one cell of `coords`.

        Example:
            >>> Grid.unit(2).cell((2, 4))
            (1.0, 0.5)
        """
        return tuple((high - low) / n for (low, high), n in zip(self.ranges, shape, strict=True))

    def describe(self) -> str:
        """Return the ends of the axes in words, once where all are the same."""
        ends = dict.fromkeys(f"from {low:g} to {high:g}" for low, high in self.ranges)
        shown = ends if len(ends) == 1 else [f"from {low:g} to {high:g}" for low, high in self.ranges]
        return f"coordinates {', '.join(shown)}"


@dataclass(frozen=True)
class CellGrid(Grid):
    """A grid whose coordinates hold the position, then the size of the cell (Chen et al. 2021, LIIF, section 3).

    A model that sees the size of a cell can render it as the mean over the cell, at any resolution.

    Args:
        ranges: Lower and upper end of every axis.

    Example:
        >>> CellGrid.unit(2).coords((2, 4))[5].tolist()
        [0.5, -0.25, 1.0, 0.5]
    """

    @property
    def coord_dim(self) -> int:
        """Two for each axis: a position and the edge length of a cell."""
        return 2 * len(self.ranges)

    def at(self, places: Sequence[Tensor], shape: Sequence[int], steps: Sequence[float] | None = None) -> Tensor:
        """Return positions, and cells as large as the distance of neighbouring places; see `Domain.at`."""
        positions = super().at(places, shape)
        factors = [1.0] * len(shape) if steps is None else [float(step) for step in steps]
        sizes = [edge * factor for edge, factor in zip(super().cell(shape), factors, strict=True)]
        return torch.cat((positions, positions.new_tensor(sizes).expand_as(positions)), dim=-1)

    def cell(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Return the edge lengths of one cell, and zeros for the sizes, which do not move."""
        return super().cell(shape) + (0.0,) * len(self.ranges)


@dataclass(frozen=True)
class Rays(Domain):
    """Rays of posed views: origin and direction in world units, six numbers.

    Args:
        near: Depth at which rendering starts, in world units from the plane of the camera; None where it is not known.
        far: Depth at which it ends; likewise.
    """

    near: float | None = None
    far: float | None = None

    @property
    def coord_dim(self) -> int:
        """6: a ray is an origin and a direction."""
        return 6

    def coords(
        self,
        shape: Sequence[int],
        box: Box | None = None,
        cameras: Cameras | None = None,
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the rays through the centres of the pixels of views (paper section 4.3, novel view synthesis).

        Reference: as in the released code, directions are not normalised: they reach one unit along the optical axis, so that
        a depth is a distance from the plane of the camera, not from the camera.

        Args:
            shape: ``(V, H, W)``, or ``(H, W)`` of one view.
            box: Start and stop along each of these axes; all if None.
            cameras: Poses ``(..., V, 3, 4)`` and focal lengths ``(..., V, 2)`` in pixels, along columns and rows; without ``V``
                where ``shape`` has none.
            device: Where the rays are made; with the cameras if None.

        Returns:
            ``(..., V * H * W, 6)``, view by view and row by row, in the precision of the cameras.

        Raises:
            ValueError: If there are no cameras, or not as many as views.

        Example:
            >>> cameras = (torch.eye(4)[:3], torch.tensor([1.0, 1.0]))
            >>> Rays().coords((1, 2), cameras=cameras)[0].tolist()
            [0.0, 0.0, 0.0, -0.5, 0.0, -1.0]
        """
        if cameras is None or not 2 <= len(shape) <= 3:
            raise ValueError(
                f"Rays have coordinates of views (V, H, W) with cameras: shape is {tuple(shape)}, cameras are "
                f"{'missing' if cameras is None else 'given'}."
            )
        (*views, rows, columns), (height, width) = _spans(shape, box), shape[-2:]
        poses, focals = (numbers.to(device) for numbers in cameras)
        if views:
            if poses.shape[-3] != shape[0]:
                raise ValueError(f"shape is {tuple(shape)}, and there are cameras of {poses.shape[-3]} views.")
            poses, focals = poses[..., slice(*views[0]), :, :], focals[..., slice(*views[0]), :]
        row, column = torch.meshgrid(
            torch.arange(*rows, device=poses.device) + 0.5,
            torch.arange(*columns, device=poses.device) + 0.5,
            indexing="ij",
        )
        right = (column.flatten() - width / 2) / focals[..., :1]  # (..., H W)
        up = (height / 2 - row.flatten()) / focals[..., 1:]
        inside = torch.stack((right, up, -torch.ones_like(up)), dim=-1)  # (..., H W, 3)
        directions = inside @ poses[..., :3].mT
        rays = torch.cat((poses[..., None, :, 3].expand_as(directions), directions), dim=-1)
        return rays.flatten(-3, -2) if views else rays

    def agrees(self, other: Domain) -> bool:
        """Return whether the other domain has rays too; depths are compared by the renderer that uses them."""
        return isinstance(other, Rays)

    def describe(self) -> str:
        """Return the depths in words."""
        return "rays" if self.near is None or self.far is None else f"rays at depths from {self.near:g} to {self.far:g}"


@dataclass(frozen=True)
class Volume(Domain):
    """Points of space that lie anywhere in a cube around the origin, as samples of surfaces and along rays do.

    Args:
        bound: The cube reaches from ``-bound`` to ``bound`` along every axis.

    Raises:
        ValueError: If ``bound`` is not positive and finite.

    Example:
        >>> Volume(2.0).coords((2, 2, 2))[1].tolist()
        [-1.0, -1.0, 1.0]
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        """Check the bound."""
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound is {self.bound}; it must be positive and finite.")

    @property
    def coord_dim(self) -> int:
        """3: x, y and z."""
        return 3

    def coords(
        self,
        shape: Sequence[int],
        box: Box | None = None,
        cameras: Cameras | None = None,
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the centres of the cells that divide the cube, for marching cubes; see `Domain.coords`."""
        return self._grid.coords(shape, box, device=device)

    def at(self, places: Sequence[Tensor], shape: Sequence[int], steps: Sequence[float] | None = None) -> Tensor:
        """Return positions between the centres of cells; see `Domain.at`."""
        return self._grid.at(places, shape)

    def cell(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Return the edge lengths of one cell of `coords`."""
        return self._grid.cell(shape)

    def describe(self) -> str:
        """Return the cube in words."""
        return f"points of space within {self.bound:g} of the origin"

    @property
    def _grid(self) -> Grid:
        """The cube as a grid."""
        return Grid(((-self.bound, self.bound),) * 3)


def exact(numbers: Tensor) -> Tensor:
    """Return numbers in float32, or in float64 if that is what they are; bfloat16 and float16 are converted.

    Example:
        >>> [exact(torch.zeros(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def jitter(coords: Tensor, cell: Sequence[float], generator: torch.Generator) -> Tensor:
    """Move every coordinate uniformly within its cell (paper section 4, coordinate noise).

    Reference: the released code scales both axes by the first one's cell; here each axis has its own.

    Args:
        coords: ``(..., D)`` cell centres.
        cell: Edge lengths of a cell, one per axis, as `Domain.cell` returns them.
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


def _spans(shape: Sequence[int], box: Box | None) -> list[tuple[int, int]]:
    """Return start and stop along each axis; all of it if there is no box."""
    if box is None:
        return [(0, extent) for extent in shape]
    if len(box) != len(shape):
        raise ValueError(f"box is {tuple(box)}; a signal of shape {tuple(shape)} has {len(shape)} axes.")
    return [(start, stop) for start, stop in box]


def _subclasses(parent: type[Domain]) -> Iterator[type[Domain]]:
    """Yield all classes derived from one."""
    for child in parent.__subclasses__():
        yield child
        yield from _subclasses(child)


def _path(domain: type[Domain]) -> str:
    """Return the dotted name of a class."""
    return f"{domain.__module__}.{domain.__qualname__}"


def _plain(value: Any) -> Any:
    """Return a field with lists in the place of tuples."""
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _flat(value: Any) -> Iterator[Any]:
    """Yield what nested tuples hold."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _close(first: Any, second: Any) -> bool:
    """Return whether two fields are equal, numbers up to rounding."""
    if isinstance(first, (int, float)) and isinstance(second, (int, float)):
        return math.isclose(first, second)
    return bool(first == second)
