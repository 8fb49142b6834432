"""Ray casting of meshes on the CPU; needs neither a GPU nor a display."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray
from torch import Tensor

from datamodules.domain import Rays
from datamodules.storage.meshes import Mesh

_LIGHT = np.array(
    (-0.5, -0.3, 0.8), dtype=np.float32
)  # direction to the light; shades all six sides of a box differently
_AMBIENT = 0.25
_WHITE = 255  # colour of pixels that the object does not cover
_MISS = -1  # face index of rays that hit nothing


class Caster:
    """Ray caster of a mesh under a fixed directional light, so that shading does not depend on the view.

    Shading is half Lambert with flat normals, 0.25 + 0.75 (1 + cos) / 2 of the colour, where cos is the cosine of the angle
    between the light and the normal of the visible side. The orientation of faces makes no difference. There are no shadows.

    Args:
        mesh: The mesh to render.

    Example:
        ``Caster(read_mesh(path)).render(orbit(8), torch.tensor([[150.0, 150.0, 64.0, 64.0]]).expand(8, 4), (128, 128))``
    """

    def __init__(self, mesh: Mesh) -> None:
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, np.ascontiguousarray(mesh.corners, dtype=np.float32))
        first, second, third = mesh.corners.swapaxes(0, 1)
        normals = np.cross(second - first, third - first)
        lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
        self._normals = normals / np.where(lengths > 0, lengths, 1)
        self._cosines = self._normals @ (_LIGHT / np.linalg.norm(_LIGHT))
        self._colours = mesh.colours

    def render(self, poses: Tensor, intrinsics: Tensor, shape: Sequence[int], samples: int = 2) -> Tensor:
        """Render RGBA images of the object.

        Alpha is the fraction of a pixel that the object covers. The colour is that of the covered part alone, and white if the
        pixel is not covered.

        Args:
            poses: ``(F, 3, 4)``.
            intrinsics: ``(F, 4)`` in pixels, ``fx, fy, cx, cy``.
            shape: Height and width in pixels.
            samples: Number of rays along each side of a pixel: 2 casts 4 rays per pixel.

        Returns:
            ``(F, 4, H, W)`` uint8.
        """
        fine = [samples * side for side in shape]
        views = zip(poses, samples * intrinsics, strict=True)
        return torch.stack([self._view(Rays().coords(fine, cameras=camera), fine, samples) for camera in views])

    def depth(self, poses: Tensor, intrinsics: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the depth of the object at the centre of every pixel, measured from the camera plane.

        Args:
            poses: ``(F, 3, 4)``.
            intrinsics: ``(F, 4)`` in pixels, ``fx, fy, cx, cy``.
            shape: Height and width in pixels.

        Returns:
            ``(F, H, W)`` float32 in world units, infinite where the object is not hit.
        """
        rays = Rays().coords((len(poses), *shape), cameras=(poses, intrinsics))
        hits = self._cast(rays.numpy())
        depth = np.where(hits["primID"] == _MISS, np.float32(math.inf), hits["tfar"])
        return torch.from_numpy(depth.reshape(len(poses), *shape))

    def _view(self, rays: Tensor, fine: Sequence[int], samples: int) -> Tensor:
        """Return the image ``(4, H, W)`` of rays ``(H W s s, 6)``."""
        colours, covered = self._shade(rays.numpy())
        blocks = torch.from_numpy(np.concatenate((colours, covered[:, None]), axis=1)).T.unflatten(1, tuple(fine))
        mean = torch.nn.functional.avg_pool2d(blocks, samples)
        colour = mean[:3] / mean[3:].clamp_min(0.5 / samples**2)  # the minimum only prevents 0 / 0
        colour = torch.where(mean[3:] > 0, colour * 255, torch.full((), float(_WHITE)))
        return torch.cat((colour, mean[3:] * 255)).round().clamp(0, 255).to(torch.uint8)

    def _shade(self, rays: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the shaded colours ``(N, 3)`` in [0, 1] at the hits of rays, zero for misses, and a 0/1 hit mask ``(N,)``."""
        hits = self._cast(rays)
        hit = hits["primID"] != _MISS
        faces, u, v = hits["primID"][hit], hits["u"][hit, None], hits["v"][hit, None]
        back = np.einsum("nc,nc->n", self._normals[faces], rays[hit, 3:]) > 0
        cosines = np.where(back, -self._cosines[faces], self._cosines[faces])
        first, second, third = self._colours[faces].swapaxes(0, 1)
        colour = (1 - u - v) * first + u * second + v * third
        colours = np.zeros((len(rays), 3), dtype=np.float32)
        colours[hit] = colour * (_AMBIENT + (1 - _AMBIENT) * (1 + cosines[:, None]) / 2)
        return colours, hit.astype(np.float32)

    def _cast(self, rays: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the first hits of rays ``(N, 6)``: faces, barycentric coordinates, distances in units of the directions."""
        origins, directions = np.ascontiguousarray(rays[:, :3]), np.ascontiguousarray(rays[:, 3:])
        hits: dict[str, NDArray[np.float32]] = self._scene.run(origins, directions, output=True)
        return hits
