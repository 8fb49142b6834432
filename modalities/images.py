"""Pictures in and out: a photograph to a code, a code to a picture of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composers.base import Composer
from composers.codes import InstanceCode, decode, encoded, fingerprint, stated_shape, steps_taken
from composers.encoders import Patches
from composers.inference.refinement import Latents, Refinement
from composers.metrics import psnr_of_mse
from datamodules.batch import Observation, Samples
from datamodules.domain import Grid
from datamodules.storage.files import written_whole
from datamodules.storage.images import cut, read_picture
from datamodules.tiles import cover, whole

Size = int | tuple[int, int] | None
_ERROR_GAIN = 5


def picture(values: Tensor, shape: Sequence[int]) -> Image.Image:
    """Return values ``(N, 3)`` or ``(N, 1)`` in [0, 1] as a picture of ``(height, width)`` pixels, clipped."""
    return Image.fromarray(_bytes(values).unflatten(0, tuple(shape)).expand(*shape, 3).contiguous().numpy())


def error_picture(seen: Image.Image, true: Image.Image) -> tuple[Image.Image, float]:
    """Return the absolute error of a picture, five times enlarged and clipped, and its PSNR in dB.

    Example:
        >>> grey, black = Image.new("RGB", (2, 2), (51, 51, 51)), Image.new("RGB", (2, 2))
        >>> enlarged, psnr = error_picture(grey, black)
        >>> enlarged.getpixel((0, 0)), round(psnr, 2)
        ((255, 255, 255), 13.98)
    """
    difference = np.asarray(seen).astype(np.int16) - np.asarray(true)
    squared = float(np.square(difference, dtype=np.float32).mean(dtype=np.float64)) / 255**2
    enlarged = np.minimum(np.abs(difference) * _ERROR_GAIN, 255).astype(np.uint8)
    return Image.fromarray(enlarged), psnr_of_mse(torch.tensor(squared)).item()


def picture_size(shape: Sequence[int], size: Size = None, scale: float | None = None) -> tuple[int, int]:
    """Return the rows and columns to decode a picture at.

    Args:
        shape: Rows and columns of the picture.
        size: Pixels of the longer side, or (rows, columns); at most one of ``size`` and ``scale`` is given.
        scale: Pixels wanted per pixel of the picture, along each side.

    Raises:
        ValueError: If both are given, or one is not positive.

    Example:
        >>> picture_size((400, 600), size=1200), picture_size((400, 600), scale=0.5)
        ((800, 1200), (200, 300))
    """
    if size is not None and scale is not None:
        raise ValueError(f"size is {size} and scale {scale}: give one of them.")
    if isinstance(size, tuple):
        rows, columns = size
    else:
        factor = (1.0 if scale is None else scale) if size is None else size / max(shape)
        if not 0 < factor < math.inf:
            raise ValueError(f"size is {size}, scale {scale}: it must be a number above 0.")
        rows, columns = (max(1, round(extent * factor)) for extent in shape)
    if min(rows, columns) < 1:
        raise ValueError(f"size is {size}: rows and columns are at least 1.")
    return rows, columns


def encode(
    composer: Composer,
    source: str | Path | Tensor,
    *,
    tile: bool = False,
    tile_size: int | None = None,
    refinement: Refinement | None = None,
    batch_size: int = 16,
) -> InstanceCode:
    """Return the code of a picture: predicted, then refined.

    Args:
        composer: A model of square colour pictures.
        source: A picture file, or ``(3, H, W)`` uint8.
        tile: Whether the picture is cut into overlapping tiles, for detail, instead of being squeezed whole.
        tile_size: Pixels of the picture along each side of a tile; those that the model sees if None.
        refinement: Steps and rate; the model's own if None, ``Refinement(steps=0)`` for the prediction alone.
        batch_size: Tiles at a time.

    Raises:
        ValueError: If the picture cannot be read, or the model takes no pictures.

    Example:
        ``code = encode(composer, "holiday.jpg", tile=True)``
    """
    pixels = source if isinstance(source, Tensor) else read_picture(source).pixels
    shape, seen = tuple(pixels.shape[1:]), input_size(composer)
    places = cover(shape, tile_size or seen) if tile else [whole(shape)]
    steps = refinement or composer.refinement
    latents = square_codes(composer, torch.stack([cut(pixels, box, seen) for box in places]), steps, batch_size)
    latents = {name: latent.cpu() for name, latent in latents.items()}
    name = "" if isinstance(source, Tensor) else Path(source).stem
    facts = steps_taken(composer, steps.steps)
    return InstanceCode(latents, places, shape, fingerprint(composer), name, facts, domain=Grid.unit(2))


def square_codes(composer: Composer, squares: Tensor, refinement: Refinement, batch_size: int = 16) -> Latents:
    """Return the codes of pictures that a model can take as they are: predicted, then refined.

    Args:
        composer: The model.
        squares: ``(B, 3, S, S)`` uint8.
        refinement: Steps and rate.
        batch_size: Pictures at a time.
    """
    moved = (some.to(composer.device) for some in squares.split(batch_size))
    observations = (Observation(some.float() / 255, square_samples(some)) for some in moved)
    return encoded(composer, observations, refinement)


def square_samples(squares: Tensor) -> Samples:
    """Return the pixels of pictures ``(B, 3, S, S)`` uint8 as samples."""
    return Samples(Grid.unit(2).coords(squares.shape[2:], device=squares.device), squares.float().flatten(2).mT / 255)


def render(
    composer: Composer, code: InstanceCode, size: Size = None, scale: float | None = None, max_memory: float = 500.0
) -> Image.Image:
    """Return the picture of a code at any size.

    Args:
        composer: The model of the code.
        code: Of a picture.
        size: Pixels of the longer side, or (rows, columns); at most one of ``size`` and ``scale`` is given.
        scale: Pixels per pixel of the picture that was encoded; 1 if nothing is given.
        max_memory: MB that decoding may take above the model and the picture.

    Raises:
        ValueError: If the code is of another model or no picture, or a number is out of range.

    Example:
        ``render(composer, code, size=4096).save("large.png")``
    """
    if len(code.shape) != 2:
        raise ValueError(f"This code stands for a signal of shape {code.shape}, not for a picture.")
    rows, columns = picture_size(code.shape, size, scale)
    try:
        pixels = torch.empty(rows, columns, 3, dtype=torch.uint8)
    except RuntimeError as error:
        raise ValueError(f"A picture of {rows} x {columns} does not fit into memory: ask for a smaller one.") from error
    done = 0
    for band in decode(composer, code, (rows, columns), max_memory):
        pixels[done : done + len(band)] = _bytes(band)
        done += len(band)
    return Image.fromarray(pixels.numpy())


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with written_whole(path) as part:
        image.save(part, format="PNG", compress_level=4)


def input_size(composer: Composer) -> int:
    """Return the pixels along each side of the pictures that a model takes; where it leaves them open, those of its tokens.

    Of a meta-learned model, which adapts to samples of any picture, they are those of its training.

    Raises:
        ValueError: If it takes something else, or does not say.
    """
    found = stated_shape(composer)
    if found is None:
        raise ValueError(
            f"This {type(composer).__name__} does not say which pictures it takes: it has no tokenizer and no signal_shape."
        )
    channels, *shape = found
    if channels == 3 and len(shape) == 2 and shape[0] == shape[1] > 0:
        return shape[0]
    patches = next((module for module in composer.modules() if isinstance(module, Patches)), None)
    if (channels, shape) == (3, [-1, -1]) and patches is not None:
        side = math.isqrt(patches.num_tokens)
        if side**2 == patches.num_tokens:
            return side * patches.patch_size[0] - 2 * patches.padding[0]
    raise ValueError(f"This model takes signals of shape {found}, not square colour pictures.")


def _bytes(values: Tensor) -> Tensor:
    """Return values in [0, 1] as uint8 on the CPU, clipped."""
    return (values.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
