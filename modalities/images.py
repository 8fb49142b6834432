"""Images: read, encoded, decoded at any size, written, drawn and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composers.base import Composer
from composers.codes import InstanceCode, decode, encoded, fingerprint, steps_taken
from composers.encoders import Patches
from composers.inference.refinement import Refinement
from composers.latents import Latents
from composers.metrics import PSNR, SSIM, Gain, InstanceMetric, psnr_of_mse
from composers.networks import Modulations
from datamodules.batch import Cell, Instance, Observation, Samples
from datamodules.domain import Grid
from datamodules.spec import Headline, Modality
from datamodules.storage.files import written_whole
from datamodules.storage.images import cut, read_image
from datamodules.tiles import cover, whole
from modalities.decoding import values_at
from modalities.drawing import compacted, enlarged, image_grid
from modalities.writing import Prediction, Row, Writer

Size = int | tuple[int, int] | None
_ERROR_GAIN = 5
_LARGEST_ERROR = 4096  # pixels of the longer side of an error image
_GALLERY = 256  # pixels of the longer side of an image in a gallery, or a few more


def to_image(values: Tensor, shape: Sequence[int]) -> Image.Image:
    """Return values ``(N, 3)`` or ``(N, 1)`` in [0, 1] as an image of ``(height, width)`` pixels, clipped."""
    return Image.fromarray(_bytes(values).unflatten(0, tuple(shape)).expand(*shape, 3).contiguous().numpy())


def error_image(seen: Image.Image, true: Image.Image) -> tuple[Image.Image, float]:
    """Return the absolute error of an image, five times enlarged and clipped, and its PSNR in dB.

    Example:
        >>> grey, black = Image.new("RGB", (2, 2), (51, 51, 51)), Image.new("RGB", (2, 2))
        >>> enlarged, psnr = error_image(grey, black)
        >>> enlarged.getpixel((0, 0)), round(psnr, 2)
        ((255, 255, 255), 13.98)
    """
    difference = np.asarray(seen).astype(np.int16) - np.asarray(true)
    squared = float(np.square(difference, dtype=np.float32).mean(dtype=np.float64)) / 255**2
    enlarged = np.minimum(np.abs(difference) * _ERROR_GAIN, 255).astype(np.uint8)
    return Image.fromarray(enlarged), psnr_of_mse(torch.tensor(squared)).item()


def image_size(shape: Sequence[int], size: Size = None, scale: float | None = None) -> tuple[int, int]:
    """Return the rows and columns to decode an image at.

    Args:
        shape: Rows and columns of the image.
        size: Pixels of the longer side, or (rows, columns); at most one of ``size`` and ``scale`` is given.
        scale: Pixels wanted per pixel of the image, along each side.

    Raises:
        ValueError: If both are given, or one is not positive.

    Example:
        >>> image_size((400, 600), size=1200), image_size((400, 600), scale=0.5)
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
    """Return the code of an image: predicted, then refined.

    Args:
        composer: A model of square colour images.
        source: An image file, or ``(3, H, W)`` uint8.
        tile: Whether the image is cut into overlapping tiles, for detail, instead of being squeezed whole.
        tile_size: Pixels of the image along each side of a tile; those that the model sees if None.
        refinement: Steps and rate; the model's own if None, ``Refinement(steps=0)`` for the prediction alone.
        batch_size: Tiles at a time.

    Raises:
        ValueError: If the image cannot be read, or the model takes no images.

    Example:
        ``code = encode(composer, "holiday.jpg", tile=True)``
    """
    pixels = source if isinstance(source, Tensor) else read_image(source).pixels
    shape, seen = tuple(pixels.shape[1:]), input_size(composer)
    places = cover(shape, tile_size or seen) if tile else [whole(shape)]
    steps = refinement or composer.refinement
    latents = square_codes(composer, torch.stack([cut(pixels, box, seen) for box in places]), steps, batch_size)
    latents = {name: latent.cpu() for name, latent in latents.items()}
    name = "" if isinstance(source, Tensor) else Path(source).stem
    facts = steps_taken(composer, steps.steps)
    layout = composer.layout(Observation(torch.empty(1, 3, seen, seen)))
    return InstanceCode(latents, places, shape, fingerprint(composer), name, facts, domain=Grid.unit(2), layout=layout)


def square_codes(composer: Composer, squares: Tensor, refinement: Refinement, batch_size: int = 16) -> Latents:
    """Return the codes of images that a model can take as they are: predicted, then refined.

    Args:
        composer: The model.
        squares: ``(B, 3, S, S)`` uint8.
        refinement: Steps and rate.
        batch_size: Images at a time.
    """
    moved = (some.to(composer.device) for some in squares.split(batch_size))
    observations = (Observation(some.float() / 255, square_samples(some)) for some in moved)
    return encoded(composer, observations, refinement)


def square_samples(squares: Tensor) -> Samples:
    """Return the pixels of images ``(B, 3, S, S)`` uint8 as samples."""
    return Samples(Grid.unit(2).coords(squares.shape[2:], device=squares.device), squares.float().flatten(2).mT / 255)


def render(
    composer: Composer, code: InstanceCode, size: Size = None, scale: float | None = None, max_memory: float = 500.0
) -> Image.Image:
    """Return the image of a code at any size.

    Args:
        composer: The model of the code.
        code: Of an image.
        size: Pixels of the longer side, or (rows, columns); at most one of ``size`` and ``scale`` is given.
        scale: Pixels per pixel of the image that was encoded; 1 if nothing is given.
        max_memory: MB that decoding may take above the model and the image.

    Raises:
        ValueError: If the code is of another model or no image, or a number is out of range.

    Example:
        ``render(composer, code, size=4096).save("large.png")``
    """
    if len(code.shape) != 2:
        raise ValueError(f"This code stands for a signal of shape {code.shape}, not for an image.")
    rows, columns = image_size(code.shape, size, scale)
    try:
        pixels = torch.empty(rows, columns, 3, dtype=torch.uint8)
    except RuntimeError as error:
        raise ValueError(f"An image of {rows} x {columns} does not fit into memory: ask for a smaller one.") from error
    done = 0
    for band in decode(composer, code, (rows, columns), max_memory):
        pixels[done : done + len(band)] = _bytes(band)
        done += len(band)
    return Image.fromarray(pixels.numpy())


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image, whole or not at all."""
    with written_whole(path) as part:
        image.save(part, format="PNG", compress_level=4)


def input_size(composer: Composer) -> int:
    """Return the pixels along each side of the images that a model takes; where it leaves them open, those of its tokens.

    Of a meta-learned model, which adapts to samples of any image, they are those of its training.

    Raises:
        ValueError: If it takes something else, or does not say.
    """
    found = composer.start.signal_shape
    if found is None:
        raise ValueError(
            f"This {type(composer).__name__} does not say which images it takes: its start states no signal_shape."
        )
    channels, *shape = found
    if channels == 3 and len(shape) == 2 and shape[0] == shape[1] > 0:
        return shape[0]
    patches = next((module for module in composer.modules() if isinstance(module, Patches)), None)
    if (channels, shape) == (3, [-1, -1]) and patches is not None:
        side = math.isqrt(patches.num_tokens)
        if side**2 == patches.num_tokens:
            return side * patches.patch_size[0] - 2 * patches.padding[0]
    raise ValueError(f"This model takes signals of shape {found}, not square colour images.")


def _bytes(values: Tensor) -> Tensor:
    """Return values in [0, 1] as uint8 on the CPU, clipped."""
    return (values.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


@dataclass(frozen=True)
class ImageWriter(Writer):
    """Writes what a model makes of an image: its reconstruction, five times its error, and its instance code.

    For an image called NAME these are NAME.png, NAME.error.png, NAME.safetensors and a row of the table: the PSNR of what was
    predicted and refined, on the pixels that the model sees, and of NAME.png at the image's own size.

    Args:
        size: Pixels of the longer side of the reconstruction, or [rows, columns].
        scale: Pixels of the reconstruction per pixel of the image, along each side; 1 if neither is given.
        max_memory: MB that decoding may take above the model and the result.

    Raises:
        ValueError: If both ``size`` and ``scale`` are given, or a number is not positive.
    """

    size: Size = None
    scale: float | None = None
    max_memory: float = 500.0

    results: ClassVar[str] = "Images, errors, codes"
    size_heading: ClassVar[str] = "pixels"
    numbers: ClassVar[Mapping[str, str]] = {
        "psnr predicted": "predicted",
        "psnr refined": "refined",
        "psnr": "at own size",
    }

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range; a size that was read from YAML is a list."""
        if isinstance(self.size, list):
            object.__setattr__(self, "size", tuple(self.size))
        image_size((1, 1), self.size, self.scale)

    def write(self, reconstruction: Prediction, path: Path) -> Row:
        """Write the reconstruction, its error and the code of an image."""
        composer, code = reconstruction.composer, reconstruction.code
        code.save(f"{path}.safetensors")
        image = render(composer, code, self.size, self.scale, self.max_memory)
        save_image(image, Path(f"{path}.png"))
        true = _original(reconstruction)
        if image.size != true.size:
            image = render(composer, code, (true.height, true.width), max_memory=self.max_memory)
        error, psnr = error_image(image, true)
        save_image(error, Path(f"{path}.error.png"))
        size = {"rows": str(code.shape[0]), "columns": str(code.shape[1]), "tiles": str(len(code.boxes))}
        return size | code.facts | {"psnr": f"{psnr:.3f}"}

    def size_of(self, row: Row) -> str:
        """Return the pixels of an image."""
        return f"{row['rows']} x {row['columns']}"

    def decode(
        self, composer: Composer, codes: Sequence[InstanceCode], path: Path | None, stem: Path
    ) -> tuple[Path, str]:
        """Write the images of codes as `Writer.decode` says, the frames of a walk as frames.gif too."""
        images = [render(composer, code, self.size, self.scale, self.max_memory) for code in codes]
        size = f"{images[0].height} x {images[0].width} pixels"
        if len(images) == 1:
            path = path or Path(f"{stem}.{images[0].height}x{images[0].width}.png")
            save_image(images[0], path)
            return path, size
        assert path is not None, "frames go into a folder"
        for frame, image in enumerate(images):
            save_image(image, path / f"{frame:03d}.png")
        images[0].save(path / "frames.gif", save_all=True, append_images=images[1:], duration=80, loop=0)
        return path, f"{size} and frames.gif"


class Images(Modality):
    """Images on a grid of pixels, with 3 channels or 1 in [0, 1]."""

    name = "images"
    noun = "image"
    headline = Headline("psnr", "max", "dB")
    reader = "datamodules.ImageFiles"
    reading = ("tile", "tile_size")
    writer = ImageWriter
    decoding = ("size", "scale")

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return PSNR, SSIM, and the PSNR over the mean colour."""
        return {"psnr": PSNR(), "ssim": SSIM(), "gain": Gain()}

    def read(self, path: str | Path) -> tuple[Tensor, dict[str, Any]]:
        """Return the pixels of an image file, upright, ``(3, H, W)`` uint8.

        Raises:
            ValueError: If it cannot be read; the message names it.
        """
        return read_image(path).pixels, {}

    def input_shape(self, composer: Composer) -> tuple[int, ...]:
        """Return ``(3, S, S)`` of the images that a model takes."""
        size = input_size(composer)
        return 3, size, size

    def shown(self, instance: Instance) -> Instance:
        """Return the instance: all of it is shown."""
        return instance

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        """Return values ``(H * W, 3)`` or ``(H * W, 1)`` in [0, 1] as an image of ``(H, W)`` pixels, clipped."""
        return to_image(values.nan_to_num(0, 1, 0), shape)

    def figure(self, rows: Sequence[Sequence[Cell]], compact: bool = False) -> Image.Image:
        """Return cells in rows and columns, all of one size: 256 pixels along the longer side or a few more."""
        if compact:
            return image_grid(
                [[(cell.label, compacted(self.panel(cell.values, cell.shape))) for cell in row] for row in rows]
            )
        first = rows[0][0]
        size = enlarged(self.panel(first.values, first.shape), _GALLERY).size
        return image_grid(
            [[(cell.label, self.panel(cell.values, cell.shape).resize(size, 0)) for cell in row] for row in rows]
        )

    def extras(
        self, composer: Composer, modulations: Modulations, shown: Instance, max_memory: float = 500.0
    ) -> list[Cell]:
        """Return the image decoded at the larger scale of the gallery."""
        scale = math.ceil(_GALLERY / max(shown.shape))
        shape = tuple(scale * extent for extent in shown.shape)
        values = values_at(composer, modulations, shown.domain.coords(shape), max_memory)
        return [Cell(f"decoded at {scale}x", values, shape, shown.domain)]

    def values_at(
        self, composer: Composer, modulations: Modulations, coords: Tensor, max_memory: float = 500.0
    ) -> Tensor:
        """Return values ``(N, C)`` of one instance at ``coords (N, 2)``, on the CPU."""
        return values_at(composer, modulations, coords, max_memory)

    def media(self, instance: Instance) -> dict[str, Any]:
        """Return the image, its prediction and five times its error."""
        true, predicted = instance.query.values, instance.values[0]
        assert true is not None
        error = (predicted - true).abs() * _ERROR_GAIN
        columns = {"input": true, "reconstruction": predicted, "error x 5": error}
        return {column: self.panel(values, instance.shape) for column, values in columns.items()}

    def decodes(self, code: InstanceCode) -> bool:
        """Return whether a code stands for rows and columns."""
        return len(code.shape) == 2


def _original(reconstruction: Prediction) -> Image.Image:
    """Return the image itself, made smaller if it is very large."""
    if reconstruction.original is not None:
        image = Image.fromarray(reconstruction.original.permute(1, 2, 0).contiguous().numpy())
        image.thumbnail((_LARGEST_ERROR, _LARGEST_ERROR))
        return image
    instance = reconstruction.instance
    assert instance is not None, "a data module of tiles knows what they are tiles of"
    assert instance.query.values is not None
    return to_image(instance.query.values, instance.shape)
