"""Read, resize and crop images as uint8 tensors."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from kornia.geometry import resize
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from datamodules.batch import Signal
from datamodules.storage.folders import files_below, not_regular
from datamodules.tiles import Box

T = TypeVar("T")
FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "QOI",
    "TGA",
    "TIFF",
    "WEBP",
)  # of Pillow
_SMALL_IMAGE = 16_000_000  # pixels; up to here, the size of the file is not checked
_PIXELS_PER_BYTE = 1000  # of larger images; an empty page takes a byte per 340 pixels as a PNG
_MAX_REDUCTION = 16  # input pixels per output pixel along each side; beyond it antialiasing would take minutes
# Listed by image_files nevertheless, so that reading them reports the reason.
_UNSUPPORTED = {".heic", ".heif", ".jxl", ".svg", ".arw", ".cr2", ".cr3", ".dng", ".nef"}


class LoadedImage(NamedTuple):
    """An image read from a file.

    Attributes:
        pixels: ``(3, H, W)`` uint8, upright.
        notes: Conversions that were needed to obtain 8-bit RGB, as text for the user.
    """

    pixels: Tensor
    notes: tuple[str, ...] = ()


class Layers(NamedTuple):
    """The parts of an image file that an edited copy of it keeps.

    Attributes:
        pixels: ``(3, H, W)`` uint8, upright, with the colours of transparent pixels as they are stored.
        alpha: Opacity ``(H, W)`` uint8; None if the image is opaque.
        grey: Whether the image has no colours.
        profile: ICC colour profile of ``pixels``; None if there is none.
        notes: Conversions that were needed to obtain 8 bits, as text for the user.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    profile: bytes | None = None
    notes: tuple[str, ...] = ()


class Preparation(NamedTuple):
    """Deterministic preprocessing of every image of a split. Its result does not depend on the epoch and can be cached.

    Attributes:
        short_side: Pixels of the shorter side after resizing, which keeps the aspect ratio; no resizing if None.
        smallest: Minimum pixels of the shorter side; smaller images are enlarged.
        crop: Side of the central square crop in pixels; no crop if None.
    """

    short_side: int | None = None
    smallest: int = 1
    crop: int | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the preprocessed copy ``(3, H, W)`` uint8 of an image ``(3, h, w)`` uint8."""
        current = min(pixels.shape[1:])
        target = max(self.short_side or current, self.smallest, self.crop or 1)
        resized = pixels if target == current else resize_short_side(pixels, target)
        return resized if self.crop is None else center_crop(resized, self.crop)


def resize_short_side(image: Tensor, short_side: int) -> Tensor:
    """Return a copy whose shorter side has ``short_side`` pixels, as in published preprocessing.

    This is Pillow's antialiased bilinear filter, with the longer side rounded down as in torchvision's ``Resize``.
    `resize_image` uses another filter.

    Args:
        image: ``(3, h, w)`` uint8.
        short_side: Pixels of the shorter side of the result.

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
    """Return the central square ``(3, size, size)`` of an image at least that large, as torchvision's ``CenterCrop``."""
    top, left = (round((extent - size) / 2) for extent in image.shape[1:])
    return image[:, top : top + size, left : left + size].contiguous()


def image_files(path: Path) -> list[tuple[Path, Path]]:
    """Return the image files at a path, each with its path relative to the folder.

    A folder is searched recursively for files with an image extension, in alphabetical order. Hidden files and folders and
    output folders of earlier predictions are ignored, unless such a folder is itself ``path``. No file is opened.

    Args:
        path: A folder, or a single file with any extension, whose relative path is its name.
    """
    readable = {extension for extension, name in Image.registered_extensions().items() if name in _formats()}
    return files_below(path, readable | _UNSUPPORTED)


def read_image(path: str | Path) -> LoadedImage:
    """Read an image as upright 8-bit RGB: PNG, JPEG, WebP, AVIF, TIFF, BMP, GIF, JPEG 2000, PPM, QOI or TGA.

    An image has at most 179 megapixels; one of more than 16 megapixels has at most 1,000 pixels per byte of its file. Both are
    checked before pixels are decoded.

    The EXIF orientation is applied, the first frame is taken, and transparent images are composited over white. Grey,
    palette and CMYK images are converted to RGB. 16-bit levels are divided by 257, 32-bit integers are read as 16-bit
    levels, and floating-point levels are read as [0, 1].

    Args:
        path: Image file.

    Raises:
        ValueError: If the file is missing, empty, truncated, not an image, too large, or has levels out of range. The
            message names the file.

    Example:
        ``pixels, notes = read_image("holiday.jpg")``
    """
    return _read(Path(path), lambda image, notes: LoadedImage(_to_rgb(image, notes), tuple(notes)))


def read_layers(path: str | Path) -> Layers:
    """Read an image as `read_image` does, but with transparency, colour profile, and whether it is grey.

    Args:
        path: Image file.

    Raises:
        ValueError: As `read_image`.
    """
    return _read(Path(path), _to_layers)


def _read(path: Path, convert: Callable[[Image.Image, list[str]], T]) -> T:
    """Return the conversion of the upright first frame of an image file; errors name the file."""
    try:
        with quiet:
            return _decode(path, convert)
    except MemoryError:  # not a fault of the file, which a cache must not record
        raise
    except Exception as error:  # decoders raise arbitrary exceptions for damaged data
        raise ValueError(_error_message(path, error)) from error


class _Quiet:
    """Suppress decoders' warnings about large images and odd metadata while any thread is inside the context.

    `warnings.catch_warnings` is not thread-safe: the last thread to leave could restore the wrong filters.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        """Suppress warnings when the first thread enters."""
        with self._lock:
            if self._num_inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        """Restore the filters when the last thread leaves."""
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._filters.__exit__(None, None, None)


quiet = _Quiet()


class ImageFileError(Exception):
    """A problem found by `open_image` rather than by a decoder; the message follows the file name and states the fix."""


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow supports; some builds lack AVIF."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image of a supported format after checking its size; errors of the decoder propagate."""
    if problem := not_regular(path):
        raise ImageFileError(f"cannot be read: {problem}.")
    with Image.open(path, formats=_formats()) as image:
        check_pixels(image.size, path.stat().st_size)
        yield image


def check_pixels(size: tuple[int, int], num_bytes: int) -> None:
    """Raise an `ImageFileError` if an image states more pixels than a file of its size can hold.

    Args:
        size: Columns and rows.
        num_bytes: Size of the file.
    """
    columns, rows = size
    if columns * rows > max(_SMALL_IMAGE, _PIXELS_PER_BYTE * num_bytes):
        raise ImageFileError(
            f"states {columns:,} x {rows:,} pixels, but has only {num_bytes:,} bytes: obtain a new copy."
        )


def _decode(path: Path, convert: Callable[[Image.Image, list[str]], T]) -> T:
    """Decode an image file; errors of the decoder propagate."""
    if path.is_file() and path.stat().st_size == 0:
        raise ImageFileError("is empty: obtain a new copy.")
    with open_image(path) as image:
        frames = getattr(image, "n_frames", 1)
        notes = [f"first of {frames} frames"] if frames > 1 else []
        ImageOps.exif_transpose(image, in_place=True)
        return convert(image, notes)


def _error_message(path: Path, error: Exception) -> str:
    """Return the error message for an image that could not be read, including the fix."""
    if isinstance(error, ImageFileError):
        return f"{path} {error}"
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist: pass an existing image file or folder."
    if isinstance(error, UnidentifiedImageError):
        return f"{path} is not an image in a supported format: convert it to PNG or JPEG."
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return f"{path} has more than {limit:.0f} megapixels: downscale it first."
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}."
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path} is corrupt or truncated ({reason}): obtain a new copy, or convert it to PNG."


def _to_rgb(image: Image.Image, notes: list[str]) -> Tensor:
    """Return an image of any mode as ``(3, H, W)`` uint8, and append the conversions to ``notes``."""
    if image.mode.startswith("I;16"):
        notes.append("16-bit converted to 8-bit")
        return _grey_to_rgb(image, white=65535)
    if image.mode == "I":
        notes.append("32-bit integers read as [0, 65535]")
        return _grey_to_rgb(image, white=65535)
    if image.mode == "F":
        notes.append("floating point read as [0, 1]")
        return _grey_to_rgb(image, white=1)
    if image.has_transparency_data:
        notes.append("transparency composited over white")
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    elif image.mode == "CMYK":
        notes.append("CMYK converted")
    return (
        torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1).contiguous()
    )


def _to_layers(image: Image.Image, notes: list[str]) -> Layers:
    """Return the layers of an image of any mode, and append the conversions to ``notes``."""
    grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
    profile = None if image.mode == "CMYK" else image.info.get("icc_profile")
    if not image.has_transparency_data:
        return Layers(_to_rgb(image, notes), None, grey, profile, tuple(notes))
    if grey and image.mode not in ("1", "L", "LA"):  # levels of more than 8 bits, one of which is transparent
        alpha = torch.from_numpy((np.asarray(image) != image.info["transparency"]).astype(np.uint8) * 255)
        return Layers(_to_rgb(image, notes), alpha, grey, profile, tuple(notes))
    red, green, blue, alpha = (torch.from_numpy(np.array(channel)) for channel in image.convert("RGBA").split())
    return Layers(torch.stack((red, green, blue)), alpha, grey, profile, tuple(notes))


def _grey_to_rgb(image: Image.Image, white: int) -> Tensor:
    """Return a grey image with levels in ``[0, white]`` as ``(3, H, W)`` uint8."""
    levels = np.asarray(image)
    scaled = (levels.astype(np.float64) * (255 / white)).round()
    if not ((scaled >= 0) & (scaled <= 255)).all():
        raise ImageFileError(
            f"has levels from {levels.min():g} to {levels.max():g}, but [0, {white}] is required: "
            "convert it to 8 or 16 bits."
        )
    return torch.from_numpy(scaled.astype(np.uint8)).expand(3, -1, -1).contiguous()


def resize_image(image: Tensor, height: int, width: int) -> Tensor:
    """Return an antialiased, resized copy of an image.

    Args:
        image: ``(3, h, w)`` uint8.
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        ``(3, height, width)`` uint8.
    """
    resized = resize(image.unsqueeze(0).float(), (height, width), interpolation="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def cut(image: Tensor, box: Box, size: int) -> Tensor:
    """Return the part of an image in a box, resized to a square regardless of its aspect ratio.

    Args:
        image: ``(3, h, w)`` uint8.
        box: Start and stop along both axes.
        size: Pixels along each side of the result.

    Returns:
        ``(3, size, size)`` uint8.
    """
    (top, bottom), (left, right) = box
    return resize_image(_box_downsample(image[:, top:bottom, left:right], size * _MAX_REDUCTION), size, size)


def _box_downsample(image: Tensor, max_size: int) -> Tensor:
    """Return an image with at most ``max_size`` pixels along each side, averaging the pixels that each new one covers."""
    height, width = (min(extent, max_size) for extent in image.shape[1:])
    if image.shape[1:] == (height, width):
        return image
    channels = [Image.fromarray(channel.numpy()).resize((width, height), Image.Resampling.BOX) for channel in image]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))


class RandomCrop:
    """Crop a square at a random position and flip it at random: the augmentation of published training on ImageNette.

    Args:
        size: Pixels along each side of the crop.
        flip: Whether to flip the crop horizontally with probability 0.5.
        shuffle_colors: Whether to permute the colour channels at random, which adds colour variety to small data sets.
    """

    def __init__(self, size: int, flip: bool = True, shuffle_colors: bool = False) -> None:
        self.size = size
        self.flip = flip
        self.shuffle_colors = shuffle_colors

    def __call__(self, item: Signal, generator: torch.Generator) -> Signal:
        """Return a random crop of ``item``, whose sides must be at least ``size``."""
        top, left = (
            int(torch.randint(extent - self.size + 1, (), generator=generator)) for extent in item.values.shape[1:]
        )
        crop = item.values[:, top : top + self.size, left : left + self.size]
        if self.flip and torch.rand((), generator=generator) < 0.5:
            crop = crop.flip(-1)
        if self.shuffle_colors:
            crop = crop[torch.randperm(len(crop), generator=generator)]
        return item._replace(values=crop)


def resized(image: Tensor, size: Sequence[int], method: Image.Resampling = Image.Resampling.BICUBIC) -> Tensor:
    """Return an image resized by Pillow, antialiased and rounded to 8 bits.

    Args:
        image: ``(C, H, W)`` uint8, with 1 or 3 channels.
        size: Rows and columns of the result.
        method: Filter of Pillow.

    Example:
        >>> resized(torch.zeros(3, 9, 6, dtype=torch.uint8), (3, 2)).shape
        torch.Size([3, 3, 2])
    """
    rows, columns = size
    return from_pillow(to_pillow(image).resize((columns, rows), method), len(image))


def grey(image: Tensor) -> Tensor:
    """Return the luminance of a colour image ``(3, H, W)`` uint8 as ``(1, H, W)``, with the weights of Pillow (ITU-R 601)."""
    return from_pillow(to_pillow(image).convert("L"), 1)


def to_pillow(image: Tensor) -> Image.Image:
    """Return an image ``(C, H, W)`` uint8 as a grey or colour image of Pillow."""
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image, channels: int) -> Tensor:
    """Return a grey or colour image of Pillow as ``(C, H, W)`` uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()
