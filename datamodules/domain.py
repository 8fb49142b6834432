"""Domains, which create all coordinates, and random noise and subsets of coordinates. Depends on torch only."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

Cameras = tuple[Tensor, Tensor]


class Domain(ABC):
    """The domain of signals of one kind, which creates their coordinates.

    A subclass is a frozen dataclass of plain numbers, so that equal domains compare equal, and files can store a domain by its
    class and fields (`config`, `from_config`).

    Attributes:
        scattered: Whether signals may be points anywhere in the domain, rather than samples of a grid.
    """

    scattered: ClassVar[bool] = False

    @property
    @abstractmethod
    def coord_dim(self) -> int:
        """``D``, the number of coordinate dimensions."""

    @abstractmethod
    def coords(
        self,
        shape: Sequence[int],
        box: Sequence[tuple[int, int]] | None = None,
        cameras: Cameras | None = None,
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the coordinates of a regularly sampled signal.

        Args:
            shape: Number of samples along each axis, in array order (rows before columns).
            box: Start and stop of the samples to return along each axis; all if None. Coordinates do not depend on the box, so
                that a large signal can be rendered in bands.
            cameras: Poses and intrinsics of views; other domains ignore them.
            device: Device of the coordinates.

        Returns:
            ``(N, D)`` float32, last axis fastest.

        Raises:
            ValueError: If the shape is not compatible with the domain.
        """

    def at(self, places: Sequence[Tensor], shape: Sequence[int], steps: Sequence[float] | None = None) -> Tensor:
        """Return the coordinates of a grid of arbitrary positions.

        Args:
            places: For each axis, ``(n,)`` positions in float64, in samples of the signal: the centre of sample ``i`` is at
                ``i + 0.5``.
            shape: Number of samples of the signal along each axis.
            steps: Distance between neighbouring positions along each axis, in samples of the signal; 1 if None.

        Returns:
            ``(N, D)`` float32, the Cartesian product of the positions, last axis fastest.

        Raises:
            ValueError: If the domain has no coordinates between samples, or the number of axes is wrong.
        """
        raise ValueError(f"{type(self).__name__} has no coordinates between samples.")

    def cell(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Return the size of a cell along each coordinate dimension, for `jitter`; 0 for dimensions without noise.

        Args:
            shape: Number of samples along each axis of the signal.

        Returns:
            ``D`` edge lengths.
        """
        return (0.0,) * self.coord_dim

    @abstractmethod
    def describe(self) -> str:
        """Describe the domain for error messages."""

    def agrees(self, other: Domain) -> bool:
        """Return whether a model trained on this domain can be used on another: equality up to rounding by default.

        Example:
            >>> Grid.unit(2).agrees(Grid.unit(1)), Grid.unit(1).agrees(Grid(((-1.0, 1.0 + 1e-12),)))
            (False, True)
        """
        first, second = (list(_flat(dataclasses.astuple(domain))) for domain in (self, other))  # type: ignore[call-overload]
        return type(self) is type(other) and len(first) == len(second) and all(map(_close, first, second))

    def config(self) -> dict[str, Any]:
        """Return the domain as ``class_path`` and ``init_args``, JSON-compatible.

        Example:
            >>> Volume(1.5).config()
            {'class_path': 'datamodules.domain.Volume', 'init_args': {'bound': 1.5}}
        """
        fields = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"class_path": _path(type(self)), "init_args": fields}

    @staticmethod
    def from_config(config: Any) -> Domain:
        """Return the domain of a `config`.

        Only classes that are already imported are accepted, so that reading a file never imports code.

        Raises:
            ValueError: If the class is unknown or does not accept the arguments.

        Example:
            >>> Domain.from_config({"class_path": "datamodules.domain.Grid", "init_args": {"ranges": [[-1, 1]]}})
            Grid(ranges=((-1.0, 1.0),))
        """
        if not isinstance(config, Mapping) or not isinstance(config.get("init_args", {}), Mapping):
            raise ValueError(f"A domain must have class_path and init_args, received: {config!r}.")
        known = {_path(domain): domain for domain in _subclasses(Domain)}  # type: ignore[type-abstract]
        if (domain := known.get(str(config.get("class_path")))) is None:
            raise ValueError(
                f"The domain {config.get('class_path')!r} is unknown: use one of {', '.join(sorted(known))}, or import the "
                "module that defines it."
            )
        try:
            instance: Domain = domain(**config.get("init_args", {}))
        except TypeError as error:
            raise ValueError(f"The domain {config['class_path']} cannot be created: {error}") from error
        return instance


@dataclass(frozen=True)
class Grid(Domain):
    """An axis-aligned box, divided into equal cells; coordinates are the centres of the cells.

    Args:
        ranges: Lower and upper bound of every axis.

    Raises:
        ValueError: If a range is not two finite numbers in ascending order.

    Example:
        >>> Grid(((-1.0, 1.0), (-1.0, 1.0))).coords((2, 4))[5].tolist()
        [0.5, -0.25]
    """

    ranges: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Convert lists, as stored in files, to tuples, and check the ranges."""
        try:
            ranges = tuple((float(low), float(high)) for low, high in self.ranges)
        except (TypeError, ValueError) as error:
            raise ValueError(f"ranges is {self.ranges!r}: pass a lower and an upper bound for every axis.") from error
        if not ranges or not all(math.isfinite(high - low) and low < high for low, high in ranges):
            raise ValueError(f"ranges is {ranges}: bounds must be finite and in ascending order.")
        object.__setattr__(self, "ranges", ranges)

    @classmethod
    def unit(cls, axes: int) -> Grid:
        """Return the domain ``[-1, 1]`` along each axis."""
        return cls(((-1.0, 1.0),) * axes)

    @property
    def coord_dim(self) -> int:
        """The number of axes."""
        return len(self.ranges)

    def coords(
        self,
        shape: Sequence[int],
        box: Sequence[tuple[int, int]] | None = None,
        cameras: Cameras | None = None,
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the centres of ``shape`` equal cells; see `Domain.coords`."""
        places = [
            torch.arange(start, stop, dtype=torch.float64, device=device) + 0.5 for start, stop in _spans(shape, box)
        ]
        return self.at(places, shape)

    def at(self, places: Sequence[Tensor], shape: Sequence[int], steps: Sequence[float] | None = None) -> Tensor:
        """Return the coordinates of a grid of positions; see `Domain.at`.

        Example:
            >>> Grid.unit(1).at([torch.tensor([0.0, 0.5, 4.0])], (4,)).flatten().tolist()
            [-1.0, -0.75, 1.0]
        """
        if not len(places) == len(shape) == len(self.ranges):
            raise ValueError(f"shape is {tuple(shape)}, but the domain has {len(self.ranges)} axes: {self.ranges}.")
        axes = [
            low + (high - low) * place / n for (low, high), place, n in zip(self.ranges, places, shape, strict=True)
        ]
        return torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).reshape(-1, len(axes)).float()

    def cell(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Return the edge lengths of one cell of `coords`.

        Example:
            >>> Grid.unit(2).cell((2, 4))
            (1.0, 0.5)
        """
        return tuple((high - low) / n for (low, high), n in zip(self.ranges, shape, strict=True))

    def describe(self) -> str:
        """Describe the ranges of the axes, once if all are the same."""
        ranges = [f"from {low:g} to {high:g}" for low, high in self.ranges]
        return f"coordinates {', '.join(ranges[:1] if len(set(ranges)) == 1 else ranges)}"


@dataclass(frozen=True)
class CellGrid(Grid):
    """A grid whose coordinates are positions and cell sizes (Chen et al. 2021, LIIF, section 3).

    With the size as an input, a model can render the mean over a cell at any resolution.

    Args:
        ranges: Lower and upper bound of every axis.

    Example:
        >>> CellGrid.unit(2).coords((2, 4))[5].tolist()
        [0.5, -0.25, 1.0, 0.5]
    """

    @property
    def coord_dim(self) -> int:
        """Two per axis: the position and the edge length of the cell."""
        return 2 * len(self.ranges)

    def at(self, places: Sequence[Tensor], shape: Sequence[int], steps: Sequence[float] | None = None) -> Tensor:
        """Return positions, and the distance between neighbours as the cell sizes; see `Domain.at`."""
        positions = super().at(places, shape)
        factors = [1.0] * len(shape) if steps is None else [float(step) for step in steps]
        sizes = [edge * factor for edge, factor in zip(super().cell(shape), factors, strict=True)]
        return torch.cat((positions, positions.new_tensor(sizes).expand_as(positions)), dim=-1)

    def cell(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Return the edge lengths of one cell, and zeros for the cell sizes, which get no noise."""
        return super().cell(shape) + (0.0,) * len(self.ranges)

    def describe(self) -> str:
        """Describe the ranges of the axes."""
        return f"{super().describe()}, with the size of cells"


@dataclass(frozen=True)
class Rays(Domain):
    """Rays of posed views, with origin and direction in world units.

    Args:
        near: Depth at which rendering starts, in world units from the camera plane; None if unknown.
        far: Depth at which rendering ends; None if unknown.
    """

    near: float | None = None
    far: float | None = None

    @property
    def coord_dim(self) -> int:
        """6, for origin and direction."""
        return 6

    def coords(
        self,
        shape: Sequence[int],
        box: Sequence[tuple[int, int]] | None = None,
        cameras: Cameras | None = None,
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the rays through the centres of the pixels of views (paper section 4.3, novel view synthesis).

        Reference: as in the released code, directions are not normalised: they have length one along the optical axis, so
        that a depth is a distance from the camera plane, not from the camera.

        Args:
            shape: ``(V, H, W)``, or ``(H, W)`` for one view.
            box: Start and stop along each of these axes; all if None.
            cameras: Poses ``(..., V, 3, 4)`` and intrinsics ``(..., V, 4)`` in pixels, ``fx, fy, cx, cy`` as in
                `datamodules.cameras`; without ``V`` if ``shape`` has none.
            device: Device of the rays; that of the cameras if None.

        Returns:
            ``(..., V * H * W, 6)``, last axis of ``shape`` fastest, in the data type of the cameras.

        Raises:
            ValueError: If cameras are missing, lack a principal point, or their number is not the number of views.

        Example:
            >>> cameras = (torch.eye(4)[:3], torch.tensor([1.0, 1.0, 1.0, 0.5]))
            >>> Rays().coords((1, 2), cameras=cameras)[0].tolist()
            [0.0, 0.0, 0.0, -0.5, 0.0, -1.0]
        """
        if cameras is None or not 2 <= len(shape) <= 3:
            raise ValueError(
                f"Rays require cameras and a shape (V, H, W) or (H, W): shape is {tuple(shape)}, cameras are "
                f"{'missing' if cameras is None else 'present'}."
            )
        *views, rows, columns = _spans(shape, box)
        poses, intrinsics = (tensor.to(device) for tensor in cameras)
        if intrinsics.shape[-1] != 4:
            raise ValueError(
                f"The intrinsics have {intrinsics.shape[-1]} numbers per view: pass fx, fy, cx, cy, for example from "
                "centred_intrinsics(focals, shape)."
            )
        if views:
            if poses.shape[-3] != shape[0]:
                raise ValueError(f"shape is {tuple(shape)}, but there are cameras for {poses.shape[-3]} views.")
            poses, intrinsics = poses[..., slice(*views[0]), :, :], intrinsics[..., slice(*views[0]), :]
        row, column = torch.meshgrid(
            torch.arange(*rows, device=poses.device) + 0.5,
            torch.arange(*columns, device=poses.device) + 0.5,
            indexing="ij",
        )
        focal_x, focal_y, centre_x, centre_y = intrinsics.split(1, dim=-1)
        right = (column.flatten() - centre_x) / focal_x  # (..., H W)
        up = (centre_y - row.flatten()) / focal_y
        in_camera = torch.stack((right, up, -torch.ones_like(up)), dim=-1)  # (..., H W, 3)
        directions = in_camera @ poses[..., :3].mT
        rays = torch.cat((poses[..., None, :, 3].expand_as(directions), directions), dim=-1)
        return rays.flatten(-3, -2) if views else rays

    def agrees(self, other: Domain) -> bool:
        """Return whether the other domain is also `Rays`; renderers that use the depths compare them."""
        return isinstance(other, Rays)

    def describe(self) -> str:
        """Describe the rays with their depths."""
        return "rays" if self.near is None or self.far is None else f"rays at depths from {self.near:g} to {self.far:g}"


@dataclass(frozen=True)
class Volume(Domain):
    """Points in a cube around the origin, such as samples of surfaces and along rays.

    Args:
        bound: The cube extends from ``-bound`` to ``bound`` along every axis.

    Raises:
        ValueError: If ``bound`` is not positive and finite.

    Example:
        >>> Volume(2.0).coords((2, 2, 2))[1].tolist()
        [-1.0, -1.0, 1.0]
    """

    scattered: ClassVar[bool] = True
    bound: float = 1.0

    def __post_init__(self) -> None:
        """Check the bound."""
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound is {self.bound}: it must be positive and finite.")

    @property
    def coord_dim(self) -> int:
        """3, for x, y and z."""
        return 3

    def coords(
        self,
        shape: Sequence[int],
        box: Sequence[tuple[int, int]] | None = None,
        cameras: Cameras | None = None,
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the centres of ``shape`` equal cells, for marching cubes; see `Domain.coords`."""
        return self._grid.coords(shape, box, device=device)

    def at(self, places: Sequence[Tensor], shape: Sequence[int], steps: Sequence[float] | None = None) -> Tensor:
        """Return the coordinates of a grid of positions; see `Domain.at`."""
        return self._grid.at(places, shape)

    def cell(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Return the edge lengths of one cell of `coords`."""
        return self._grid.cell(shape)

    def describe(self) -> str:
        """Describe the cube."""
        return f"points in a cube from {-self.bound:g} to {self.bound:g}"

    @property
    def _grid(self) -> Grid:
        """The cube as a grid."""
        return Grid(((-self.bound, self.bound),) * 3)


def exact(numbers: Tensor) -> Tensor:
    """Convert bfloat16 and float16 to float32; keep float32 and float64.

    Example:
        >>> [exact(torch.zeros(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def jitter(coords: Tensor, cell: Sequence[float], generator: torch.Generator) -> Tensor:
    """Add uniform noise within the cell of each coordinate (paper section 4, coordinate noise).

    Reference: the released code scales both axes by the cell of the first axis; here each axis uses its own.

    Args:
        coords: ``(..., D)`` cell centres.
        cell: Edge lengths of a cell, one per dimension, as returned by `Domain.cell`.
        generator: Random number generator on the device of ``coords``.

    Returns:
        Coordinates of the same shape, at most half a cell away.
    """
    noise = torch.rand(coords.shape, generator=generator, device=coords.device, dtype=coords.dtype) - 0.5
    return coords + noise * coords.new_tensor(cell)


def subset(total: int, size: float | int, generator: torch.Generator) -> Tensor:
    """Return a random subset of ``range(total)``.

    Args:
        total: Number of elements.
        size: A ratio in (0, 1] if a float, a count of at least 1 if an integer; counts above ``total`` select all elements.
        generator: Random number generator, whose device is that of the indices.

    Returns:
        Distinct indices in ascending order, at least one.

    Example:
        >>> subset(4, 1.0, torch.Generator()).tolist()
        [0, 1, 2, 3]
    """
    count = round(total * size) if isinstance(size, float) else size
    count = max(1, min(total, count))
    order = torch.randperm(total, generator=generator, device=generator.device)
    return order[:count].sort().values


def _spans(shape: Sequence[int], box: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """Return start and stop along each axis; those of the complete signal if there is no box."""
    if box is None:
        return [(0, extent) for extent in shape]
    if len(box) != len(shape):
        raise ValueError(f"box is {tuple(box)}, but a signal of shape {tuple(shape)} has {len(shape)} axes.")
    return [(start, stop) for start, stop in box]


def _subclasses(parent: type[Domain]) -> Iterator[type[Domain]]:
    """Yield all subclasses recursively."""
    for child in parent.__subclasses__():
        yield child
        yield from _subclasses(child)


def _path(domain: type[Domain]) -> str:
    """Return the class path of a domain."""
    return f"{domain.__module__}.{domain.__qualname__}"


def _plain(value: Any) -> Any:
    """Convert nested tuples to lists."""
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _flat(value: Any) -> Iterator[Any]:
    """Yield the elements of nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _close(first: Any, second: Any) -> bool:
    """Return whether two values are equal, numbers up to rounding."""
    if isinstance(first, (int, float)) and isinstance(second, (int, float)):
        return math.isclose(first, second)
    return bool(first == second)
