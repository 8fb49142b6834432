"""An MLP that reads a grid of features at a point in space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.networks.coordinate_mlp import Modulations
from composers.networks.interpolation import interpolate
from composers.networks.network import CoordinateNetwork, TensorSpec
from datamodules.domain import exact
from datamodules.spec import FromData, coord_dim, value_dim


class PointMLP(nn.Module):
    """The MLP that networks of local features share: hidden layers with ReLU, and a last layer in float32.

    Args:
        in_dim: Numbers per point.
        out_dim: Outputs.
        hidden_dim: Width of the hidden layers.
        num_hidden: Number of hidden layers, at least 1.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int, num_hidden: int) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * num_hidden]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.last = nn.Linear(hidden_dim, out_dim)
        self.floats_per_point = sum(widths) + out_dim

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(..., out_dim)`` in float32 for features ``(..., in_dim)``."""
        for layer in self.hidden:
            features = torch.relu(layer(features))
        with torch.autocast(features.device.type, enabled=False):
            return functional.linear(exact(features), exact(self.last.weight), exact(self.last.bias))


class VoxelMLP(CoordinateNetwork[Modulations]):
    """An MLP of the features of a voxel grid, interpolated at a point in space.

    The grid covers a box around the origin and belongs to the instance; the MLP is shared. It is the local network of images
    (`LocalMLP`) in three dimensions: what lies at a point is read from the eight voxels around it. The MLP sees no coordinate,
    so that it describes parts in the same way wherever they are. Beyond the centres of the outermost voxels, the field
    continues with their values.

    Args:
        coord_dim: ``D``, 3; the command line sets it from the renderer.
        value_dim: ``C``, channels of a value; set likewise.
        feature_dim: ``E``, numbers per voxel.
        hidden_dim: Width of the hidden layers.
        num_hidden: Number of hidden layers, at least 1.
        half_extent: Half of the edges of the box in world units, for all axes or for each.

    Raises:
        ValueError: If sizes are missing or out of range.
    """

    from_data: ClassVar[FromData] = {"coord_dim": coord_dim, "value_dim": value_dim}
    radius = 1

    def __init__(
        self,
        coord_dim: int | None = None,
        value_dim: int | None = None,
        feature_dim: int = 16,
        hidden_dim: int = 48,
        num_hidden: int = 2,
        half_extent: float | tuple[float, float, float] = 1.4,
    ) -> None:
        super().__init__()
        if coord_dim != 3 or value_dim is None:
            raise ValueError(
                f"coord_dim is {coord_dim} and value_dim {value_dim}; VoxelMLP reads points in space, coord_dim 3: use data of "
                "scenes with a VolumeRenderer, or of shapes; in Python pass both."
            )
        if min(feature_dim, hidden_dim, num_hidden) < 1:
            raise ValueError(
                f"feature_dim is {feature_dim}, hidden_dim {hidden_dim} and num_hidden {num_hidden}; each must be at least 1."
            )
        self.coord_dim, self.value_dim, self.feature_dim = coord_dim, value_dim, feature_dim
        self.half_extent = box(half_extent)
        self.mlp = PointMLP(feature_dim, value_dim, hidden_dim, num_hidden)
        self.slots = {"voxels": TensorSpec((feature_dim, -1, -1, -1), partial(torch.zeros, feature_dim, 1, 1, 1))}

    @property
    def floats_per_coord(self) -> int:
        """Return the floats of the voxels that a point reads, and of all layers."""
        return 4 * self.feature_dim + self.mlp.floats_per_point

    def forward(self, coords: Tensor, modulations: Modulations) -> Tensor:
        """Return values ``(B, N, C)`` at points ``(N, 3)`` shared by all instances, or ``(B, N, 3)``.

        Args:
            coords: Points in world units.
            modulations: ``voxels (B, E, X, Y, Z)``.

        Raises:
            ValueError: If ``coords`` are not points, or of another number of instances than the modulations.
        """
        voxels = modulations["voxels"]
        points = of_instances(coords, len(voxels))
        values: Tensor = self.mlp(interpolate(voxels, points / points.new_tensor(self.half_extent)))
        return values


def box(half_extent: float | Sequence[float]) -> tuple[float, float, float]:
    """Return half of the edges of a box, given for all axes or for each.

    Raises:
        ValueError: If there are other than one or three numbers, or one is not positive and finite.
    """
    edges = (half_extent,) * 3 if isinstance(half_extent, int | float) else tuple(half_extent)
    if len(edges) != 3 or not all(0 < edge < math.inf for edge in edges):
        raise ValueError(
            f"half_extent is {half_extent}; it must be a positive length in world units, or three of them."
        )
    return edges


def of_instances(coords: Tensor, count: int) -> Tensor:
    """Return points ``(count, N, 3)`` of ``count`` instances, from ``(N, 3)`` or ``(count, N, 3)``.

    Raises:
        ValueError: If the shape is another.
    """
    if coords.shape[-1] != 3 or coords.dim() not in (2, 3) or (coords.dim() == 3 and len(coords) != count):
        raise ValueError(
            f"coords have the shape {tuple(coords.shape)}; this network takes points (N, 3), or ({count}, N, 3) for as many "
            "instances as the modulations."
        )
    return coords.expand(count, -1, -1)
