"""Ray casting of meshes on the CPU; needs neither a GPU nor a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
        lenses: dict[tuple[float, ...], NDArray[np.float32]] = {}  # directions of rays in the axes of the camera
        images = []
        for pose, lens in zip(poses, samples * intrinsics, strict=True):
            numbers = tuple(lens.tolist())
            if numbers not in lenses:
                lenses[numbers] = Rays().coords(fine, cameras=(torch.eye(4)[:3], lens))[:, 3:].numpy()
            axes, position = pose[:, :3].float().numpy(), pose[:, 3].float().numpy()
            images.append(self._view(position, lenses[numbers] @ axes.T, (shape[0], shape[1]), samples))
        return torch.stack(images)

    def depth(self, poses: Tensor, intrinsics: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the depth of the object at the centre of every pixel, measured from the camera plane.

        Args:
            poses: ``(F, 3, 4)``.
            intrinsics: ``(F, 4)`` in pixels, ``fx, fy, cx, cy``.
            shape: Height and width in pixels.

        Returns:
            ``(F, H, W)`` float32 in world units, infinite where the object is not hit.
        """
        rays = Rays().coords((len(poses), *shape), cameras=(poses, intrinsics)).numpy()
        hits = self._cast(np.ascontiguousarray(rays[:, :3]), rays[:, 3:])
        depth = np.where(hits["primID"] == _MISS, np.float32(math.inf), hits["tfar"])
        return torch.from_numpy(depth.reshape(len(poses), *shape))

    def _view(
        self, position: NDArray[np.float32], directions: NDArray[np.float32], shape: tuple[int, int], samples: int
    ) -> Tensor:
        """Return the image ``(4, H, W)`` of rays ``(H s W s, 3)`` from a position ``(3,)``."""
        hits = self._cast(np.tile(position, (len(directions), 1)), directions)
        hit = np.flatnonzero(hits["primID"] != _MISS)
        colours = self._shade(hits["primID"][hit], hits["u"][hit], hits["v"][hit], directions[hit])
        (height, width), area = shape, samples**2
        pixels = hit // (width * area) * width + hit % (width * samples) // samples
        covered = np.bincount(pixels, minlength=height * width)
        sums = np.stack([np.bincount(pixels, channel, height * width) for channel in colours.T])
        colour = np.where(covered > 0, 255 * sums / np.maximum(covered, 1), _WHITE)
        image = np.concatenate((colour, 255 / area * covered[None])).reshape(4, height, width)
        return torch.from_numpy(image.round().clip(0, 255).astype(np.uint8))

    def _shade(
        self,
        faces: NDArray[np.int32],
        u: NDArray[np.float32],
        v: NDArray[np.float32],
        directions: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Return the shaded colours ``(K, 3)`` in [0, 1] at the hits of rays with directions ``(K, 3)``."""
        back = np.einsum("nc,nc->n", self._normals[faces], directions) > 0
        cosines = np.where(back, -self._cosines[faces], self._cosines[faces])
        first, second, third = self._colours[faces].swapaxes(0, 1)
        u, v = u[:, None], v[:, None]
        colour = (1 - u - v) * first + u * second + v * third
        return np.asarray(colour * (_AMBIENT + (1 - _AMBIENT) * (1 + cosines[:, None]) / 2))

    def _cast(self, origins: NDArray[np.float32], directions: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return the first hits of rays: faces, barycentric coordinates, distances in units of the directions."""
        hits: dict[str, NDArray[Any]] = self._scene.run(origins, np.ascontiguousarray(directions), output=True)
        return hits
