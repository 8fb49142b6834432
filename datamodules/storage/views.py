"""Scenes of posed images: their cameras, and the images as they are read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.storage.folders import Split, not_regular
from datamodules.storage.images import open_image, quiet, read_image
from datamodules.storage.lenses import Lens, undistorted
from datamodules.storage.poses import Convention

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = 33  # bytes up to the end of the first chunk
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_ALPHA = (4, 6)  # colour types with an alpha channel
_IMAGE_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"))


class Scene(NamedTuple):
    """Image files of a scene and their cameras.

    Attributes:
        name: Name of the folder.
        images: Image files, one per frame.
        poses: ``(F, 3, 4)`` float32, camera to world: axes right, up, backwards as columns, then the position.
        intrinsics: ``(F, 4)`` float32 focal lengths and principal point in pixels, ``fx, fy, cx, cy``.
        shape: Rows and columns of every image.
        distortion: ``(F, 5)`` float32, OPENCV coefficients ``k1, k2, p1, p2, k3``; None if there is no distortion.
        splits: Frames of every split, if files of the scene state them, those for training first; else None.
        drop_alpha: Whether to drop the alpha channel of images instead of compositing over white.
        num_opaque: Number of images without transparency; 0 if it does not matter.
        convention: The convention of the poses in the file.
        notes: What is unusual about the scene: kinds and texts for the user.
    """

    name: str
    images: tuple[Path, ...]
    poses: Tensor
    intrinsics: Tensor
    shape: tuple[int, int]
    distortion: Tensor | None = None
    splits: Mapping[Split, range] | None = None
    drop_alpha: bool = False
    num_opaque: int = 0
    convention: Convention = "opengl"
    notes: tuple[tuple[str, str], ...] = ()

    def read(self, frame: int) -> Tensor:
        """Return the image of a frame ``(3, H, W)`` uint8 as a pinhole camera sees it: composited over white, undistorted.

        Raises:
            ValueError: If the image cannot be read, or its size changed since the scene was read; the message names it.
        """
        image = read_view(self.images[frame], self.drop_alpha)
        if tuple(image.shape[1:]) != self.shape:
            raise ValueError(
                f"{self.images[frame]} has {image.shape[1]} x {image.shape[2]} pixels, but had {self.shape[0]} x "
                f"{self.shape[1]} at set-up: get the file from its source again."
            )
        if self.distortion is None:
            return image
        return undistorted(image, self.intrinsics[frame], self.distortion[frame])

    def scaled(self, scale: float) -> Scene:
        """Return the scene with all positions multiplied by a factor."""
        if scale == 1:
            return self
        return self._replace(poses=self.poses * self.poses.new_tensor((1.0, 1.0, 1.0, scale)))


class ImageHeader(NamedTuple):
    """What the header of an image states.

    Attributes:
        shape: Rows and columns.
        opaque: Whether the image has no transparency.
    """

    shape: tuple[int, int]
    opaque: bool


def lens_tensors(lenses: Sequence[Lens]) -> tuple[Tensor, Tensor | None]:
    """Return the intrinsics ``(F, 4)`` and the distortion ``(F, 5)`` of frames; None if no lens distorts."""
    distorted = any(any(lens.distortion) for lens in lenses)
    return (
        torch.tensor([lens.intrinsics for lens in lenses]),
        torch.tensor([lens.distortion for lens in lenses]) if distorted else None,
    )


def read_view(path: str | Path, drop_alpha: bool = False) -> Tensor:
    """Read an image, composited over white if it has transparency.

    Args:
        path: The file.
        drop_alpha: Whether to drop the alpha channel of an RGBA image instead of compositing.

    Returns:
        ``(3, H, W)`` uint8.

    Raises:
        ValueError: If the image cannot be read; the message names it.
    """
    with suppress(Exception), quiet, open_image(Path(path)) as image:  # read_image reports any error
        if drop_alpha and image.mode == "RGBA":
            return torch.from_numpy(np.array(image)[..., :3]).permute(2, 0, 1).contiguous()
    return read_image(path).pixels


def is_opaque(path: str | Path) -> bool:
    """Return whether an image has no transparency according to its header; False if it cannot be read."""
    with suppress(Exception), quiet, open_image(Path(path)) as image:
        return not image.has_transparency_data
    return False


def background_note(scene: Scene) -> str:
    """Return a note on images without transparency; empty if all images have it."""
    if not scene.num_opaque or scene.drop_alpha:
        return ""
    if scene.num_opaque == len(scene.images):
        return "images without transparency are used as they are, whatever their background"
    return (
        f"{scene.num_opaque} of {len(scene.images)} images have no transparency and are used as they are, whatever their "
        "background; the others are composited over white"
    )


def common_header(images: Sequence[Path]) -> tuple[tuple[int, int], int]:
    """Return the shape of images, and the number of those without transparency, after checking that all shapes are equal.

    Raises:
        ValueError: If images are truncated or of different sizes; the message names the file.
    """
    headers = {path: _header(path) for path in dict.fromkeys(images)}
    shape = headers[images[0]].shape
    for path, header in headers.items():
        if header.shape != shape:
            raise ValueError(
                f"{path} has {header.shape[0]} x {header.shape[1]} pixels, but {images[0].name} has {shape[0]} x {shape[1]}: "
                "the images of a scene must have the same size. Resize them."
            )
    return shape, sum(headers[path].opaque for path in images)


def unnamed_images(images: Sequence[Path]) -> list[Path]:
    """Return the image files in the folders of images that are not among these, in alphabetical order."""
    named = {(path.parent, path.name) for path in images}
    unnamed = []
    for folder in dict.fromkeys(path.parent for path in images):
        with os.scandir(folder) as entries:
            unnamed += [
                folder / entry.name
                for entry in entries
                if os.path.splitext(entry.name)[1].lower() in _IMAGE_ENDINGS  # noqa: PTH122 - for speed
                and not entry.name.startswith(".")
                and (folder, entry.name) not in named
            ]
    return sorted(unnamed)


def _header(path: Path) -> ImageHeader:
    """Return the header of an image; a PNG with an intact header and end is not decoded."""
    regular = not not_regular(path)
    with (
        suppress(OSError),
        (path if regular else Path(os.devnull)).open("rb", buffering=0) as file,
    ):  # read_image reports it
        header = file.read(_PNG_HEADER)
        if len(header) == _PNG_HEADER and header.startswith(_PNG):
            width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
            if not width or not height:
                raise ValueError(f"{path} has {height} x {width} pixels: get it from its source again.")
            file.seek(-len(_PNG_END), os.SEEK_END)
            if file.read() == _PNG_END:
                return ImageHeader((height, width), header[25] not in _PNG_ALPHA and is_opaque(path))
    height, width = read_image(path).pixels.shape[1:]
    return ImageHeader((height, width), is_opaque(path))
