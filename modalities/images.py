"""Images: reading, encoding, decoding at any size, writing, drawing and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composers.base import Composer
from composers.codes import InstanceCode, decode, encoded, fingerprint, steps_taken, takes_any_size
from composers.construction import stated_domain
from composers.encoders import Patches
from composers.inference.refinement import Refinement
from composers.latents import Latents
from composers.metrics import PSNR, SSIM, Gain, InstanceMetric, psnr_of_mse
from composers.rendering import Reconstruction
from datamodules.batch import Cell, Instance, Observation, Samples
from datamodules.code_size import CodeSize
from datamodules.domain import Domain, Grid
from datamodules.spec import Headline, LinearPatch
from datamodules.storage.files import written_whole
from datamodules.storage.images import cut, read_image
from datamodules.tiles import MAX_PIXELS, TILE_SIZE, Box, cover, cut_out, split, whole
from modalities.decoding import values_at
from modalities.drawn import GALLERY_SIZE, DrawnModality
from modalities.writing import Prediction, Row, Writer

Size = int | tuple[int, int] | None
_ERROR_GAIN = 5
_MAX_ERROR_SIZE = 4096  # maximum of the longer side of an error image in pixels


def to_image(values: Tensor, shape: Sequence[int]) -> Image.Image:
    """Return values ``(N, 3)`` or ``(N, 1)`` in [0, 1] as an image of ``(height, width)`` pixels, clipped."""
    return Image.fromarray(to_uint8(values).unflatten(0, tuple(shape)).expand(*shape, 3).contiguous().numpy())


def error_image(prediction: Image.Image, target: Image.Image) -> tuple[Image.Image, float]:
    """Return the absolute error of an image, scaled by 5 and clipped, and its PSNR in dB.

    Example:
        >>> grey, black = Image.new("RGB", (2, 2), (51, 51, 51)), Image.new("RGB", (2, 2))
        >>> error, psnr = error_image(grey, black)
        >>> error.getpixel((0, 0)), round(psnr, 2)
        ((255, 255, 255), 13.98)
    """
    difference = np.asarray(prediction).astype(np.int16) - np.asarray(target)
    mse = float(np.square(difference, dtype=np.float32).mean(dtype=np.float64)) / 255**2
    error = np.minimum(np.abs(difference) * _ERROR_GAIN, 255).astype(np.uint8)
    return Image.fromarray(error), psnr_of_mse(torch.tensor(mse)).item()


def image_size(shape: Sequence[int], size: Size = None, scale: float | None = None) -> tuple[int, int]:
    """Return the rows and columns to decode an image at.

    Args:
        shape: Rows and columns of the image.
        size: Pixels of the longer side, or (rows, columns). Excludes ``scale``.
        scale: Scale factor relative to ``shape``. Excludes ``size``.

    Raises:
        ValueError: If both ``size`` and ``scale`` are passed, or one is not positive.

    Example:
        >>> image_size((400, 600), size=1200), image_size((400, 600), scale=0.5)
        ((800, 1200), (200, 300))
    """
    if size is not None and scale is not None:
        raise ValueError(f"size is {size} and scale is {scale}: pass only one of them.")
    if isinstance(size, tuple):
        rows, columns = size
    else:
        factor = (1.0 if scale is None else scale) if size is None else size / max(shape)
        if not 0 < factor < math.inf:
            raise ValueError(
                f"size is {size} and scale is {scale}: the one that is passed must be positive and finite."
            )
        rows, columns = (max(1, round(extent * factor)) for extent in shape)
    if min(rows, columns) < 1:
        raise ValueError(f"size is {size}: rows and columns must be at least 1.")
    return rows, columns


def encode(
    composer: Composer,
    source: str | Path | Tensor,
    *,
    tile: bool = False,
    tile_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    refinement: Refinement | None = None,
    batch_size: int = 16,
) -> InstanceCode:
    """Predict and refine the instance code of an image.

    Args:
        composer: A model of colour images: of any size, which encodes the image whole at its own resolution, or of squares.
        source: An image file, or pixels ``(3, H, W)`` uint8.
        tile: Whether to split the image into overlapping tiles, which keeps details where a model takes squares of one size.
        tile_size: Pixels of the image along each side of a tile; if None, the model's input size, or 512 for any size.
        max_pixels: Pixels above which an image is split into blended tiles for a model of any size.
        refinement: Refinement of the code; that of the model if None. ``Refinement(steps=0)`` disables it.
        batch_size: Number of tiles that are encoded at a time; a model of any size takes one.

    Raises:
        ValueError: If the image cannot be read, or the model does not take images.

    Example:
        ``code = encode(composer, "holiday.jpg", tile=True)``
    """
    pixels = source if isinstance(source, Tensor) else read_image(source).pixels
    if pixels.dim() != 3 or len(pixels) != 3 or 0 in pixels.shape:
        raise ValueError(f"source has shape {tuple(pixels.shape)}; pass pixels (3, H, W), with H and W at least 1.")
    shape, refinement = tuple(pixels.shape[1:]), refinement or composer.refinement
    if takes_any_size(composer):
        boxes = cover(shape, tile_size or TILE_SIZE) if tile else _whole_or_split(composer, shape, max_pixels)
        tiles, batch_size = torch.stack([cut_out(pixels, box) for box in boxes]), 1
    else:
        size = input_size(composer)
        boxes = cover(shape, tile_size or size) if tile else [whole(shape)]
        tiles = torch.stack([cut(pixels, box, size) for box in boxes])
    latents = image_codes(composer, tiles, refinement, batch_size)
    latents = {name: latent.cpu() for name, latent in latents.items()}
    name = "" if isinstance(source, Tensor) else Path(source).stem
    facts = steps_taken(composer, refinement.steps)
    domain, layout = stated_domain(composer), composer.layout(Observation(torch.empty(1, *tiles.shape[1:])))
    code = InstanceCode(latents, boxes, shape, fingerprint(composer), name, facts, domain=domain, layout=layout)
    return replace(code, facts=facts | Images().size_of_code(code).facts())


def image_codes(composer: Composer, tiles: Tensor, refinement: Refinement, batch_size: int = 16) -> Latents:
    """Predict and refine the latents of images of a size that the model takes.

    Args:
        composer: The model.
        tiles: Images ``(B, 3, H, W)`` uint8.
        refinement: Refinement of the latents.
        batch_size: Number of images that are encoded at a time.
    """
    domain = stated_domain(composer)
    batches = (batch.to(composer.device) for batch in tiles.split(batch_size))
    observations = (Observation(batch.float() / 255, image_samples(batch, domain)) for batch in batches)
    return encoded(composer, observations, refinement)


def image_samples(tiles: Tensor, domain: Domain | None = None) -> Samples:
    """Return the pixels of images ``(B, 3, H, W)`` uint8 as samples of a domain, ``[-1, 1]`` along both axes if None."""
    coords = (domain or Grid.unit(2)).coords(tiles.shape[2:], device=tiles.device)
    return Samples(coords, tiles.float().flatten(2).mT / 255)


def _whole_or_split(composer: Composer, shape: tuple[int, ...], max_pixels: int) -> list[Box]:
    """Return the box of an image, or boxes of tiles of at most ``max_pixels``."""
    patches = composer.network.patches
    return split(shape, max_pixels, patches.size if patches else (1,) * len(shape))


def render(
    composer: Composer, code: InstanceCode, size: Size = None, scale: float | None = None, max_memory: float = 500.0
) -> Image.Image:
    """Decode the code of an image at any size.

    Args:
        composer: The model of the code.
        code: Instance code of an image.
        size: Pixels of the longer side, or (rows, columns). Excludes ``scale``.
        scale: Scale factor relative to the encoded image; 1 if neither is passed. Excludes ``size``.
        max_memory: Memory limit of decoding in MB, in addition to the model and the result.

    Raises:
        ValueError: If the code belongs to another model or is not of an image, or an argument is out of range.

    Example:
        ``render(composer, code, size=4096).save("large.png")``
    """
    if len(code.shape) != 2:
        raise ValueError(f"The code represents a signal of shape {code.shape}, not an image.")
    rows, columns = image_size(code.shape, size, scale)
    try:
        pixels = torch.empty(rows, columns, 3, dtype=torch.uint8)
    except RuntimeError as error:
        raise ValueError(
            f"An image of {rows} x {columns} pixels does not fit into memory: pass a smaller size."
        ) from error
    start = 0
    for band in decode(composer, code, (rows, columns), max_memory):
        stop = start + len(band)
        pixels[start:stop] = to_uint8(band)
        start = stop
    return Image.fromarray(pixels.numpy())


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image as PNG atomically."""
    with written_whole(path) as part:
        image.save(part, format="PNG", compress_level=4)


def input_size(composer: Composer) -> int:
    """Return the pixels along each side of a model's input images.

    If the tokenizer accepts any size, this is the size that its number of tokens covers. For a meta-learned model, which
    adapts to samples of any image, it is the size in training.

    Raises:
        ValueError: If the model does not take square colour images, or does not declare its input shape.
    """
    signal_shape = composer.start.signal_shape
    if signal_shape is None:
        raise ValueError(
            f"{type(composer).__name__} does not declare the size of its input images: its start has no signal_shape."
        )
    channels, *shape = signal_shape
    if channels == 3 and len(shape) == 2 and shape[0] == shape[1] > 0:
        return shape[0]
    patches = next((module for module in composer.modules() if isinstance(module, Patches)), None)
    if (channels, shape) == (3, [-1, -1]) and patches is not None:
        side = math.isqrt(patches.num_tokens)
        if side**2 == patches.num_tokens:
            return side * patches.patch_size[0] - 2 * patches.padding[0]
    raise ValueError(f"This model takes signals of shape {signal_shape}, not square colour images.")


def to_uint8(values: Tensor) -> Tensor:
    """Return values in [0, 1], clipped, as uint8 on the CPU."""
    return (values.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


@dataclass(frozen=True)
class ImageWriter(Writer):
    """Write the reconstruction of an image, its error scaled by 5, and its instance code.

    For an image NAME, these are NAME.png, NAME.error.png and NAME.safetensors. The row of the table holds the PSNR of the
    predicted and the refined code at the model's input resolution, which for a model of any size is that of the image, and
    the PSNR of NAME.png at the image's original size.

    Args:
        size: Pixels of the longer side of the reconstruction, or [rows, columns].
        scale: Scale factor of the reconstruction relative to the image; 1 if neither ``size`` nor ``scale`` is passed.
        max_memory: Memory limit of decoding in MB, in addition to the model and the result.

    Raises:
        ValueError: If both ``size`` and ``scale`` are passed, or an argument is not positive.
    """

    size: Size = None
    scale: float | None = None
    max_memory: float = 500.0

    results: ClassVar[str] = "Images, error images, codes"
    size_heading: ClassVar[str] = "pixels"
    numbers: ClassVar[Mapping[str, str]] = {"psnr": "original size"}

    def __post_init__(self) -> None:
        """Check the arguments, and convert a size that was read as a list from YAML."""
        if isinstance(self.size, list):
            object.__setattr__(self, "size", tuple(self.size))
        image_size((1, 1), self.size, self.scale)

    def write(self, prediction: Prediction, path: Path) -> Row:
        """Write the prediction, its error and the code of an image."""
        composer, code = prediction.composer, prediction.code
        code.save(f"{path}{code.suffix}")
        image = render(composer, code, self.size, self.scale, self.max_memory)
        save_image(image, Path(f"{path}.png"))
        target = _target_image(prediction)
        if image.size != target.size:
            image = render(composer, code, (target.height, target.width), max_memory=self.max_memory)
        error, psnr = error_image(image, target)
        save_image(error, Path(f"{path}.error.png"))
        size = {"rows": str(code.shape[0]), "columns": str(code.shape[1]), "tiles": str(len(code.boxes))}
        return size | code.facts | {"psnr": f"{psnr:.3f}"}

    def size_of(self, row: Row) -> str:
        """Return the rows and columns of an image."""
        return f"{row['rows']} x {row['columns']}"

    def decode(
        self, composer: Composer, codes: Sequence[InstanceCode], path: Path | None, stem: Path
    ) -> tuple[Path, str]:
        """Write the images of codes as in `Writer.decode`; several frames are also written as ``frames.gif``."""
        images = [render(composer, code, self.size, self.scale, self.max_memory) for code in codes]
        size = f"{images[0].height} x {images[0].width} pixels"
        if len(images) == 1:
            path = path or Path(f"{stem}.{images[0].height}x{images[0].width}.png")
            save_image(images[0], path)
            return path, size
        assert path is not None, "several frames require a folder"
        for frame, image in enumerate(images):
            save_image(image, path / f"{frame:03d}.png")
        with written_whole(path / "frames.gif") as part:
            images[0].save(part, format="GIF", save_all=True, append_images=images[1:], duration=80, loop=0)
        return path, f"{size} and frames.gif"


class Images(DrawnModality):
    """Images on a pixel grid, with 3 channels or 1 and values in [0, 1]."""

    name = "images"
    noun = "image"
    headline = Headline("psnr", "max", "dB")
    reader = "datamodules.ImageFiles"
    reading = ("tile", "tile_size", "max_pixels")
    writer: ClassVar[type[Writer] | None] = ImageWriter
    decoding: ClassVar[tuple[str, ...]] = ("size", "scale")
    weights = "photos_patch_ipc"
    interpolation = "bicubic"
    linear: ClassVar[LinearPatch | None] = LinearPatch("PCA", (8, 8), "pixels")

    def takes(self, facts: Mapping[str, Any]) -> bool:
        """Return whether a model was trained to reconstruct what it observes, not on super-resolution."""
        return facts.get("scales") is None

    def code_size(self, numbers: int, shape: Sequence[int], sample_rate: int | None = None) -> CodeSize:
        """Return the size of an instance code, with the bits per pixel of the image."""
        return CodeSize(numbers, math.prod(shape), "bits per pixel")

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return PSNR, SSIM, and the gain in PSNR over the mean colour."""
        return {"psnr": PSNR(), "ssim": SSIM(), "gain": Gain()}

    def read(self, path: str | Path) -> tuple[Tensor, dict[str, Any]]:
        """Return the upright pixels of an image file, ``(3, H, W)`` uint8.

        Raises:
            ValueError: If the file cannot be read. The message names the file.
        """
        return read_image(path).pixels, {}

    def input_shape(self, composer: Composer) -> tuple[int, ...]:
        """Return the input shape ``(3, S, S)`` of a model, or ``(3, -1, -1)`` of a model of images of any size."""
        if takes_any_size(composer) and composer.start.signal_shape == (3, -1, -1):
            return 3, -1, -1
        size = input_size(composer)
        return 3, size, size

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        """Return values ``(H * W, 3)`` or ``(H * W, 1)`` in [0, 1] as an image of ``(H, W)`` pixels, clipped."""
        return to_image(values.nan_to_num(0, 1, 0), shape)

    def context(self, instance: Instance) -> list[Cell]:
        """Return the image that the model observes, if its resolution differs from that of the target."""
        signal = instance.signal
        if not isinstance(signal, Tensor) or signal.shape[1:] == instance.shape:
            return []
        return [Cell("input", signal.flatten(1).mT, tuple(signal.shape[1:]), instance.domain)]

    def extras(
        self, composer: Composer, reconstruction: Reconstruction, shown: Instance, max_memory: float = 500.0
    ) -> list[Cell]:
        """Return the image decoded at the resolution of the gallery."""
        scale = math.ceil(GALLERY_SIZE / max(shown.shape))
        shape = tuple(scale * extent for extent in shown.shape)
        values = values_at(composer, reconstruction, shown.domain.coords(shape), max_memory)
        return [Cell(f"decoded at {scale}x", values, shape, shown.domain)]

    def media(self, composer: Composer, reconstruction: Reconstruction, instance: Instance) -> dict[str, Any]:
        """Return the image, its reconstruction and its error scaled by 5."""
        target, prediction = instance.query.values, instance.values[0]
        assert target is not None
        error = (prediction - target).abs() * _ERROR_GAIN
        columns = {"input": target, "reconstruction": prediction, "error x 5": error}
        return {column: self.panel(values, instance.shape) for column, values in columns.items()}

    def decodes(self, code: InstanceCode) -> bool:
        """Return whether a code represents an image, which has two axes."""
        return len(code.shape) == 2


def _target_image(prediction: Prediction) -> Image.Image:
    """Return the image to compare with, reduced in size if it is very large."""
    if prediction.original is not None:
        image = Image.fromarray(prediction.original.permute(1, 2, 0).contiguous().numpy())
        image.thumbnail((_MAX_ERROR_SIZE, _MAX_ERROR_SIZE))
        return image
    instance = prediction.instance
    assert instance is not None, "data modules with tiles provide the original"
    assert instance.query.values is not None
    return to_image(instance.query.values, instance.shape)
