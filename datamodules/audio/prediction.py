"""Audio files and folders for prediction: whole, or cut into tiles along time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.audio.base import audio_spec
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Piece, Signal
from datamodules.domain import Domain, Grid
from datamodules.images.prediction import TileBatch, WholeImages, collate_tiles, unique_names
from datamodules.spec import DataSpec
from datamodules.storage.audio import audio_files, read_recording
from datamodules.storage.recordings import (
    MAX_SECONDS,
    cut_recording,
    in_channels_of,
    prepare_recording,
    recording_tiles,
    samples_in_tile,
)
from datamodules.tiles import Box, split
from modalities.audio import Audio

_DEFAULT_SAMPLE_RATE = 16000


class AudioFile(NamedTuple):
    """A readable recording.

    Attributes:
        name: Name of its results: its path relative to the folder, without the extension if that is unique.
        path: The file.
        samples: Samples per channel at the sampling rate of the model.
        tiles: Boxes of its tiles.
    """

    name: str
    path: Path
    samples: int
    tiles: list[Box]


class RecordingTiles(Dataset[tuple[Tensor, Piece]]):
    """All tiles of recordings, recording by recording; the latest recording is kept in memory.

    Args:
        files: The recordings.
        channels: Channels of the model.
        sample_rate: Samples per second of the model.
    """

    def __init__(self, files: Sequence[AudioFile], channels: int, sample_rate: int) -> None:
        self.channels = channels
        self.sample_rate = sample_rate
        self.tiles = [(file, box) for file in files for box in file.tiles]
        self._latest: tuple[Path, Tensor] | None = None

    def __len__(self) -> int:
        """Return the number of tiles of all recordings."""
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, Piece]:
        """Return a tile ``(C, length)``, zero-padded past the end of its recording, and its position."""
        file, box = self.tiles[index]
        if self._latest is None or self._latest[0] != file.path:
            self._latest = (file.path, prepare_recording(file.path, self.channels, self.sample_rate).values)
        return cut_recording(self._latest[1], box), Piece(file.name, (file.samples,), box)


class AudioFiles(CoordinateDataModule):
    """Audio files for ``cli.py predict --audio``: encoded whole by a model of any length, else in tiles of its signal length.

    A model of any length, such as `composers.PatchIPC`, encodes every recording in one pass; a recording of more than
    ``max_seconds`` is split into as few tiles as possible, which overlap by a sixteenth and are blended, so that memory is
    bounded. For a model of one length, longer recordings are cut into tiles that overlap by a quarter; shorter ones are
    padded, and the padding is masked. An unreadable recording is skipped and reported; it is an error if no recording is
    readable. Folders are searched recursively for audio files, except folders of earlier predictions.

    The domain of a model of one length has two units per second, as in the published settings. That of a model of any length is
    the domain of training, over the whole recording.

    Args:
        audio: Files and folders.
        signal_shape: ``(C, samples)`` of the model, or ``(C, -1)`` of a model of any length. The command line takes it from the
            checkpoint.
        sample_rate: Samples per second of the signals that the model was trained with; other recordings are resampled. The
            command line takes it from the checkpoint; 16,000 if the checkpoint does not state it.
        max_seconds: Seconds up to which a model of any length encodes a recording whole; 60 if None.
        domain: Domain of a model of any length, ``[-1, 1]`` if None. The command line takes it from the checkpoint.
        patch_size: Samples of a patch of the model, which the length of tiles of long recordings is a multiple of; 1 if None.
            The command line takes it from the checkpoint.
        batch_size: Tiles per device and step; a model of any length takes one at a time.
        num_workers: Number of worker processes; 0 loads in the main process.

    Attributes:
        sample_rates: Samples per second of the files, by name.

    Raises:
        ValueError: If an argument is out of range.
    """

    modality = Audio()

    def __init__(
        self,
        audio: Sequence[str] = (),
        signal_shape: Sequence[int] | None = None,
        sample_rate: int | None = None,
        max_seconds: float | None = None,
        domain: Domain | None = None,
        patch_size: int | Sequence[int] | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.sample_rate = _DEFAULT_SAMPLE_RATE if sample_rate is None else sample_rate
        if self.sample_rate < 1:
            raise ValueError(
                f"sample_rate is {sample_rate}; it must be at least 1, the samples per second that the model was trained with."
            )
        self.paths = [audio] if isinstance(audio, str) else list(audio)
        self._signal_shape = tuple(signal_shape or ())
        self.any_length = -1 in self._signal_shape[1:]
        if max_seconds is not None and (not self.any_length or not max_seconds > 0):
            raise ValueError(
                f"max_seconds is {max_seconds}; it must be positive, and applies to a model of any length only: omit it for "
                f"signal_shape {list(self._signal_shape)}."
            )
        self.max_seconds = MAX_SECONDS if max_seconds is None else max_seconds
        self.patch_size = (patch_size,) if isinstance(patch_size, int) else tuple(patch_size or (1,))
        self._domain = domain or Grid.unit(1)
        self.files: list[AudioFile] = []
        self.sample_rates: dict[str, int] = {}

    @property
    def spec(self) -> DataSpec:
        """Audio of the signal length of the model, of which a second is two units of the coordinate; or of any length."""
        shape = self._signal_shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] < 1 != -shape[1]:
            raise ValueError(
                f"signal_shape is {list(shape)}; a model of audio has [channels, samples], with -1 samples for any length: "
                "pass the checkpoint of one with --ckpt_path."
            )
        if self.any_length:
            return DataSpec(self._domain, shape[0], shape, self.modality, sample_rate=self.sample_rate)
        return audio_spec((shape[0], shape[1]), self.sample_rate, self.modality)

    def setup(self, stage: str) -> None:
        """Read every recording once to find its length and to skip unreadable ones.

        Raises:
            ValueError: If no recording can be read, or ``stage`` is not ``predict``.
        """
        if stage != "predict":
            raise ValueError(f"AudioFiles supports prediction only, not {stage}: use another data module.")
        unique: dict[Path, tuple[Path, Path]] = {}  # a file that is named twice is read once
        for path in self.paths:
            for file, relative in audio_files(Path(path)):
                unique.setdefault(file.absolute(), (file, relative))
        files = list(unique.values())
        self.files, self.sample_rates, self.skipped, self.notes = [], {}, {}, {}
        for (file, relative), name in zip(files, unique_names(files), strict=True):
            try:
                self._add(file, name, renamed=name != relative.with_suffix("").as_posix())
            except ValueError as error:
                self.skipped[str(file)] = str(error)
        if not self.files:
            reasons = "".join(f"\n  {reason}" for reason in self.skipped.values())
            raise ValueError(
                f"No readable recording in {', '.join(self.paths) or 'an empty list of paths'}: pass audio files or folders "
                f"with --audio.{reasons}"
            )

    def original(self, name: str) -> Tensor | None:
        """Return a recording ``(C, n)`` at the sampling rate of its file, with the channels of the model."""
        [path] = [file.path for file in self.files if file.name == name]
        return in_channels_of(read_recording(path), self.spec.value_dim, path)[0]

    def source_of(self, name: str) -> dict[str, Any]:
        """Return the sampling rate of a file as ``sample_rate``, if known."""
        return {"sample_rate": self.sample_rates[name]} if name in self.sample_rates else {}

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Piece]]:
        """Return the loader of tiles, recording by recording."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(self.files) < world_size:
            raise ValueError(
                f"There are {len(self.files)} recording(s) for {world_size} devices: reduce --trainer.devices."
            )
        sampler = WholeImages([len(file.tiles) for file in self.files], rank, world_size)
        return DataLoader(
            RecordingTiles(self.files, self.spec.value_dim, self.sample_rate),
            batch_size=1 if self.any_length else self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate_tiles,
        )

    def to_coordinates(self, batch: Signal | TileBatch, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated tiles, with their padding masked."""
        assert isinstance(batch, TileBatch)
        names = [f"{piece.name} {piece.box}" for piece in batch.pieces]
        lengths = torch.tensor([samples_in_tile(piece.box, piece.shape[0]) for piece in batch.pieces])
        collated = Signal(batch.values, names, 0, lengths)  # type: ignore[arg-type]
        return super().to_coordinates(collated)._replace(pieces=batch.pieces)

    def _add(self, path: Path, name: str, renamed: bool) -> None:
        """Read a recording and add it to the files."""
        recording = prepare_recording(path, self.spec.value_dim, self.sample_rate)
        samples = recording.values.shape[1]
        tiles, split_up = self._tiles(samples)
        self.files.append(AudioFile(name, path, samples, tiles))
        self.sample_rates[name] = recording.original_sample_rate
        self.notes[name] = "; ".join([*recording.notes, *split_up, *([f"from {path}"] if renamed else [])])

    def _tiles(self, samples: int) -> tuple[list[Box], list[str]]:
        """Return the tiles of a recording, and a note if it is too long to be encoded whole."""
        if not self.any_length:
            return recording_tiles(samples, self.spec.signal_shape[-1]), []
        tiles = split((samples,), round(self.max_seconds * self.sample_rate), self.patch_size)
        if len(tiles) == 1:
            return tiles, []
        [(start, stop)] = tiles[0]
        seconds = (stop - start) / self.sample_rate
        return tiles, [f"{len(tiles)} tiles of {seconds:.4g} s, above max_seconds {self.max_seconds:g}"]
