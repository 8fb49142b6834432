"""Enlarge images with a super-resolution model, and write the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from composers.base import Composer
from composers.construction import stated_domain, stated_scale
from datamodules.batch import Observation
from datamodules.domain import CellGrid, Domain
from datamodules.enlargement import MARGIN, MAX_PIXELS, enlarged_coords, enlargements
from datamodules.storage.files import written_whole
from datamodules.storage.images import grey, read_layers
from datamodules.tiles import cut_out
from modalities.images import Size, image_size, to_uint8
from modalities.writing import Row, Writer

_MAX_RESULT = 1 << 29  # pixels
_PROFILE_SPACE = slice(16, 20)  # of the header of an ICC profile


def enlarged_size(
    name: str | Path, shape: Sequence[int], size: Size = None, scale: float | None = None
) -> tuple[int, int]:
    """Return the rows and columns of an enlarged image.

    Args:
        name: The image, for error messages.
        shape: Rows and columns of the image.
        size: Pixels of the longer side of the result, or (rows, columns). Excludes ``scale``.
        scale: Scale factor. Excludes ``size``.

    Raises:
        ValueError: If the result would be smaller than the image, or have more than 536,870,912 pixels.
    """
    rows, columns = image_size(shape, size, scale)
    image = f"{name} has {shape[0]} x {shape[1]} pixels"
    if rows < shape[0] or columns < shape[1]:
        raise ValueError(
            f"{image}, more than the result of {rows} x {columns}: a super-resolution model enlarges images; pass a larger "
            "size, or a scale of at least 1."
        )
    if rows * columns > _MAX_RESULT:
        raise ValueError(
            f"{image}, and the result would have {rows:,} x {columns:,}, more than {_MAX_RESULT:,} in all: pass a smaller size "
            "or scale; a scale of 4 is four times the rows and columns."
        )
    return rows, columns


def super_resolve(
    composer: Composer,
    source: str | Path | Tensor,
    *,
    scale: float | None = None,
    size: Size = None,
    max_pixels: int = MAX_PIXELS,
    margin: int | None = None,
) -> Image.Image:
    """Enlarge an image with a super-resolution model.

    Args:
        composer: The model, such as ``composers.load("photos_liif")``.
        source: An image file, whose transparency and colour profile are kept; or pixels ``(3, H, W)`` uint8.
        scale: Scale factor, at least 1; if neither ``scale`` nor ``size`` is passed, the largest scale of training, or 4 if the
            model does not state it. Excludes ``size``.
        size: Pixels of the longer side, or (rows, columns). Excludes ``scale``.
        max_pixels: Pixels of the image per tile, which bound the memory.
        margin: Pixels that a tile observes on every side in addition; if None, those that the model depends on.

    Raises:
        ValueError: If the image cannot be read, the result would be smaller, or an argument is out of range.

    Example:
        ``super_resolve(composers.load("photos_liif"), "holiday.jpg", scale=4).save("large.png")``
    """
    layers = {"pixels": source} if isinstance(source, Tensor) else read_layers(source)._asdict()
    pixels = layers["pixels"]
    if pixels.dim() != 3 or len(pixels) != 3 or 0 in pixels.shape or pixels.dtype != torch.uint8:
        raise ValueError(
            f"source has shape {tuple(pixels.shape)} and type {pixels.dtype}; pass pixels (3, H, W) uint8, with H and W at "
            "least 1."
        )
    shape = tuple(pixels.shape[1:])
    largest = stated_scale(composer) if scale is None and size is None else scale
    target = enlarged_size(
        "source" if isinstance(source, Tensor) else source,
        shape,
        tuple(size) if isinstance(size, list) else size,
        largest,
    )
    if margin is None:
        margin = MARGIN if composer.context is None else composer.context
    domain, channels = _query_domain(composer), composer.network.value_dim
    pixels = grey(pixels) if channels == 1 else pixels
    result = torch.empty(*target, channels, dtype=torch.uint8)
    for tile in enlargements(shape, target, max_pixels, margin):
        coords = enlarged_coords(domain, tile, shape, target).to(composer.device)
        observed = cut_out(pixels, tile.observed).to(composer.device).float() / 255
        with torch.inference_mode():
            values = composer(Observation(observed.unsqueeze(0)), coords)[0]
        region = tuple(slice(*span) for span in tile.result)
        result[region] = to_uint8(values).unflatten(0, result[region].shape[:2])
    return assembled(result, layers)


def _query_domain(composer: Composer) -> Domain:
    """Return the domain of a model; positions with sizes if it was not loaded from a checkpoint that states it."""
    domain = stated_domain(composer)
    return CellGrid.unit(2) if composer.network.coord_dim == 4 and not isinstance(domain, CellGrid) else domain


def assembled(pixels: Tensor, layers: Mapping[str, Any]) -> Image.Image:
    """Return enlarged pixels with the transparency and the profile of their source as an image.

    Args:
        pixels: ``(H, W, 3)`` or ``(H, W, 1)`` uint8.
        layers: Fields of `datamodules.storage.images.Layers` of the source; missing ones are as their defaults.
    """
    colours = pixels.expand(-1, -1, 3).contiguous().numpy()
    image = Image.fromarray(colours)
    if layers.get("grey") or pixels.shape[-1] == 1:
        image = image.convert("L")
    alpha: Tensor | None = layers.get("alpha")
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha.numpy()).resize(image.size, Image.Resampling.BICUBIC))
    profile = layers.get("profile")
    if profile and profile[_PROFILE_SPACE] == (b"GRAY" if image.mode in ("L", "LA") else b"RGB "):
        image.info["icc_profile"] = profile
    return image


@dataclass(frozen=True)
class EnlargementWriter(Writer):
    """Write the enlarged image: NAME.png, upright, with the transparency and the colour profile of its source.

    There is no error image, because the truth is unknown, and no code: the feature map is larger than the result.
    """

    results: ClassVar[str] = "Enlarged images"
    size_heading: ClassVar[str] = "pixels"
    assembles: ClassVar[bool] = True

    def kept(self, values: Tensor) -> Tensor:
        """Return the values as uint8, clipped."""
        return to_uint8(values)

    def write_values(self, values: Tensor, path: Path, source: Mapping[str, Any]) -> Row:
        """Write the image from all its pixels ``(H, W, C)``; see `Writer.write_values`."""
        image = assembled(values, source)
        with written_whole(Path(f"{path}.png")) as part:
            image.save(part, format="PNG", compress_level=4, icc_profile=image.info.get("icc_profile"))
        rows, columns = source.get("shape", ("", ""))  # unknown for test items
        return {
            "rows": str(rows),
            "columns": str(columns),
            "enlarged rows": str(image.height),
            "enlarged columns": str(image.width),
        }

    def size_of(self, row: Row) -> str:
        """Return the rows and columns of an image before and after."""
        before = f"{row['rows']} x {row['columns']} to " if row["rows"] else ""
        return f"{before}{row['enlarged rows']} x {row['enlarged columns']}"
