"""Voxels of features from posed views: every voxel reads the views where they see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.encoders.encoder import Encoder
from composers.encoders.view_features import GROUPS, ViewFeatures, check_views, pixels, signal_of
from composers.latents import Layout
from composers.networks.interpolation import interpolate
from composers.networks.voxel_mlp import box
from datamodules.batch import Views
from datamodules.cameras import project
from datamodules.domain import exact
from datamodules.spec import FromData, open_views


class ViewVoxels(Encoder):
    """Features of posed views, projected into a voxel grid and completed by convolutions in space.

    The centre of every voxel is projected into all views. It reads their feature maps and their pixels there, and its distance
    along the optical axis; the mean and the maximum over the views do not depend on their number or order. 3D
    convolutions at three resolutions (a U-Net) then combine the features around a voxel: voxels in front of the background are
    empty, and what no view shows is predicted from the training objects. A linear shortcut adds the features of a voxel to the
    result; without it, training takes several times as long to get beyond the mean object. Views may have any number and
    size. A token is a voxel.

    Args:
        signal_shape: ``(-1, 3, -1, -1)``; set from the data module on the command line.
        grid_size: ``G``, voxels along each axis, a multiple of 4.
        half_extent: Half of the edges of the box around the origin in world units, for all axes or for each; that of the
            network. A box that fits the objects wastes no voxels.
        width: ``E``, channels of the voxels, a multiple of 4; three and six times as many at lower resolutions.
        view_width: Channels of the feature maps; see `ViewFeatures`.
        mirror_axis: Axis of the normal of a plane through the origin in which objects are symmetric: 0 for chairs and cars as
            rendered here, whose left and right are alike. A voxel then also reads the views at its mirror image
            (SymmNeRF, Li et al., ACCV 2022), which shows much of the far side of an object. None disables this.

    Raises:
        ValueError: If sizes are missing or out of range.
    """

    from_data: ClassVar[FromData] = {"signal_shape": open_views}

    def __init__(
        self,
        signal_shape: Sequence[int] | None = None,
        grid_size: int = 24,
        half_extent: float | tuple[float, float, float] = 1.4,
        width: int = 16,
        view_width: int = 24,
        mirror_axis: Literal[0, 1, 2] | None = None,
    ) -> None:
        check_views(signal_shape, type(self).__name__)
        super().__init__((-1, 3, -1, -1))
        if grid_size < 4 or grid_size % 4 or width < GROUPS or width % GROUPS:
            raise ValueError(f"grid_size is {grid_size} and width {width}; both must be positive multiples of 4.")
        self.grid_size, self.half_extent = grid_size, box(half_extent)
        self.embed_dim, self.num_tokens = width, grid_size**3
        self.views = ViewFeatures(signal_shape, view_width)
        if mirror_axis not in (None, 0, 1, 2):
            raise ValueError(f"mirror_axis is {mirror_axis}; allowed are 0, 1, 2 and null.")
        self.mirror_axis = mirror_axis
        read = (1 if mirror_axis is None else 2) * (2 * (view_width + 4) + 1) + 3
        self.enter = _layer(read, width, 1)
        self.shortcut = nn.Conv3d(read, width, 1)
        self.at_full = _layer(width, width)
        self.at_half = nn.Sequential(
            _halved(width, 3 * width), _layer(3 * width, 3 * width), _layer(3 * width, 3 * width)
        )
        self.at_quarter = nn.Sequential(
            _halved(3 * width, 6 * width), _layer(6 * width, 6 * width), _layer(6 * width, 6 * width)
        )
        self.up_half, self.after_half = nn.Conv3d(6 * width, 3 * width, 1), _layer(3 * width, 3 * width)
        self.up_full, self.after_full = nn.Conv3d(3 * width, width, 1), _layer(width, width)

    def layout(self, signal: Tensor | Views) -> Layout:
        """Return the grid ``(G, G, G)``."""
        return Layout((self.grid_size,) * 3)

    def tokens(self, signal: Tensor | Views) -> Tensor:
        """Return the voxels ``(B, G^3, E)``, the last axis of space fastest.

        Raises:
            ValueError: If the signal does not consist of posed views with three channels.
        """
        read = self._read(signal_of(signal))
        full = self.at_full(self.enter(read))
        half = self.at_half(full)
        half = self.after_half(half + _doubled(self.up_half(self.at_quarter(half))))
        voxels: Tensor = self.shortcut(read) + self.after_full(full + _doubled(self.up_full(half)))
        return voxels.flatten(2).mT

    def _read(self, views: Views) -> Tensor:
        """Return what voxels read of all views, and their positions: ``(B, K, G, G, G)``."""
        maps = [values.flatten(0, 1) for values in (self.views.maps(views), pixels(views))]
        with torch.autocast(views.images.device.type, enabled=False):
            centres = self._centres(views.images.device)
            read = [self._read_at(centres, views, maps)]
            if self.mirror_axis is not None:
                signs = torch.ones_like(centres[0])
                signs[self.mirror_axis] = -1
                read.append(self._read_at(centres * signs, views, maps))
            along = (centres / centres.new_tensor(self.half_extent)).expand(len(views.images), -1, -1)
            grid: Tensor = torch.cat((*read, along), dim=-1).mT.unflatten(-1, (self.grid_size,) * 3)
        return grid

    def _read_at(self, points: Tensor, views: Views, maps: Sequence[Tensor]) -> Tensor:
        """Return what points ``(N, 3)`` read of maps ``(B V, ...)`` of all views: mean and maximum, and the mean depth."""
        poses, shape = exact(views.poses), views.images.shape
        places, in_camera = project(points, poses, exact(views.intrinsics))  # (B, V, N, ...)
        places = (2 * places / places.new_tensor(shape[-2:]) - 1).flatten(0, 1)
        behind = (-in_camera[..., 2] - poses[..., 3].norm(dim=-1, keepdim=True)).unsqueeze(-1) / max(self.half_extent)
        read = torch.cat([interpolate(values, places) for values in maps], dim=-1).unflatten(0, shape[:2])
        return torch.cat((read.mean(1), read.amax(1), behind.mean(1)), dim=-1)

    def _centres(self, device: torch.device) -> Tensor:
        """Return the centres of all voxels ``(G^3, 3)`` in world units."""
        axis = (torch.arange(self.grid_size, device=device) + 0.5) * (2 / self.grid_size) - 1
        return torch.cartesian_prod(axis, axis, axis) * axis.new_tensor(self.half_extent)


def _layer(channels: int, width: int, kernel_size: int = 3) -> nn.Sequential:
    """Return a convolution with normalisation and ReLU."""
    convolution = nn.Conv3d(channels, width, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, width), nn.ReLU())


def _halved(channels: int, width: int) -> nn.Sequential:
    """Return a convolution of cells of 2 x 2 x 2 voxels with normalisation and ReLU."""
    return nn.Sequential(nn.Conv3d(channels, width, 2, 2), nn.GroupNorm(GROUPS, width), nn.ReLU())


def _doubled(voxels: Tensor) -> Tensor:
    """Return a grid at twice its resolution, by repeating voxels."""
    return functional.interpolate(voxels, scale_factor=2, mode="nearest")
