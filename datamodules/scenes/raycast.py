"""Images of meshes by casting rays: no graphics card and no screen are needed."""

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

_LIGHT = np.array((-0.5, -0.3, 0.8), dtype=np.float32)  # towards it: the six sides of a box differ
_AMBIENT = 0.25
_WHITE = 255  # under pixels that nothing covers, as if the image lay on white
_NOTHING = -1


class Caster:
    """An object under one light that stays where it is, so that a side of a surface has one brightness from everywhere.

    Shading is Lambert's law with flat normals, softened so that it reaches around the object (half Lambert): 0.25 + 0.75 (1 +
    cos) / 2 of the colour, with the cosine between the light and the normal of the side that is seen. Which way faces of a file
    are oriented makes no difference. There are no shadows.

    Args:
        mesh: The object.

    Example:
        ``Caster(read_mesh(path)).render(orbit(8), torch.full((8, 2), focal_length(0.8, 128)), (128, 128))``
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

    def render(self, poses: Tensor, focals: Tensor, shape: Sequence[int], samples: int = 2) -> Tensor:
        """Return images of the object as RGBA.

        Alpha is the part of a pixel that the object covers, and the colour is that of the covered part alone; white where there
        is none.

        Args:
            poses: ``(F, 3, 4)``.
            focals: ``(F, 2)`` in pixels, along columns and rows.
            shape: Height and width in pixels.
            samples: Rays along each side of a pixel, so 4 rays a pixel if 2.

        Returns:
            ``(F, 4, H, W)`` uint8.
        """
        fine = [samples * side for side in shape]
        views = zip(poses, samples * focals, strict=True)
        return torch.stack(
            [self._view(Rays().coords(fine, cameras=(pose, focal)), fine, samples) for pose, focal in views]
        )

    def depth(self, poses: Tensor, focals: Tensor, shape: Sequence[int]) -> Tensor:
        """Return how far the object is in the middle of every pixel, from the plane of the camera.

        Args:
            poses: ``(F, 3, 4)``.
            focals: ``(F, 2)`` in pixels, along columns and rows.
            shape: Height and width in pixels.

        Returns:
            ``(F, H, W)`` float32 in world units, infinite where there is nothing.
        """
        rays = Rays().coords((len(poses), *shape), cameras=(poses, focals))
        found = self._cast(rays.numpy())
        depth = np.where(found["primID"] == _NOTHING, np.float32(math.inf), found["tfar"])
        return torch.from_numpy(depth.reshape(len(poses), *shape))

    def _view(self, rays: Tensor, fine: Sequence[int], samples: int) -> Tensor:
        """Return the image ``(4, H, W)`` that ``(H W s s, 6)`` rays make."""
        colours, covered = self._coloured(rays.numpy())
        blocks = torch.from_numpy(np.concatenate((colours, covered[:, None]), axis=1)).T.unflatten(1, tuple(fine))
        mean = torch.nn.functional.avg_pool2d(blocks, samples)
        colour = mean[:3] / mean[3:].clamp_min(0.5 / samples**2)  # less than one ray is none
        white = torch.where(mean[3:] > 0, colour * 255, torch.full((), float(_WHITE)))
        return torch.cat((white, mean[3:] * 255)).round().clamp(0, 255).to(torch.uint8)

    def _coloured(self, rays: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the colours ``(N, 3)`` in [0, 1] that rays meet, zero where they meet nothing, and whether they meet any."""
        found = self._cast(rays)
        hit = found["primID"] != _NOTHING
        faces, right, left = found["primID"][hit], found["u"][hit, None], found["v"][hit, None]
        away = np.einsum("nc,nc->n", self._normals[faces], rays[hit, 3:]) > 0
        cosines = np.where(away, -self._cosines[faces], self._cosines[faces])
        first, second, third = self._colours[faces].swapaxes(0, 1)
        colour = (1 - right - left) * first + right * second + left * third
        colours = np.zeros((len(rays), 3), dtype=np.float32)
        colours[hit] = colour * (_AMBIENT + (1 - _AMBIENT) * (1 + cosines[:, None]) / 2)
        return colours, hit.astype(np.float32)

    def _cast(self, rays: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return what rays ``(N, 6)`` meet first: faces, places in them, and distances in lengths of their directions."""
        origins, directions = np.ascontiguousarray(rays[:, :3]), np.ascontiguousarray(rays[:, 3:])
        found: dict[str, NDArray[np.float32]] = self._scene.run(origins, directions, output=True)
        return found
