"""Prediction on image files and folders: whole, resized to a square, or split into tiles."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Piece, Samples, Signal
from datamodules.domain import Domain, Grid
from datamodules.spec import DataSpec
from datamodules.storage.images import Layers, LoadedImage, cut, image_files, read_image
from datamodules.tiles import MAX_PIXELS, TILE_SIZE, Box, cover, cut_out, split, whole
from modalities.images import Images

_MAX_NAME_BYTES = 200  # file systems allow 255, which must include .safetensors.part and a number


class ImageFile(NamedTuple):
    """A readable image.

    Attributes:
        name: Name of its results: the path relative to the input folder, without the extension if that is unique.
        path: Path of the file.
        shape: Rows and columns of the upright image.
        tiles: Boxes of its tiles; a single box if it is not tiled.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    tiles: list[Box]


class ReadableImage(NamedTuple):
    """An image that can be read.

    Attributes:
        name: Name of its results.
        path: Path of the file.
        shape: Rows and columns of the upright image.
        notes: Conversions, and the path where the name differs from it, as text for the user.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    notes: tuple[str, ...]


class TileBatch(NamedTuple):
    """A batch of image tiles.

    Attributes:
        values: ``(B, 3, size, size)`` uint8; ``(1, 3, rows, columns)`` at their own resolution.
        pieces: Position of every tile in its image.
    """

    values: Tensor
    pieces: list[Piece]


class Tiles(Dataset[tuple[Tensor, Piece]]):
    """Tiles of all images, image by image. The last image read is kept in memory.

    Args:
        files: The images.
        size: Pixels along each side of a tile after resizing; no resizing if None.
    """

    def __init__(self, files: Sequence[ImageFile], size: int | None) -> None:
        self.size = size
        self.places = [(file, box) for file in files for box in file.tiles]
        self._last: tuple[Path, LoadedImage] | None = None

    def __len__(self) -> int:
        """Return the number of tiles of all images."""
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Piece]:
        """Return a tile ``(3, size, size)``, or ``(3, rows, columns)`` without resizing, and its position."""
        file, box = self.places[index]
        if self._last is None or self._last[0] != file.path:
            self._last = (file.path, read_image(file.path))
        pixels = self._last[1].pixels
        values = cut_out(pixels, box) if self.size is None else cut(pixels, box, self.size)
        return values, Piece(file.name, file.shape, box)


class WholeImages(DistributedSampler[int]):
    """Distribute images over processes such that one process gets all tiles of an image, in order.

    Args:
        counts: Number of tiles of every image.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, counts: Sequence[int], rank: int, world_size: int) -> None:
        super().__init__(range(sum(counts)), num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        starts = [sum(counts[:index]) for index in range(len(counts))]
        self.indices = [
            starts[image] + tile for image in range(rank, len(counts), world_size) for tile in range(counts[image])
        ]

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this process."""
        return iter(self.indices)

    def __len__(self) -> int:
        """Return the number of tiles of this process."""
        return len(self.indices)


class ImageFiles(CoordinateDataModule):
    """Image files for ``cli.py predict``: encoded whole by a model of any size, resized to its input by another, or in tiles.

    A model of any size, such as `composers.PatchIPC`, encodes every image at its own resolution. An image of more than
    ``max_pixels`` is split into as few tiles as possible, which overlap by a sixteenth and are blended, so that memory is
    bounded. A model of one size takes images resized to its square input, or tiles.

    Unreadable images are skipped and reported; it is an error if no image is readable. Folders are searched recursively for
    files with an image extension. Hidden files and output folders of earlier predictions are ignored.

    Args:
        images: Image files and folders.
        signal_shape: Input shape ``(3, S, S)`` of the model, or ``(3, -1, -1)`` of a model of any size. On the command line it
            is read from the checkpoint.
        tile: Whether to split images into overlapping tiles. With a model of one size this keeps details, because images are
            not resized to a square as a whole.
        tile_size: Pixels of the image along each side of a tile; if None, ``S``, or 512 for a model of any size.
        max_pixels: Pixels up to which a model of any size encodes an image whole; 4,194,304 if None, which takes about 4 GB.
        detail: Resolution of refinement and PSNR: pixels along each axis per input pixel of the model.
        domain: Domain of the coordinates, ``[-1, 1]`` along both axes if None. On the command line it is read from the
            checkpoint.
        patch_size: Pixels along each side of a patch of the model, or ``[rows, columns]``, which the sides of tiles of large
            images are multiples of; 1 if None. On the command line it is read from the checkpoint.
        batch_size: Number of tiles, or of untiled images, per device and step; a model of any size takes one at a time.
        num_workers: Number of loader processes; 0 loads in the main process.

    Raises:
        ValueError: If an argument is out of range.
    """

    modality = Images()

    def __init__(
        self,
        images: Sequence[str] = (),
        signal_shape: Sequence[int] | None = None,
        tile: bool = False,
        tile_size: int | None = None,
        detail: int = 1,
        max_pixels: int | None = None,
        domain: Domain | None = None,
        patch_size: int | Sequence[int] | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        if detail < 1 or (tile_size is not None and tile_size < 2):
            raise ValueError(
                f"detail is {detail} and tile_size is {tile_size}, but they must be at least 1 and 2, respectively."
            )
        if tile_size is not None and not tile:
            raise ValueError(f"tile_size is {tile_size}, but images are not tiled: add --tile.")
        self.paths = [images] if isinstance(images, str) else list(images)
        self._signal_shape = tuple(signal_shape or ())
        self.any_size = -1 in self._signal_shape[1:]
        _check_whole(self.any_size, tile, detail, max_pixels)
        self.tile = tile
        self.tile_size = tile_size
        self.detail = detail
        self.max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        self.patch_size = (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size or (1, 1))
        self._domain = domain or Grid.unit(2)
        self.files: list[ImageFile] = []

    @property
    def spec(self) -> DataSpec:
        """Square colour images of the model's input size, or colour images of any size."""
        shape = self._signal_shape
        if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
            raise ValueError(
                f"signal_shape is {list(shape)}, but images require a model of square colour images, [3, S, S], or of colour "
                "images of any size, [3, -1, -1]: pass the checkpoint of such a model."
            )
        return DataSpec(self._domain, 3, shape, self.modality)

    def setup(self, stage: str) -> None:
        """Read every image once, to determine its tiles and skip unreadable ones.

        Raises:
            ValueError: If no image can be read, or ``stage`` is not ``predict``.
        """
        if stage != "predict":
            raise ValueError(f"ImageFiles supports only predict, not {stage}: use another data module.")
        readable, self.skipped = readable_images(self.paths)
        self.files, self.notes = [], {}
        for name, path, shape, notes in readable:
            tiles, split_up = self._tiles(shape)
            self.files.append(ImageFile(name, path, shape, tiles))
            self.notes[name] = "; ".join([*notes, *split_up])

    def _tiles(self, shape: tuple[int, ...]) -> tuple[list[Box], list[str]]:
        """Return the tiles of an image, and a note if it is too large to be encoded whole."""
        if self.tile:
            size = TILE_SIZE if self.any_size else self.spec.signal_shape[-1]
            return cover(shape, self.tile_size or size), []
        tiles = split(shape, self.max_pixels, self.patch_size) if self.any_size else [whole(shape)]
        if len(tiles) == 1:
            return tiles, []
        rows, columns = (stop - start for start, stop in tiles[0])
        return tiles, [f"{len(tiles)} tiles of {rows} x {columns}, above max_pixels {self.max_pixels:,}"]

    def original(self, name: str) -> Tensor | None:
        """Return the image with a name at its original resolution: ``(3, H, W)`` uint8."""
        [path] = [file.path for file in self.files if file.name == name]
        return read_image(path).pixels

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Piece]]:
        """Return a loader of all tiles, image by image."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(self.files) < world_size:
            raise ValueError(f"{len(self.files)} image(s) for {world_size} devices: lower --trainer.devices.")
        sampler = WholeImages([len(file.tiles) for file in self.files], rank, world_size)
        return DataLoader(
            Tiles(self.files, None if self.any_size else self.spec.signal_shape[-1] * self.detail),
            batch_size=1 if self.any_size else self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate_tiles,
        )

    def to_coordinates(self, batch: Signal | TileBatch, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated tiles."""
        assert isinstance(batch, TileBatch)
        values = batch.values.float() / 255  # (B, 3, d S, d S)
        shape = tuple(values.shape[2:])
        samples = Samples(self.spec.domain.coords(shape, device=values.device), values.flatten(2).mT)
        names = [f"{piece.name} {piece.box}" for piece in batch.pieces]
        return CoordinateBatch(
            Observation(avg_pool2d(values, self.detail), samples), samples, shape, names, batch.pieces
        )


def _check_whole(any_size: bool, tile: bool, detail: int, max_pixels: int | None) -> None:
    """Raise an error for arguments that do not apply to a model of any size, or to another."""
    if any_size and detail > 1:
        raise ValueError(
            f"detail is {detail}, but a model of any size encodes images at their own resolution: omit it."
        )
    if max_pixels is not None and (tile or not any_size):
        reason = "--tile sets the tiles" if tile else "the model resizes images to its input size"
        raise ValueError(f"max_pixels is {max_pixels}, but {reason}: omit one of them, or use a model of any size.")
    if max_pixels is not None and max_pixels < 1:
        raise ValueError(f"max_pixels is {max_pixels}; it must be at least 1.")


def readable_images(
    paths: Sequence[str], read: Callable[[Path], LoadedImage | Layers] = read_image
) -> tuple[list[ReadableImage], dict[str, str]]:
    """Read the images in files and folders once.

    Args:
        paths: Image files and folders, which are searched recursively.
        read: Reads an image file.

    Returns:
        The readable images, each once, and the reasons why others cannot be read by path.

    Raises:
        ValueError: If no image can be read.
    """
    unique: dict[Path, tuple[Path, Path]] = {}
    for root in paths:
        for path, relative in image_files(Path(root)):
            unique.setdefault(path.absolute(), (path, relative))
    files = list(unique.values())
    readable, skipped = list[ReadableImage](), dict[str, str]()
    for (path, relative), name in zip(files, unique_names(files), strict=True):
        try:
            image = read(path)
        except ValueError as error:
            skipped[str(path)] = str(error)
            continue
        renamed = () if name == relative.with_suffix("").as_posix() else (f"from {path}",)
        readable.append(ReadableImage(name, path, tuple(image.pixels.shape[1:]), (*image.notes, *renamed)))
    if not readable:
        reasons = "".join(f"\n  {reason}" for reason in skipped.values())
        raise ValueError(
            f"No readable image in {', '.join(paths) or 'an empty list'}: pass image files or folders with --images.{reasons}"
        )
    return readable, skipped


def collate_tiles(tiles: list[tuple[Tensor, Piece]]) -> TileBatch:
    """Collate tiles into a batch."""
    return TileBatch(torch.stack([values for values, _ in tiles]), [piece for _, piece in tiles])


def unique_names(files: Sequence[tuple[Path, Path]]) -> list[str]:
    """Return a unique name for the results of every file.

    The name is the relative path without its extension if that is unique, else with the extension appended and a number if
    needed. Names are valid UTF-8, leave room for the extensions of results, and do not collide with error images.

    Args:
        files: Path and relative path of every file.
    """
    stems = [_output_name(relative.with_suffix("")) for _, relative in files]
    counts, names = Counter(stems), dict[str, None]()
    for (_, relative), stem in zip(files, stems, strict=True):
        is_unique = counts[stem] == 1 and not stem.endswith(".error")
        base = stem if is_unique else _output_name(relative.with_name(relative.name.replace(".", "_")))
        numbered = (f"{base}_{number}" for number in itertools.count(2))
        names[next(name for name in itertools.chain([base], numbered) if name not in names)] = None
    return list(names)


def _output_name(relative: Path) -> str:
    """Return a relative path as valid UTF-8, its last component truncated to leave room for extensions."""
    name = relative.name.encode("utf-8", "replace")[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
    return relative.with_name(name).as_posix().encode("utf-8", "replace").decode("utf-8")
