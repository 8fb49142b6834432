"""Prediction with a model of super-resolution: image files, enlarged in tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Piece, Samples, Signal
from datamodules.domain import CellGrid, Domain
from datamodules.enlargement import MARGIN, MAX_PIXELS, Enlargement, enlarged_coords, enlargements
from datamodules.images.prediction import WholeImages, readable_images
from datamodules.spec import DataSpec
from datamodules.storage.images import grey, read_layers
from datamodules.tiles import cut_out
from modalities.enlarging import enlarged_size
from modalities.images import Size, image_size
from modalities.super_resolution import SuperResolvedImages


class EnlargementBatch(NamedTuple):
    """A tile of an image to enlarge, as pixels.

    Attributes:
        values: ``(1, C, h, w)`` uint8.
        enlargement: Boxes of the tile.
        shape: Rows and columns of the image.
        piece: Position in the result.
    """

    values: Tensor
    enlargement: Enlargement
    shape: tuple[int, ...]
    piece: Piece


class LowResolutionFile(NamedTuple):
    """A readable image to enlarge.

    Attributes:
        name: Name of its results.
        path: Path of the file.
        shape: Rows and columns of the upright image.
        size: Rows and columns of the result.
        tiles: Its tiles.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    size: tuple[int, int]
    tiles: list[Enlargement]


class _Tiles(Dataset[EnlargementBatch]):
    """The tiles of all images, image by image. The last image read is kept in memory.

    Args:
        files: The images.
        channels: 3 for colours, 1 for grey.
    """

    def __init__(self, files: Sequence[LowResolutionFile], channels: int) -> None:
        self.channels = channels
        self.tiles = [(file, tile) for file in files for tile in file.tiles]
        self._last: tuple[Path, Tensor] | None = None

    def __len__(self) -> int:
        """Return the number of tiles of all images."""
        return len(self.tiles)

    def __getitem__(self, index: int) -> EnlargementBatch:
        """Return tile ``index``."""
        file, tile = self.tiles[index]
        if self._last is None or self._last[0] != file.path:
            pixels = read_layers(file.path).pixels
            self._last = (file.path, pixels if self.channels == 3 else grey(pixels))
        values = cut_out(self._last[1], tile.observed).unsqueeze(0)
        return EnlargementBatch(values, tile, file.shape, Piece(file.name, file.size, tile.result))


class LowResolutionFiles(CoordinateDataModule):
    """Image files for ``cli.py predict`` with a super-resolution model, which enlarges the images themselves.

    An image of any size is divided into tiles, so that memory is bounded.

    Unreadable images are skipped and reported; it is an error if no image is readable. Folders are searched recursively for
    files with an image extension. Hidden files and output folders of earlier predictions are ignored.

    Args:
        images: Image files and folders.
        scale: Scale factor of the result, at least 1; if neither ``scale`` nor ``size`` is passed, the largest scale of
            training.
        size: Pixels of the longer side of the result, or [rows, columns]. Excludes ``scale``.
        max_pixels: Pixels of the image per tile, which bound the memory; 131,072 if None, which takes up to 1 GB with EDSR, and
            several with RDN.
        margin: Pixels of the image that a tile observes on every side in addition; if None, those that the model states to
            depend on (`composers.Composer.context`), so that tiles give the result of the whole image.
        signal_shape: Input shape ``(C, -1, -1)`` of the model. On the command line it is read from the checkpoint.
        domain: Domain of the coordinates; positions with sizes if None. On the command line it is read from the checkpoint.
        scales: Scales of training. On the command line they are read from the checkpoint.
        num_workers: Number of loader processes; 0 loads in the main process.

    Raises:
        ValueError: If an argument is out of range.
    """

    modality = SuperResolvedImages()

    def __init__(
        self,
        images: Sequence[str] = (),
        scale: float | None = None,
        size: Size = None,
        max_pixels: int | None = None,
        margin: int | None = None,
        signal_shape: Sequence[int] | None = None,
        domain: Domain | None = None,
        scales: tuple[float, float] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=1, num_workers=num_workers)
        if (margin is not None and margin < 0) or (max_pixels is not None and max_pixels < 1):
            raise ValueError(
                f"margin is {margin} and max_pixels {max_pixels}: they must be at least 0 and 1, respectively."
            )
        if scale is not None and not 1 <= scale < math.inf:
            raise ValueError(f"scale is {scale}; a super-resolution model enlarges images: pass a scale of at least 1.")
        self.size: Size = tuple(size) if isinstance(size, list) else size
        image_size((1, 1), self.size, scale)
        self.paths = [images] if isinstance(images, str) else list(images)
        self.scales = None if scales is None else (float(scales[0]), float(scales[1]))
        self.scale = (self.scales[1] if self.scales else 4.0) if scale is None and size is None else scale
        self.max_pixels, self.margin = max_pixels or MAX_PIXELS, margin
        self._signal_shape = tuple(signal_shape or (3, -1, -1))
        self._domain = domain or CellGrid.unit(2)
        self.files: list[LowResolutionFile] = []

    @property
    def spec(self) -> DataSpec:
        """Images of any size with positions and sizes as coordinates."""
        shape = self._signal_shape
        return DataSpec(self._domain, shape[0], (shape[0], -1, -1), self.modality, scales=self.scales)

    def setup(self, stage: str) -> None:
        """Read every image once, to determine its tiles and skip unreadable ones.

        Raises:
            ValueError: If no image can be read, an image would become smaller, or ``stage`` is not ``predict``.
        """
        if stage != "predict":
            raise ValueError(f"LowResolutionFiles supports only predict, not {stage}: use SuperResolution.")
        context = getattr(self.trainer and self.trainer.lightning_module, "context", None)
        margin = next((pixels for pixels in (self.margin, context) if pixels is not None), MARGIN)
        readable, self.skipped = readable_images(self.paths, read_layers)
        self.files, self.notes = [], {}
        for file in readable:
            size = enlarged_size(file.path, file.shape, self.size, self.scale)
            tiles = enlargements(file.shape, size, self.max_pixels, margin)
            self.files.append(LowResolutionFile(file.name, file.path, file.shape, size, tiles))
            self.notes[file.name] = "; ".join([*file.notes, *self._beyond(file.shape, size)])

    def _beyond(self, shape: tuple[int, ...], size: tuple[int, int]) -> list[str]:
        """Return a note for a result beyond the scales of training."""
        largest = max(target / extent for target, extent in zip(size, shape, strict=True))
        if self.scales is None or largest <= 1.001 * self.scales[1]:
            return []
        return [f"beyond the scales of training, {self.scales[0]:g} to {self.scales[1]:g}"]

    def source_of(self, name: str) -> dict[str, Any]:
        """Return the layers of an image that the result keeps, and its rows and columns."""
        [file] = [file for file in self.files if file.name == name]
        return read_layers(file.path)._asdict() | {"shape": file.shape}

    def predict_dataloader(self) -> DataLoader[EnlargementBatch]:
        """Return a loader of all tiles, image by image."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(self.files) < world_size:
            raise ValueError(f"{len(self.files)} image(s) for {world_size} devices: lower --trainer.devices.")
        sampler = WholeImages([len(file.tiles) for file in self.files], rank, world_size)
        tiles = _Tiles(self.files, self._signal_shape[0])
        return DataLoader(tiles, batch_size=1, sampler=sampler, num_workers=self.num_workers, collate_fn=_only)

    def to_coordinates(
        self, batch: Signal | EnlargementBatch, *, training: bool = False, step: int = 0
    ) -> CoordinateBatch:
        """Return the coordinate batch of a tile, whose query is unknown."""
        assert isinstance(batch, EnlargementBatch)
        tile, piece = batch.enlargement, batch.piece
        coords = enlarged_coords(self.spec.domain, tile, batch.shape, piece.shape).to(batch.values.device)
        shape = tuple(last - first for first, last in tile.result)
        name = f"{piece.name} {piece.box}"
        return CoordinateBatch(Observation(batch.values.float() / 255), Samples(coords), shape, [name], [piece])


def _only(tiles: list[EnlargementBatch]) -> EnlargementBatch:
    """Return the only tile of a batch."""
    [tile] = tiles
    return tile
