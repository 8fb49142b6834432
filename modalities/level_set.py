"""Level sets of functions in a cube as closed triangle meshes: marching cubes in those bricks that a surface passes through.

A dense grid of 512 points along each side takes 134 million evaluations, and a surface passes through about one percent of its
cells. Here, one value at the centre of every brick, of 4 to 8 grid points along each side, decides where the function is
evaluated, and surfaces are followed from there through all bricks that they enter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.domain import Volume
from modalities.triangle_mesh import TriangleMesh

_SMALLEST = (
    1e-5  # magnitude of a value, relative to the largest: vertices stay off grid points, also when rounded to float32
)
_SLAB = 1 << 23  # values from which triangles are extracted at a time
_PLATEAU = 0.8  # fraction of the median magnitude of a value, above which values are those of a plateau
_FACES = [(axis, side) for axis in range(3) for side in (0, 1)]

Values = NDArray[np.float32]
Index = tuple[int, int, int]


class NoSurfaceError(ValueError):
    """The function does not reach the level in the cube, or is not finite there."""


@dataclass(frozen=True)
class Lattice:
    """The grid of a level set, and where it is evaluated.

    Args:
        bound: The cube extends from ``-bound`` to ``bound`` along every axis.
        resolution: Number of cells along each side of the cube, at least 2; grid points are their centres, as those of
            `datamodules.domain.Volume.coords`.
        level: Value of the function on the surface; lower values are inside.
        brick: Number of grid points along each side of a brick, at least 2; if 0, between 4 and 8 for about 32 bricks along
            each side of the cube.
        margin: Bricks are evaluated where the value at their centre differs from the level by at most ``margin * slope`` times
            half their diagonal. ``slope`` is the largest between the centres of neighbouring bricks, and at least 1. With a
            margin of 1, no part of the surface of an exact distance is missed. In general, none is missed if values differ by
            at most ``margin * slope`` times the distance of their points; else, separate parts can be missed that contain no
            centre of a brick and enter no evaluated brick. Infinity evaluates all bricks. Distances that are truncated differ
            from the level by about the same everywhere else: bricks where they differ by more than 0.8 of the median are not
            evaluated, unless they are nearer to the level than half their diagonal.

    Raises:
        ValueError: If a number is out of range.
    """

    bound: float = 1.0
    resolution: int = 256
    level: float = 0.0
    brick: int = 0
    margin: float = 2.0

    def __post_init__(self) -> None:
        """Choose the size of bricks, and raise a ``ValueError`` if a number is out of range."""
        if self.brick == 0:
            object.__setattr__(self, "brick", min(max(self.resolution // 32, 4), 8))
        if self.resolution < 2 or self.brick < 2:
            raise ValueError(f"resolution is {self.resolution}, brick {self.brick}: they must be at least 2.")
        if not (0 < self.bound < math.inf and math.isfinite(self.level) and self.margin > 0):
            raise ValueError(
                f"bound is {self.bound}, level {self.level}, margin {self.margin}: bound must be positive and finite, level "
                "finite, margin positive."
            )

    @property
    def step(self) -> float:
        """Distance between neighbouring grid points."""
        return 2 * self.bound / self.resolution

    @property
    def bricks(self) -> int:
        """Number of bricks along each side of the cube."""
        return -(-self.resolution // self.brick)

    @cached_property
    def axis(self) -> Tensor:
        """Coordinates of the grid points along an axis, ``(resolution,)``."""
        line = ((0, self.resolution), (0, 1), (0, 1))
        return Volume(self.bound).coords((self.resolution,) * 3, line)[:, 0]

    def span(self, brick: int) -> tuple[int, int]:
        """Return the first grid point of a brick along an axis, and the one behind its last."""
        return brick * self.brick, min((brick + 1) * self.brick, self.resolution)

    def coords(self, brick: Index) -> Tensor:
        """Return the coordinates ``(points, 3)`` of the grid points of a brick."""
        return torch.cartesian_prod(*(self.axis[slice(*self.span(place))] for place in brick))

    def centres(self) -> tuple[Tensor, Values]:
        """Return a point ``(bricks ** 3, 3)`` in the middle of every brick, off the grid, and the radii of the bricks.

        The radius ``(bricks, bricks, bricks)`` is the largest distance from that point to the cells of the brick, which extend
        to the first grid points of its neighbours.
        """
        spans = [self.span(brick) for brick in range(self.bricks)]
        middles = np.array([first + (stop - first) // 2 - 0.5 for first, stop in spans])
        ends = np.array([min(stop, self.resolution - 1) for _, stop in spans])
        halves = np.maximum(middles - [first for first, _ in spans], ends - middles) * self.step
        radii = np.sqrt(sum(np.square(halves).reshape(shape) for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1))))
        line = torch.from_numpy((middles + 0.5) * self.step - self.bound).float()
        return torch.cartesian_prod(line, line, line), radii.astype(np.float32)


def level_set(
    evaluate: Callable[[Tensor], Tensor],
    bound: float = 1.0,
    resolution: int = 256,
    level: float = 0.0,
    *,
    brick: int = 0,
    margin: float = 2.0,
    chunk: int = 1 << 16,
) -> TriangleMesh:
    """Return the surface on which a function has a level, as a closed mesh whose faces point to higher values.

    The mesh is that of marching cubes on the complete grid (Lewiner et al. 2003). Outside of the cube counts as outside of the
    object, so that the mesh is closed at its sides. Nothing smaller than the distance between two grid points,
    ``2 * bound / resolution``, is resolved.

    Args:
        evaluate: Function from coordinates ``(N, 3)`` to values ``(N,)``, lower inside, such as signed distances.
        bound: As in `Lattice`, as are ``resolution``, ``level``, ``brick`` and ``margin``.
        resolution: Number of cells along each side of the cube.
        level: Value on the surface.
        brick: Number of grid points along each side of a brick.
        margin: Tolerance of the search for bricks with a surface, at least 1 for exact distances and more for learned ones.
        chunk: Maximum number of coordinates that ``evaluate`` gets at a time, except for a single brick.

    Raises:
        NoSurfaceError: If the function does not reach the level, or is not finite.
        ValueError: If a number is out of range.

    Example:
        >>> mesh = level_set(lambda coords: coords.norm(dim=-1) - 0.5, resolution=32)
        >>> bool((abs(np.linalg.norm(mesh.vertices, axis=1) - 0.5) < 1e-3).all()), mesh.is_watertight
        (True, True)
    """
    lattice = Lattice(bound, resolution, level, brick, margin)
    [result] = level_sets(lambda coords: evaluate(coords[0]).unsqueeze(0), 1, lattice, chunk)
    if isinstance(result, NoSurfaceError):
        raise result
    return result


def level_sets(
    evaluate: Callable[[Tensor], Tensor], number: int, lattice: Lattice, chunk: int = 1 << 16
) -> list[TriangleMesh | NoSurfaceError]:
    """Return the level sets of several functions that are evaluated together; see `level_set`.

    Args:
        evaluate: From coordinates ``(number, N, 3)`` to values ``(number, N)``.
        number: Number of functions.
        lattice: Grid of all functions.
        chunk: Maximum ``N``, except for a single brick.

    Returns:
        The mesh of every function, or the error that says why it has none.
    """
    tracings = [_trace(lattice, chunk) for _ in range(number)]
    requests = {index: next(tracing) for index, tracing in enumerate(tracings)}
    results: dict[int, TriangleMesh | NoSurfaceError] = {}
    while requests:
        coords = torch.zeros(number, max(map(len, requests.values())), 3)
        for index, points in requests.items():
            coords[index, : len(points)] = points
        values = evaluate(coords).detach().float().cpu()
        for index, points in list(requests.items()):
            try:
                requests[index] = tracings[index].send(values[index, : len(points)].numpy())
            except StopIteration as stop:
                results[index] = stop.value
            except NoSurfaceError as error:
                results[index] = error
            if index in results:
                del requests[index]
    return [results[index] for index in range(number)]


def _trace(lattice: Lattice, chunk: int) -> Generator[Tensor, Values, TriangleMesh]:
    """Yield coordinates ``(N, 3)``, take their values ``(N,)``, and return the level set."""
    points, radii = lattice.centres()
    parts = []
    for part in points.split(max(1, chunk)):
        parts.append(_finite((yield part)))  # noqa: PERF401 - a comprehension cannot yield
    bricks = _Bricks(lattice, np.concatenate(parts).reshape(radii.shape), radii)
    pending = bricks.initial()
    while pending:
        activated: set[Index] = set()
        size = max(1, chunk // lattice.brick**3)
        for group in (pending[start : start + size] for start in range(0, len(pending), size)):
            grids = [lattice.coords(brick) for brick in group]
            values = _finite((yield torch.cat(grids)))
            starts = np.cumsum([len(grid) for grid in grids])[:-1]
            for brick, part in zip(group, np.split(values, starts), strict=True):
                bricks.add(brick, part)
                activated.update(bricks.entered(brick))
        pending = sorted(activated - bricks.values.keys())
    return bricks.mesh()


def _finite(values: Values) -> Values:
    """Return values, or raise a `NoSurfaceError` if they are not finite."""
    if not (finite := np.isfinite(values)).all():
        raise NoSurfaceError(
            f"The field is not finite at {np.count_nonzero(~finite):,} of {values.size:,} points: it has no surface. Lower the "
            "learning rate, or refine with fewer steps."
        )
    return values


class _Bricks:
    """The evaluated bricks of a lattice.

    A brick that was not evaluated counts as inside or outside as a whole, like its centre. At the end, every evaluated brick
    agrees with its other neighbours along their common face, so that no face of the mesh lies in a brick without values.

    Args:
        lattice: The grid.
        centres: Value at the centre of every brick.
        radii: Radius of every brick.
    """

    def __init__(self, lattice: Lattice, centres: Values, radii: Values) -> None:
        self.lattice = lattice
        self.centres = centres - np.float32(lattice.level)
        self.radii = radii
        self.inside = self.centres < 0
        self.values: dict[Index, Values] = {}

    def initial(self) -> list[Index]:
        """Return the bricks near the surface, and those where centres of neighbours, or the outside of the cube, differ."""
        differences = [np.abs(np.diff(self.centres, axis=axis)).max(initial=0) for axis in range(3)]
        slope = max(1.0, float(max(differences)) / (self.lattice.brick * self.lattice.step))
        magnitudes = np.abs(self.centres)
        if math.isfinite(self.lattice.margin):
            far = np.maximum(_PLATEAU * np.median(magnitudes), self.radii)
            active = magnitudes <= np.minimum(self.lattice.margin * slope * self.radii, far)
        else:
            active = np.ones_like(self.inside)
        around = np.pad(self.inside, 1)
        inner = (slice(1, -1),) * 3
        for axis, side in _FACES:
            active |= np.roll(around, 1 - 2 * side, axis)[inner] != self.inside
        return [(int(x), int(y), int(z)) for x, y, z in np.argwhere(active)]

    def add(self, brick: Index, values: Values) -> None:
        """Add the values of the grid points of a brick."""
        sizes = [stop - first for first, stop in map(self.lattice.span, brick)]
        self.values[brick] = (values - np.float32(self.lattice.level)).reshape(sizes)

    def entered(self, brick: Index) -> Iterator[Index]:
        """Yield the neighbours without values that a surface enters from a brick."""
        inside = self.values[brick] < 0
        for axis, side in _FACES:
            place = brick[axis] + 2 * side - 1
            neighbour = (*brick[:axis], place, *brick[axis + 1 :])
            if 0 <= place < self.lattice.bricks and neighbour not in self.values:
                layer = inside.take(-side, axis)
                if (layer != self.inside[neighbour]).any():
                    yield neighbour  # type: ignore[misc]

    def mesh(self) -> TriangleMesh:
        """Return the triangles of all bricks with common vertices, extracted slab by slab along the first axis.

        Raises:
            NoSurfaceError: If there is no surface.
        """
        from skimage.measure import marching_cubes  # imported here because it is slow, and most commands need no mesh

        places, corners, count = [], [], 0
        least = np.float32(_SMALLEST * max((float(np.abs(part).max()) for part in self.values.values()), default=0.0))
        for first, stop in self._slabs():
            slab = self._slab(first, stop)
            inside = slab < 0
            if not inside.any() or inside.all():
                continue
            np.copyto(slab, np.minimum(slab, -least), where=inside)
            np.copyto(slab, np.maximum(slab, least), where=~inside)
            vertices, faces, _, _ = marching_cubes(slab, 0.0, gradient_direction="descent")  # type: ignore[no-untyped-call]
            places.append(vertices.astype(np.float64) + np.array((first - 1, -1, -1)))
            corners.append(faces.astype(np.int64) + count)
            count += len(vertices)
        if not places:
            raise self._no_surface()
        return self._welded(np.concatenate(places), np.concatenate(corners))

    def _slabs(self) -> Iterator[tuple[int, int]]:
        """Yield the first and last layer of every slab, counted from the layer before the grid; neighbours share one."""
        padded = self.lattice.resolution + 2
        layers = max(1, _SLAB // padded**2)
        for first in range(0, padded - 1, layers):
            yield first, min(first + layers, padded - 1)

    def _slab(self, first: int, stop: int) -> Values:
        """Return the values of the grid and one layer around it, for layers ``first`` to ``stop`` along the first axis.

        Bricks without values count as inside or outside as a whole. Around the cube, the magnitude of the last value is
        repeated with the sign of the outside, which puts vertices on the side.
        """
        size, brick = self.lattice.resolution, self.lattice.brick
        begin, end = max(first - 1, 0), min(stop, size)  # of the grid
        rows = range(begin // brick, -(-end // brick))
        signs = np.where(self.inside[rows.start : rows.stop], -self.lattice.step, self.lattice.step).astype(np.float32)
        for axis in range(3):
            signs = signs.repeat(brick, axis)
        grid = signs[begin - rows.start * brick : end - rows.start * brick, :size, :size]
        for place in self.values.keys() & itertools.product(
            rows, range(self.lattice.bricks), range(self.lattice.bricks)
        ):
            spans = [self.lattice.span(index) for index in place]
            low, high = max(spans[0][0], begin), min(spans[0][1], end)
            part = self.values[place][low - spans[0][0] : high - spans[0][0]]
            grid[low - begin : high - begin, slice(*spans[1]), slice(*spans[2])] = part
        before, after = int(first == 0), int(stop == size + 1)
        padded = np.pad(grid, ((before, after), (1, 1), (1, 1)), mode="edge")
        for axis in range(3):
            for side in (0, -1):
                if axis > 0 or (before if side == 0 else after):
                    layer: tuple[slice | int, ...] = (*[slice(None)] * axis, side)
                    padded[layer] = np.abs(padded[layer])
        return padded

    def _welded(self, places: NDArray[np.float64], corners: NDArray[np.int64]) -> TriangleMesh:
        """Return a mesh in which bricks share vertices.

        Args:
            places: Vertices ``(V, 3)`` as grid indices. A vertex lies on an edge of the grid and is that edge's only one, or
                inside a cell and is that cell's only one.
            corners: Faces ``(F, 3)``.
        """
        whole = np.floor(places)
        keys = (2 * (whole.astype(np.int64) + 1) + (places != whole)) @ (
            (2 * self.lattice.resolution + 6) ** np.arange(3, dtype=np.int64)
        )
        _, firsts, numbers = np.unique(keys, return_index=True, return_inverse=True)
        faces = numbers[corners]
        faces = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
        vertices = (places[firsts] + 0.5) * self.lattice.step - self.lattice.bound
        return TriangleMesh(vertices.astype(np.float32), faces.astype(np.int32))

    def _no_surface(self) -> NoSurfaceError:
        """Return the error of a function that does not reach the level."""
        lows, highs = (
            [float(reduce(grid)) for grid in (self.centres, *self.values.values())] for reduce in (np.min, np.max)
        )
        low, high = min(lows) + self.lattice.level, max(highs) + self.lattice.level
        bound = self.lattice.bound
        return NoSurfaceError(
            f"There is no surface of level {self.lattice.level:g} in the cube [-{bound:g}, {bound:g}]^3, where values are "
            f"{low:.4g} to {high:.4g}: choose a level between them, observe more points, or train longer."
        )
