"""Empty space of a field, so that rendering evaluates only samples that can be visible (Mueller et al. 2022, section 5.4)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from composers.networks import Field
from datamodules.domain import exact

_PROBES = 256  # points by which a change of the field is noticed


class Occupancy:
    """Skip samples in empty space and behind opaque samples, where gradients are disabled.

    The density of each instance is evaluated at the centres of the cells of a cube around the origin. A sample counts as
    empty, with density 0, if the density is negligible at the centres of its cell and of all cells around it. Samples outside
    the cube are evaluated, unless the renderer has a ``radius``.

    The grid costs ``cells ** 3`` evaluations of the field, about half of that where the renderer has a ``radius``. It pays
    where many more samples are rendered from a field: a view of 128 x 128 pixels with 128 samples per ray has 2 million.

    Args:
        cells: Number of cells along every axis of the cube, whose edge is twice the ``radius`` of the renderer, or the distance
            from ``near`` to ``far`` without a radius. Parts thinner than a cell can be lost if no centre lies in them
            or in a cell beside them.
        empty_opacity: Largest opacity of a ray through space of negligible density, from ``near`` to ``far``, in [0, 1). With
            0, only density 0 is negligible; ``softplus`` needs more, as it is never 0.
        min_transmittance: A ray evaluates no further samples once at most this share of the light passes, in [0, 1). Colours
            and opacities change by at most this number. 0 evaluates all samples.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, cells: int = 64, empty_opacity: float = 0.01, min_transmittance: float = 1e-3) -> None:
        if cells < 1:
            raise ValueError(f"cells is {cells}; it must be at least 1.")
        if not (0 <= empty_opacity < 1 and 0 <= min_transmittance < 1):
            raise ValueError(
                f"empty_opacity is {empty_opacity} and min_transmittance {min_transmittance}; both must be at least 0 and "
                "less than 1."
            )
        self.cells = cells
        self.empty_opacity = empty_opacity
        self.min_transmittance = min_transmittance

    def max_density(self, length: float) -> float:
        """Return the largest negligible density on rays of a length, in depth units."""
        return -math.log1p(-self.empty_opacity) / length

    @property
    def max_thickness(self) -> float:
        """Return the optical thickness before a sample from which it is not evaluated; infinite for none."""
        return -math.log(self.min_transmittance) if self.min_transmittance else math.inf


class OccupancyGrid:
    """The cells of a field that are not empty, evaluated when they are first read.

    The grid belongs to a field. It is evaluated again if the field changes in place at any of some hundred points, as by a step
    of an optimizer of the network; every `update` compares these. After a change elsewhere, such as of a few voxels, bind a new
    field.

    Args:
        field: From points ``(N, 3)`` to ``(B, N, 4)``, of which the last channel is the density before ``activation``.
        activation: From the fourth channel to densities of at least 0.
        cells: Number of cells along every axis.
        radius: Half of the edge length of the cube.
        max_density: Largest density of an empty cell.
        bounded: Whether everything farther than ``radius`` from the origin is empty; otherwise nothing outside the cube is.
    """

    def __init__(
        self,
        field: Field,
        activation: Callable[[Tensor], Tensor],
        cells: int,
        radius: float,
        max_density: float,
        bounded: bool,
    ) -> None:
        self.field = field
        self.activation = activation
        self.cells = cells
        self.radius = radius
        self.max_density = max_density
        self.bounded = bounded
        self._occupied: Tensor | None = None  # (B, (cells + 2) ** 3), with a border
        self._probed: Tensor | None = None

    def update(self, like: Tensor, chunk_size: int) -> None:
        """Evaluate the cells if they are not known for the current field.

        Args:
            like: Has the device and the type of the points.
            chunk_size: Number of points evaluated at a time.
        """
        centres = self._centres(like)
        stride = max(1, len(centres) // _PROBES) | 1  # odd, so that probes differ along all axes
        probed = self.field(centres[::stride])  # before the activation, which hides changes
        if self._probed is None or self._probed.device != probed.device or not torch.equal(self._probed, probed):
            self._occupied, self._probed = self._evaluate(centres, chunk_size), probed

    def occupied(self, points: Tensor) -> Tensor:
        """Return whether points ``(N, S, 3)`` or ``(B, N, S, 3)`` are in cells that are not empty: ``(B, N, S)``.

        Raises:
            ValueError: If the cells have not been evaluated.
        """
        if self._occupied is None:
            raise ValueError("The cells have not been evaluated: call update first.")
        side = self.cells + 2
        places = points.mul(self.cells / (2 * self.radius)).add_(self.cells / 2 + 1).clamp_(0, side - 0.5).floor_()
        # exact in float32 up to 2 ** 24 cells
        index = places[..., 0].mul(side).add_(places[..., 1]).mul_(side).add_(places[..., 2]).flatten(-2).long()
        shared = index.dim() == 1
        occupied = self._occupied[:, index] if shared else self._occupied.expand(len(index), -1).gather(1, index)
        return occupied.view(-1, *points.shape[-3:-1])

    def _centres(self, like: Tensor) -> Tensor:
        """Return the centres of all cells ``(cells ** 3, 3)``."""
        axis = (torch.arange(self.cells, device=like.device, dtype=like.dtype) + 0.5) * (2 * self.radius / self.cells)
        return torch.cartesian_prod(*[axis - self.radius] * 3)

    def _evaluate(self, centres: Tensor, chunk_size: int) -> Tensor:
        """Return which cells are not empty, with a border of one cell, flattened."""
        reached = torch.arange(len(centres), device=centres.device)
        if self.bounded:  # a cell beyond this distance has no neighbour inside the sphere
            farthest = self.radius + 3 * math.sqrt(3) * self.radius / self.cells
            reached = (centres.norm(dim=-1) <= farthest).nonzero().squeeze(-1)
        dense = torch.cat(
            [
                self.activation(exact(self.field(centres[part]))[..., 3]) > self.max_density
                for part in reached.split(max(1, chunk_size))
            ],
            dim=-1,
        )
        cells = dense.new_zeros(len(dense), len(centres)).index_copy_(1, reached, dense)
        grid = cells.to(torch.float32).view(-1, 1, *[self.cells] * 3)
        dilated = functional.max_pool3d(grid, 3, stride=1, padding=1)
        return functional.pad(dilated, (1,) * 6, value=float(not self.bounded)).flatten(1) > 0


def evaluate_where(field: Field, points: Tensor, where: Tensor, outputs: Tensor | None = None) -> Tensor:
    """Evaluate a field at some of the points only.

    Instances with different numbers of points are padded with further points, whose outputs are ignored. At least one point
    is evaluated, so that all parameters of the field have a gradient.

    Args:
        field: From points ``(M, 3)`` or ``(B, M, 3)`` to ``(B, M, C)``.
        points: ``(N, S, 3)`` or ``(B, N, S, 3)``.
        where: ``(N, S)`` or ``(B, N, S)``, the points at which the field is evaluated.
        outputs: ``(B, N, S, C)``, what other points keep; zeros, and minus infinity in the last channel, if None. Not modified.

    Returns:
        ``(B, N, S, C)``, in float32 at least.
    """
    flat, mask = points.flatten(-3, -2), where.flatten(-2)
    if flat.dim() == 2:
        indices = leading_indices((mask.any(0) if mask.dim() == 2 else mask).unsqueeze(0)).squeeze(0)
        chosen = exact(field(flat[indices]))
        indices = indices.expand(len(chosen), -1)
    else:
        mask = mask.expand(flat.shape[:-1])
        indices = leading_indices(mask)
        chosen = exact(field(flat.take_along_dim(indices.unsqueeze(-1), 1)))
    if outputs is None:
        empty = chosen.new_zeros(chosen.shape[-1])
        empty[-1] = -torch.inf
        kept = empty.expand(len(chosen), flat.shape[-2], -1)
    else:
        kept = outputs.flatten(1, 2)
    expanded = indices.unsqueeze(-1).expand_as(chosen)
    needed = mask.expand(len(chosen), -1).gather(1, indices).unsqueeze(-1)
    chosen = torch.where(needed, chosen, kept.gather(1, expanded))
    return kept.scatter(1, expanded, chosen).view(-1, *points.shape[-3:-1], chosen.shape[-1])


def leading_indices(mask: Tensor) -> Tensor:
    """Return the indices of true entries of ``mask (B, K)``, then of false ones, as many as the fullest row has: ``(B, M)``.

    ``M`` is at least 1. The indices of a row are distinct.

    Example:
        >>> leading_indices(torch.tensor([[False, True, True], [True, False, False]])).tolist()
        [[1, 2], [0, 1]]
    """
    if len(mask) == 1:
        indices = mask[0].nonzero().mT
        return indices if indices.shape[1] else indices.new_zeros(1, 1)
    count = mask.sum(-1, keepdim=True)
    places = torch.where(mask, mask.cumsum(-1), count + (~mask).cumsum(-1)) - 1
    order = torch.arange(mask.shape[1], device=mask.device).expand_as(places)
    return torch.empty_like(places).scatter_(1, places, order)[:, : max(1, int(count.max()))]
