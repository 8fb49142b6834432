"""An MLP that reads the feature maps of posed views where they see a point."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from composers.networks.coordinate_mlp import Modulations
from composers.networks.encodings import Encoding
from composers.networks.interpolation import interpolate
from composers.networks.network import CoordinateNetwork, TensorSpec
from composers.networks.voxel_mlp import PointMLP, of_instances
from datamodules.cameras import project
from datamodules.domain import exact
from datamodules.spec import FromData, coord_dim, value_dim, views

_CAMERA = 16  # numbers of a camera: the pose (3, 4), then fx, fy, cx, cy in sizes of the image


class PixelAlignedMLP(CoordinateNetwork[Modulations]):
    """Read pixel-aligned features: those of the support views where they see a point (Yu et al., pixelNeRF, CVPR 2021).

    An MLP combines the features of each view with the position of the point in the axes of its camera; a second one takes the
    mean over the views, and the encoded position in the world. The maps and the cameras belong to the instance. Gradient steps
    refine the maps and leave the cameras unchanged.

    Reference: the network of pixelNeRF is residual, and it takes the view direction rather than the position in the world,
    because its scenes have no common axes; objects of a category have them.

    Args:
        coord_dim: ``D``, 3; the command line sets it from the renderer.
        value_dim: ``C``, channels of a value; set likewise.
        num_views: ``V``, support views of an instance; set likewise.
        feature_dim: ``E``, channels of the maps.
        hidden_dim: Width of the hidden layers.
        num_hidden: Hidden layers of each of both MLPs, at least 1.
        encoding: Encoding of the position in the world; the position itself if None.

    Raises:
        ValueError: If sizes are missing or out of range.
    """

    from_data: ClassVar[FromData] = {"coord_dim": coord_dim, "value_dim": value_dim, "num_views": views}
    radius = 1

    def __init__(
        self,
        coord_dim: int | None = None,
        value_dim: int | None = None,
        num_views: int | None = None,
        feature_dim: int = 24,
        hidden_dim: int = 64,
        num_hidden: int = 2,
        encoding: Encoding | None = None,
    ) -> None:
        super().__init__()
        if coord_dim != 3 or value_dim is None or num_views is None or num_views < 1:
            raise ValueError(
                f"coord_dim is {coord_dim}, value_dim {value_dim} and num_views {num_views}; PixelAlignedMLP reads points of "
                "posed views, coord_dim 3: use data of scenes with a VolumeRenderer; in Python pass all three."
            )
        if min(feature_dim, hidden_dim, num_hidden) < 1:
            raise ValueError(
                f"feature_dim is {feature_dim}, hidden_dim {hidden_dim}, num_hidden {num_hidden}: each must be at least 1."
            )
        self.coord_dim, self.value_dim, self.num_views, self.feature_dim = coord_dim, value_dim, num_views, feature_dim
        self.encoding = encoding
        encoded = coord_dim if encoding is None else encoding.width(coord_dim)
        self.per_view = PointMLP(feature_dim + coord_dim, hidden_dim, hidden_dim, num_hidden)
        self.mlp = PointMLP(hidden_dim + encoded, value_dim, hidden_dim, num_hidden)
        self.slots = {
            "maps": TensorSpec((feature_dim, -1, -1, -1), partial(torch.zeros, feature_dim, num_views, 1, 1)),
            "cameras": TensorSpec((num_views, _CAMERA), partial(torch.ones, num_views, _CAMERA), constant=True),
        }

    @property
    def floats_per_coord(self) -> int:
        """Return the floats of all layers, for every view and after their mean."""
        return self.num_views * (self.feature_dim + self.per_view.floats_per_point) + self.mlp.floats_per_point

    def forward(self, coords: Tensor, modulations: Modulations) -> Tensor:
        """Return values ``(B, N, C)`` at points ``(N, 3)`` shared by all instances, or ``(B, N, 3)``.

        Args:
            coords: Points in world units.
            modulations: ``maps (B, E, V, H, W)`` and ``cameras (B, V, 16)``, see `camera_numbers`.

        Raises:
            ValueError: If ``coords`` are not points, or of another number of instances than the modulations.
        """
        maps, cameras = modulations["maps"], _constant(modulations["cameras"])
        points = of_instances(coords, len(maps))
        with torch.autocast(maps.device.type, enabled=False):
            poses, intrinsics = exact(cameras)[..., :12].unflatten(-1, (3, 4)), exact(cameras)[..., 12:]
            places, in_camera = project(exact(points)[:, None], poses, intrinsics)  # (B, V, N, ...)
            read = interpolate(maps.transpose(1, 2).flatten(0, 1), (2 * places - 1).flatten(0, 1))
            distances = poses[..., 3].norm(dim=-1)[..., None, None]
            relative = in_camera + distances * in_camera.new_tensor((0.0, 0.0, 1.0))  # to the origin, not to the camera
            read = torch.cat((read, relative.flatten(0, 1)), dim=-1)
        of_views = self.per_view(read).unflatten(0, cameras.shape[:2])
        encoded = points if self.encoding is None else self.encoding(points)
        values: Tensor = self.mlp(torch.cat((torch.relu(of_views).mean(1), encoded), dim=-1))
        return values


def camera_numbers(poses: Tensor, intrinsics: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return cameras as numbers that do not depend on the resolution.

    Args:
        poses: ``(..., 3, 4)``.
        intrinsics: ``(..., 4)`` in pixels, ``fx, fy, cx, cy``.
        shape: Height and width of the images in pixels.

    Returns:
        ``(..., 16)``: the pose row by row, then focal lengths and principal point in widths and heights of the image.
    """
    height, width = shape
    return torch.cat((poses.flatten(-2), intrinsics / intrinsics.new_tensor((width, height, width, height))), dim=-1)


def _constant(tensor: Tensor) -> Tensor:
    """Return a tensor whose gradient is zero, so that gradient steps leave it unchanged."""
    return tensor.detach() + 0 * tensor
