"""Routes from coordinates to the patches that cover them, with blending weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_MAX_PADDING = 2  # a patch with more coordinates than this multiple of the mean is split into several groups
_ROUNDING = 2e-5  # of local coordinates of float32, at 2 ** 7 patches along an axis


class Routes(NamedTuple):
    """Coordinates and the patches that cover them; near a border between patches, a coordinate has several routes.

    Attributes:
        coord: ``(M,)``, index of the coordinate of a route.
        patch: ``(M,)``, index of its patch, last axis of the grid fastest.
        local: ``(M, D)``, position relative to the patch, which extends from -1 to 1 along each axis.
        weight: ``(M,)``, blending weight; the weights of a coordinate sum to 1.
    """

    coord: Tensor
    patch: Tensor
    local: Tensor
    weight: Tensor


class Groups(NamedTuple):
    """Routes in groups of equal size, each of one patch, for batched products.

    Attributes:
        patch: ``(G,)``, patch of every group.
        local: ``(G, n, D)``, positions relative to the patch; zero where a group is padded.
        place: ``(M,)``, index of every route in the flattened groups.
    """

    patch: Tensor
    local: Tensor
    place: Tensor


def fixed_shapes() -> bool:
    """Return whether a program is being recorded, in which shapes must not depend on values."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_compiling() or tracing


def route(coords: Tensor, grid: Sequence[int], patches: Sequence[float], overlap: float) -> Routes:
    """Return the routes from coordinates to patches.

    Next to a border, the weights of both patches change smoothly over ``overlap`` on either side, up to 1/2, where every
    coordinate is covered by two patches along each axis.

    Args:
        coords: ``(N, D)`` in [-1, 1]; coordinates beyond are assigned to the nearest patch.
        grid: Number of patches along each axis.
        patches: Extent of the signal along each axis, in patches; less than ``grid`` if the last patch is incomplete.
        overlap: Width of the blended zone on each side of a border, as a fraction of a patch, in [0, 0.5].
    """
    counts = torch.tensor(grid, device=coords.device)
    position = (coords + 1) / 2 * coords.new_tensor(patches)
    index = torch.minimum(position.floor().long().clamp(min=0), counts - 1)
    inside = position - index  # in [0, 1] within the signal
    side = torch.where(inside < overlap, -1, torch.where(inside > 1 - overlap, 1, 0))
    side = torch.where((index + side >= 0) & (index + side < counts), side, 0)
    weight = torch.ones_like(inside)
    if overlap:
        distance = torch.minimum(inside, 1 - inside).clamp(0, overlap)
        weight = torch.where(side == 0, 1.0, _smooth(0.5 + distance / (2 * overlap)))
    parts = []
    for shifted in itertools.product((False, True), repeat=len(grid) if overlap else 0):
        moves = torch.tensor(shifted or (False,) * len(grid), device=coords.device)
        covered = ((side != 0) | ~moves).all(-1)
        coord = torch.arange(coords.shape[0], device=coords.device)
        if any(shifted) and not fixed_shapes():
            coord = covered.nonzero().squeeze(-1)
        step = side[coord] * moves
        share = torch.where(moves, 1 - weight[coord], weight[coord]).prod(-1)
        parts.append(
            Routes(coord, _flat(index[coord] + step, grid), 2 * (inside[coord] - step) - 1, share * covered[coord])
        )
    return parts[0] if len(parts) == 1 else Routes(*map(torch.cat, zip(*parts, strict=True)))


def group(patch: Tensor, local: Tensor) -> Groups:
    """Sort routes by patch into groups of equal size.

    On a grid of samples, all patches have as many coordinates, and this is a permutation. Elsewhere groups are padded, and
    crowded patches are split, so that the padding is bounded.

    Args:
        patch: ``(M,)``, patch of every route.
        local: ``(M, D)``, position relative to the patch.
    """
    ordered, order = patch.sort(stable=True)
    _, counts = ordered.unique_consecutive(return_counts=True)
    size = min(int(counts.max()), round(_MAX_PADDING * len(patch) / len(counts))) if len(patch) else 1
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts, output_size=len(patch))
    rank = torch.arange(len(patch), device=patch.device) - starts  # of a route within its patch
    is_first = rank % size == 0
    place_sorted = (is_first.cumsum(0) - 1) * size + rank % size
    place = torch.empty_like(order).scatter_(0, order, place_sorted)
    patches = ordered[is_first]
    grouped = local.new_zeros(len(patches) * size, local.shape[1]).index_copy(0, place, local)
    return Groups(patches, grouped.view(len(patches), size, local.shape[1]), place)


def alike_groups(local: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the groups whose positions are those of the middle group, up to rounding, and of all others.

    On a grid of samples, these are most patches, and layers before the modulated one need to be computed for one of them. If
    they are fewer than half, or derivatives with respect to positions are needed, all groups are among the others.

    Args:
        local: ``(G, n, D)``, positions relative to the patch.
    """
    middle = len(local) // 2
    same = ((local - local[middle : middle + 1]).abs() <= _ROUNDING).flatten(1).all(1)
    same &= (2 * same.sum() >= len(same)) & (not local.requires_grad)
    return same.nonzero().squeeze(1), (~same).nonzero().squeeze(1)


def _smooth(share: Tensor) -> Tensor:
    """Return the smoothstep of shares in [0, 1], whose sum with that of ``1 - share`` is 1."""
    return share * share * (3 - 2 * share)


def _flat(index: Tensor, grid: Sequence[int]) -> Tensor:
    """Return the flat indices of cells ``(M, D)`` of a grid."""
    flat = torch.zeros_like(index[:, 0])
    for axis, count in enumerate(grid):
        flat = flat * count + index[:, axis]
    return flat
