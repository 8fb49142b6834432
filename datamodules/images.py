"""Pictures as uint8 tensors: reading, resizing and cropping."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from kornia.geometry import resize
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from datamodules.batch import Signal
from datamodules.tiles import Box

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class Picture(NamedTuple):
    """A picture as it was read.

    Attributes:
        pixels: ``(3, H, W)`` uint8, upright.
        notes: What had to be decided to make RGB of it, for people: of several frames the first, and so on.
    """

    pixels: Tensor
    notes: tuple[str, ...] = ()


def read_picture(path: str | Path) -> Picture:
    """Read a picture of any kind that Pillow knows as upright RGB.

    The orientation that a camera noted is applied; of several frames the first is taken; transparency is laid over white;
    grey, palette, CMYK and 16-bit pictures become RGB of 8 bits, 16 bits by dividing by 257.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is missing, empty, cut off, no picture, or too large; the message names it.

    Example:
        ``pixels, notes = read_picture("holiday.jpg")``
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty: take it from its source again.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata
            with Image.open(path) as image:
                frames = getattr(image, "n_frames", 1)
                notes = [f"the first of {frames} frames"] if frames > 1 else []
                upright = ImageOps.exif_transpose(image)
                return Picture(_rgb(upright, notes), tuple(notes))
    except FileNotFoundError as error:
        raise ValueError(f"There is no picture {path}: name another file or folder.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture of a kind that can be read: convert it to PNG or JPEG.") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ValueError(f"{path} has more than {limit:.0f} megapixels: make it smaller first.") from error
    except (OSError, SyntaxError, EOFError, struct.error, MemoryError) as error:  # what decoders raise of damaged data
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        raise ValueError(f"{path} is damaged or cut off ({error}): take it from its source again.") from error


def _rgb(image: Image.Image, notes: list[str]) -> Tensor:
    """Return the pixels of a picture of any mode as ``(3, H, W)`` uint8, and note what was decided."""
    if image.mode in _SIXTEEN_BITS:
        notes.append("16 bits made 8")
        levels = np.asarray(image).astype(np.float64) / 257
        return torch.from_numpy(levels.round().clip(0, 255).astype(np.uint8)).expand(3, -1, -1).contiguous()
    if image.mode == "F":
        notes.append("floating point, taken as [0, 1]")
        levels = np.nan_to_num(np.asarray(image)).clip(0, 1) * 255
        return torch.from_numpy(levels.round().astype(np.uint8)).expand(3, -1, -1).contiguous()
    if image.has_transparency_data:
        notes.append("transparency laid over white")
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    elif image.mode == "CMYK":
        notes.append("CMYK converted")
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).contiguous()


def resize_picture(picture: Tensor, height: int, width: int) -> Tensor:
    """Return an antialiased copy of another size.

    Args:
        picture: ``(3, h, w)`` uint8.
        height: Wanted rows.
        width: Wanted columns.

    Returns:
        ``(3, height, width)`` uint8.
    """
    resized = resize(picture.unsqueeze(0).float(), (height, width), interpolation="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def cut(picture: Tensor, box: Box, size: int) -> Tensor:
    """Return the part of a picture in a box, squeezed to a square.

    Args:
        picture: ``(3, h, w)`` uint8.
        box: Start and stop along both axes.
        size: Wanted pixels along each side.

    Returns:
        ``(3, size, size)`` uint8.
    """
    (top, bottom), (left, right) = box
    return resize_picture(picture[:, top:bottom, left:right], size, size)


class RandomCrop:
    """A square crop at a random place, mirrored at random: the augmentation of published training on ImageNette.

    Args:
        size: Pixels along each side.
        flip: Whether half of the crops are mirrored left to right.
        shuffle_colors: Whether the colour channels change places at random, which makes more colours of few pictures.
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
