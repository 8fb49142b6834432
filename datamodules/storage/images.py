"""Images as uint8 tensors: reading, resizing and cropping."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from kornia.geometry import resize
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from datamodules.batch import Signal
from datamodules.storage.folders import files_below
from datamodules.tiles import Box

_FINEST = 16  # pixels per pixel wanted, along each side, beyond which antialiasing would take minutes
_UNREADABLE = {".heic", ".heif", ".jxl", ".svg", ".arw", ".cr2", ".cr3", ".dng", ".nef"}  # named, with the reason


class LoadedImage(NamedTuple):
    """An image as it was read.

    Attributes:
        pixels: ``(3, H, W)`` uint8, upright.
        notes: What had to be decided to make RGB of it, for people: of several frames the first, and so on.
    """

    pixels: Tensor
    notes: tuple[str, ...] = ()


class Preparation(NamedTuple):
    """What is done to every image of a split once, the same in every epoch: its result can be kept.

    Attributes:
        short_side: Pixels that the shorter side gets, the proportions kept; None leaves images as they are.
        smallest: Pixels that the shorter side has at least: smaller images are enlarged.
        crop: Pixels along each side of the square in the middle that is kept; None keeps all.
    """

    short_side: int | None = None
    smallest: int = 1
    crop: int | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the prepared copy ``(3, H, W)`` uint8 of an image ``(3, h, w)`` uint8."""
        short = min(pixels.shape[1:])
        wanted = max(self.short_side or short, self.smallest, self.crop or 1)
        resized = pixels if wanted == short else resize_short_side(pixels, wanted)
        return resized if self.crop is None else center_crop(resized, self.crop)


def resize_short_side(image: Tensor, short_side: int) -> Tensor:
    """Return a copy whose shorter side has ``short_side`` pixels, as published preprocessing makes it.

    That is the bilinear filter of Pillow, antialiased, and a longer side that is rounded down, as torchvision's ``Resize``
    does; `resize_image` filters differently.

    Args:
        image: ``(3, h, w)`` uint8.
        short_side: Wanted pixels of the shorter side.

    Example:
        >>> tuple(resize_short_side(torch.zeros(3, 320, 427, dtype=torch.uint8), 178).shape)
        (3, 178, 237)
    """
    height, width = image.shape[1:]
    long_side = int(short_side * max(height, width) / min(height, width))
    size = (short_side, long_side) if width <= height else (long_side, short_side)  # width, height
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def center_crop(image: Tensor, size: int) -> Tensor:
    """Return the square in the middle ``(3, size, size)`` of an image that is no smaller, as torchvision's ``CenterCrop``."""
    top, left = (round((extent - size) / 2) for extent in image.shape[1:])
    return image[:, top : top + size, left : left + size].contiguous()


def image_files(path: Path) -> list[tuple[Path, Path]]:
    """Return the images at a path and, for each, its place below the folder that was named.

    Of a folder, all files with the ending of an image are taken, in its subfolders too, in alphabetical order; not hidden
    ones, nor those in folders of earlier predictions, unless such a folder is named itself. None of them is read.

    Args:
        path: A folder; or a file, which is taken whatever its ending, its place being its name.
    """
    kinds = Image.registered_extensions()
    return files_below(path, {ending for ending, kind in kinds.items() if kind in Image.OPEN} | _UNREADABLE)


def read_image(path: str | Path) -> LoadedImage:
    """Read an image of any kind that Pillow knows as upright RGB.

    The orientation that a camera noted is applied; of several frames the first is taken; transparency is laid over white;
    grey, palette, CMYK and 16-bit images become RGB of 8 bits, 16 bits by dividing by 257. Grey levels in whole numbers of
    32 bits count as 16 bits, those in floating point as [0, 1].

    Args:
        path: The file.

    Raises:
        ValueError: If the file is missing, empty, cut off, no image, too large, or has levels out of range; the message
            names it.

    Example:
        ``pixels, notes = read_image("holiday.jpg")``
    """
    path = Path(path)
    try:
        with quiet:
            return _decoded(path)
    except Exception as error:  # what decoders raise of damaged data is not foreseeable
        raise ValueError(_told(path, error)) from error


class _Quiet:
    """Silences warnings, which decoders give of large images and odd metadata, while any thread is within it.

    `warnings.catch_warnings` alone is not made for threads: the last one out would leave what it found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        """Silence, if this is the first thread within."""
        with self._lock:
            if self._within == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._within += 1

    def __exit__(self, *_: object) -> None:
        """Restore, if this is the last one."""
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._filters.__exit__(None, None, None)


quiet = _Quiet()


class _RefusedError(Exception):
    """What is wrong with an image, and the way out, in words that follow its name."""


def _decoded(path: Path) -> LoadedImage:
    """Return the image in a file, or raise whatever its decoder does."""
    if path.stat().st_size == 0:
        raise _RefusedError("is empty: take it from its source again.")
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        notes = [f"the first of {frames} frames"] if frames > 1 else []
        ImageOps.exif_transpose(image, in_place=True)
        return LoadedImage(_rgb(image, notes), tuple(notes))


def _told(path: Path, error: Exception) -> str:
    """Return what is wrong with an image, and the way out."""
    if isinstance(error, _RefusedError):
        return f"{path} {error}"
    if isinstance(error, FileNotFoundError):
        return f"There is no image {path}: name another file or folder."
    if isinstance(error, UnidentifiedImageError):
        return f"{path} is no image of a kind that can be read: convert it to PNG or JPEG."
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return f"{path} has more than {limit:.0f} megapixels: make it smaller first."
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}."
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path} is damaged or cut off ({reason}): take it from its source again, or convert it to PNG."


def _rgb(image: Image.Image, notes: list[str]) -> Tensor:
    """Return the pixels of an image of any mode as ``(3, H, W)`` uint8, and note what was decided."""
    if image.mode.startswith("I;16"):
        notes.append("16 bits made 8")
        return _grey(image, white=65535)
    if image.mode == "I":
        notes.append("whole numbers, taken as levels up to 65535")
        return _grey(image, white=65535)
    if image.mode == "F":
        notes.append("floating point, taken as [0, 1]")
        return _grey(image, white=1)
    if image.has_transparency_data:
        notes.append("transparency laid over white")
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    elif image.mode == "CMYK":
        notes.append("CMYK converted")
    return (
        torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1).contiguous()
    )


def _grey(image: Image.Image, white: int) -> Tensor:
    """Return grey levels of which ``white`` is the highest as ``(3, H, W)`` uint8."""
    numbers = np.asarray(image)
    levels = (numbers.astype(np.float64) * (255 / white)).round()
    if not ((levels >= 0) & (levels <= 255)).all():
        raise _RefusedError(
            f"holds numbers from {numbers.min():g} to {numbers.max():g}, read as levels of [0, {white}]: "
            "convert it to 8 or 16 bits."
        )
    return torch.from_numpy(levels.astype(np.uint8)).expand(3, -1, -1).contiguous()


def resize_image(image: Tensor, height: int, width: int) -> Tensor:
    """Return an antialiased copy of another size.

    Args:
        image: ``(3, h, w)`` uint8.
        height: Wanted rows.
        width: Wanted columns.

    Returns:
        ``(3, height, width)`` uint8.
    """
    resized = resize(image.unsqueeze(0).float(), (height, width), interpolation="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def cut(image: Tensor, box: Box, size: int) -> Tensor:
    """Return the part of an image in a box, squeezed to a square.

    Args:
        image: ``(3, h, w)`` uint8.
        box: Start and stop along both axes.
        size: Wanted pixels along each side.

    Returns:
        ``(3, size, size)`` uint8.
    """
    (top, bottom), (left, right) = box
    return resize_image(_coarser(image[:, top:bottom, left:right], size * _FINEST), size, size)


def _coarser(image: Tensor, most: int) -> Tensor:
    """Return an image of ``most`` pixels at most along each side: means over what each covers."""
    height, width = (min(extent, most) for extent in image.shape[1:])
    if image.shape[1:] == (height, width):
        return image
    channels = [Image.fromarray(channel.numpy()).resize((width, height), Image.Resampling.BOX) for channel in image]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))


class RandomCrop:
    """A square crop at a random place, mirrored at random: the augmentation of published training on ImageNette.

    Args:
        size: Pixels along each side.
        flip: Whether half of the crops are mirrored left to right.
        shuffle_colors: Whether the colour channels change places at random, which makes more colours of few images.
    """

    def __init__(self, size: int, flip: bool = True, shuffle_colors: bool = False) -> None:
        self.size = size
        self.flip = flip
        self.shuffle_colors = shuffle_colors

    def __call__(self, item: Signal, generator: torch.Generator) -> Signal:
        """Return a crop of ``item``, whose sides must be at least ``size``."""
        top, left = (
            int(torch.randint(extent - self.size + 1, (), generator=generator)) for extent in item.values.shape[1:]
        )
        crop = item.values[:, top : top + self.size, left : left + self.size]
        if self.flip and torch.rand((), generator=generator) < 0.5:
            crop = crop.flip(-1)
        if self.shuffle_colors:
            crop = crop[torch.randperm(len(crop), generator=generator)]
        return item._replace(values=crop)
