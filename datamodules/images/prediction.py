"""Anybody's images: files and folders, whole or in tiles, for prediction."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Piece, Samples, Signal
from datamodules.domain import Grid
from datamodules.spec import DataSpec
from datamodules.storage.images import LoadedImage, cut, image_files, read_image
from datamodules.tiles import Box, cover, whole
from modalities.images import Images

_LONGEST_NAME = 200  # bytes; a file name may have 255, with .safetensors.part and a number


class ImageFile(NamedTuple):
    """An image that can be read.

    Attributes:
        name: Of its results: the path below the folder that was given, without its ending where that stays unique.
        path: The file.
        shape: Rows and columns, upright.
        tiles: Where its tiles lie, one box if it is taken whole.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    tiles: list[Box]


class TileBatch(NamedTuple):
    """Tiles of images.

    Attributes:
        values: ``(B, 3, size, size)`` uint8.
        pieces: Where each lies in its image.
    """

    values: Tensor
    pieces: list[Piece]


class Tiles(Dataset[tuple[Tensor, Piece]]):
    """All tiles of images, image by image; the image read last is kept.

    Args:
        files: The images.
        size: Pixels along each side of a tile as it is seen.
    """

    def __init__(self, files: Sequence[ImageFile], size: int) -> None:
        self.size = size
        self.places = [(file, box) for file in files for box in file.tiles]
        self._last: tuple[Path, LoadedImage] | None = None

    def __len__(self) -> int:
        """Return the tiles of all images."""
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Piece]:
        """Return a tile ``(3, size, size)`` and where it lies."""
        file, box = self.places[index]
        if self._last is None or self._last[0] != file.path:
            self._last = (file.path, read_image(file.path))
        values = cut(self._last[1].pixels, box, self.size)
        return values, Piece(file.name, file.shape, box)


class WholeImages(DistributedSampler[int]):
    """Shares images between processes so that all tiles of one are with one process, in order.

    Args:
        counts: Tiles of every image.
        rank: Of this process.
        world_size: Processes.
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
        """Return the tiles of this process."""
        return len(self.indices)


class ImageFiles(CoordinateDataModule):
    """Anybody's images, for ``cli.py predict``: each squeezed whole into the model's square, or cut into tiles.

    An image that cannot be read is skipped with the reason, unless it is the only one. Of a folder, all files with the
    ending of an image are taken, in its subfolders too; not hidden ones, nor folders of earlier predictions.

    Args:
        images: Files and folders.
        signal_shape: ``(3, S, S)`` of the model; under the command line the checkpoint states it.
        tile: Whether images are cut into overlapping tiles, for detail, instead of being squeezed whole.
        tile_size: Pixels of the image along each side of a tile; ``S`` if None.
        detail: Pixels that refinement fits, and that PSNR is measured on, per pixel that the model sees, along each axis.
        batch_size: Tiles, or whole images, per device and step.
        num_workers: Processes that load; 0 loads in the main process.

    Raises:
        ValueError: If a number is out of range.
    """

    modality = Images()

    def __init__(
        self,
        images: Sequence[str] = (),
        signal_shape: Sequence[int] | None = None,
        tile: bool = False,
        tile_size: int | None = None,
        detail: int = 1,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        if detail < 1 or (tile_size is not None and tile_size < 2):
            raise ValueError(
                f"detail is {detail}, tile_size {tile_size}; detail is at least 1, a tile at least 2 pixels."
            )
        if tile_size is not None and not tile:
            raise ValueError(f"tile_size is {tile_size}, but images are taken whole: add --tile.")
        self.paths = [images] if isinstance(images, str) else list(images)
        self._signal_shape = tuple(signal_shape or ())
        self.tile = tile
        self.tile_size = tile_size
        self.detail = detail
        self.files: list[ImageFile] = []

    @property
    def spec(self) -> DataSpec:
        """Square images in colour of the size of the model, on ``[-1, 1]`` along both axes."""
        shape = self._signal_shape
        if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
            raise ValueError(
                f"signal_shape is {list(shape)}: images go to a model of square colour images, [3, S, S]. "
                "Name a checkpoint of such a model."
            )
        return DataSpec(Grid.unit(2), 3, shape, self.modality)

    def setup(self, stage: str) -> None:
        """Look at every image.

        Raises:
            ValueError: If none can be read, or ``stage`` is not predict.
        """
        if stage != "predict":
            raise ValueError(f"ImageFiles serves prediction, not {stage}: choose another data module.")
        each: dict[Path, tuple[Path, Path]] = {}
        for path, place in (item for given in self.paths for item in image_files(Path(given))):
            each.setdefault(path.absolute(), (path, place))  # named twice, taken once
        found = list(each.values())
        self.files, self.skipped, self.notes = [], {}, {}
        for (path, place), name in zip(found, unique_names(found), strict=True):
            try:
                pixels, notes = read_image(path)
            except ValueError as error:
                self.skipped[str(path)] = str(error)
                continue
            shape = tuple(pixels.shape[1:])
            self.files.append(ImageFile(name, path, shape, self._tiles(shape)))
            renamed = [] if name == place.with_suffix("").as_posix() else [f"from {path}"]
            self.notes[name] = "; ".join([*notes, *renamed])
        if not self.files:
            reasons = "".join(f"\n  {reason}" for reason in self.skipped.values())
            raise ValueError(
                f"No image to predict from in {', '.join(self.paths) or 'nothing'}: name files or folders "
                f"with --images.{reasons}"
            )

    def original(self, name: str) -> Tensor | None:
        """Return the image of a name as it is in its file: ``(3, H, W)`` uint8."""
        [path] = [file.path for file in self.files if file.name == name]
        return read_image(path).pixels

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Piece]]:
        """Return the loader of tiles, image by image."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(self.files) < world_size:
            raise ValueError(f"{len(self.files)} to_image(s) for {world_size} devices: lower --trainer.devices.")
        sampler = WholeImages([len(file.tiles) for file in self.files], rank, world_size)
        return DataLoader(
            Tiles(self.files, self.spec.signal_shape[-1] * self.detail),
            batch_size=self.batch_size,
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

    def _tiles(self, shape: tuple[int, ...]) -> list[Box]:
        """Return the boxes of an image."""
        return cover(shape, self.tile_size or self.spec.signal_shape[-1]) if self.tile else [whole(shape)]


def collate_tiles(tiles: list[tuple[Tensor, Piece]]) -> TileBatch:
    """Return tiles as a batch."""
    return TileBatch(torch.stack([values for values, _ in tiles]), [piece for _, piece in tiles])


def unique_names(found: Sequence[tuple[Path, Path]]) -> list[str]:
    """Return a name for every image: without its ending where no other has the same, else numbered.

    Names have room for the endings of results, are UTF-8, and none is the name of another's error image.
    """
    bare = [_writable(place.with_suffix("")) for _, place in found]
    stems, seen, unique = Counter(bare), set[str](), []
    for (_, place), stem in zip(found, bare, strict=True):
        alone = stems[stem] == 1 and not stem.endswith(".error")
        wanted = stem if alone else _writable(place.with_name(place.name.replace(".", "_")))
        numbered = (f"{wanted}_{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([wanted], numbered) if name not in seen)
        seen.add(name)
        unique.append(name)
    return unique


def _writable(place: Path) -> str:
    """Return a place as a name of results: its last part cut where endings would make it too long, all of it UTF-8."""
    name = place.name.encode("utf-8", "replace")[:_LONGEST_NAME].decode("utf-8", "ignore")
    return place.with_name(name).as_posix().encode("utf-8", "replace").decode("utf-8")
