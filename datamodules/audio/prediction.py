"""Anybody's recordings of audio: files and folders, in tiles along time, for prediction."""

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
from datamodules.images.prediction import TileBatch, WholeImages, collate_tiles, unique_names
from datamodules.spec import DataSpec
from datamodules.storage.audio import audio_files, read_recording
from datamodules.storage.recordings import cut_recording, in_channels_of, measured, prepare_recording, recording_tiles
from datamodules.tiles import Box
from modalities.audio import Audio

_RATE = 16000  # where nobody says


class AudioFile(NamedTuple):
    """A recording that can be read.

    Attributes:
        name: Of its results: the path below the folder that was given, without its ending where that stays unique.
        path: The file.
        samples: Its length, at the rate of the model.
        tiles: Where its tiles lie.
    """

    name: str
    path: Path
    samples: int
    tiles: list[Box]


class RecordingTiles(Dataset[tuple[Tensor, Piece]]):
    """All tiles of recordings, recording by recording; the recording read last is kept.

    Args:
        files: The recordings.
        channels: Those of the model.
        sample_rate: That of the model.
    """

    def __init__(self, files: Sequence[AudioFile], channels: int, sample_rate: int) -> None:
        self.channels = channels
        self.sample_rate = sample_rate
        self.places = [(file, box) for file in files for box in file.tiles]
        self._last: tuple[Path, Tensor] | None = None

    def __len__(self) -> int:
        """Return the tiles of all recordings."""
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Piece]:
        """Return a tile ``(C, length)``, zeros beyond the end of its recording, and where it lies."""
        file, box = self.places[index]
        if self._last is None or self._last[0] != file.path:
            self._last = (file.path, prepare_recording(file.path, self.channels, self.sample_rate).values)
        return cut_recording(self._last[1], box), Piece(file.name, (file.samples,), box)


class AudioFiles(CoordinateDataModule):
    """Audio recordings for ``cli.py predict --audio``: as long as the signals of the model, or cut into tiles along time.

    Longer recordings are cut into tiles that overlap by a quarter; of shorter ones the padding counts nowhere. A recording
    that cannot be read is skipped with the reason, unless it is the only one. Of a folder, all files of audio are taken, in its
    subfolders too; not those in folders of earlier predictions. Two units of a coordinate are a second, as published.

    Args:
        audio: Files and folders.
        signal_shape: ``(C, samples)`` of the model; under the command line the checkpoint states it.
        sample_rate: Samples per second of the signals that the model was trained with; other recordings are resampled. On the
            command line the checkpoint states it; 16,000 if it does not.
        batch_size: Tiles per device and step.
        num_workers: Processes that load; 0 loads in the main process.

    Attributes:
        sample_rates: By name, the rates of the files, in samples per second.

    Raises:
        ValueError: If a number is out of range.
    """

    modality = Audio()

    def __init__(
        self,
        audio: Sequence[str] = (),
        signal_shape: Sequence[int] | None = None,
        sample_rate: int | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.sample_rate = _RATE if sample_rate is None else sample_rate
        if self.sample_rate < 1:
            raise ValueError(
                f"sample_rate is {sample_rate}; give the samples per second that the model was trained with."
            )
        self.paths = [audio] if isinstance(audio, str) else list(audio)
        self._signal_shape = tuple(signal_shape or ())
        self.files: list[AudioFile] = []
        self.sample_rates: dict[str, int] = {}

    @property
    def spec(self) -> DataSpec:
        """Audio of the length of the model's signals, two units of a coordinate being a second."""
        shape = self._signal_shape
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(
                f"signal_shape is {list(shape)}: recordings go to a model of audio, [channels, samples]. "
                "Name a checkpoint of such a model with --ckpt_path."
            )
        return audio_spec((shape[0], shape[1]), self.sample_rate, self.modality)

    def setup(self, stage: str) -> None:
        """Look at every recording.

        Raises:
            ValueError: If none can be read, or ``stage`` is not predict.
        """
        if stage != "predict":
            raise ValueError(f"AudioFiles serves prediction, not {stage}: choose another data module.")
        each: dict[Path, tuple[Path, Path]] = {}
        for path, place in (item for given in self.paths for item in audio_files(Path(given))):
            each.setdefault(path.absolute(), (path, place))  # named twice, taken once
        found = list(each.values())
        self.files, self.sample_rates, self.skipped, self.notes = [], {}, {}, {}
        for (path, place), name in zip(found, unique_names(found), strict=True):
            try:
                self._look(path, name, renamed=name != place.with_suffix("").as_posix())
            except ValueError as error:
                self.skipped[str(path)] = str(error)
        if not self.files:
            reasons = "".join(f"\n  {reason}" for reason in self.skipped.values())
            raise ValueError(
                f"No recording to predict from in {', '.join(self.paths) or 'nothing'}: name files or folders "
                f"with --audio.{reasons}"
            )

    def original(self, name: str) -> Tensor | None:
        """Return the recording of a name as it is in its file, with the channels of the model: ``(C, n)`` at its own rate."""
        [path] = [file.path for file in self.files if file.name == name]
        return in_channels_of(read_recording(path), self.spec.value_dim, path)[0]

    def source_of(self, name: str) -> dict[str, Any]:
        """Return the sampling rate of a file as ``sample_rate``, where it is known."""
        return {"sample_rate": self.sample_rates[name]} if name in self.sample_rates else {}

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Piece]]:
        """Return the loader of tiles, recording by recording."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(self.files) < world_size:
            raise ValueError(f"{len(self.files)} recording(s) for {world_size} devices: lower --trainer.devices.")
        sampler = WholeImages([len(file.tiles) for file in self.files], rank, world_size)
        return DataLoader(
            RecordingTiles(self.files, self.spec.value_dim, self.sample_rate),
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate_tiles,
        )

    def to_coordinates(self, batch: Signal | TileBatch, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated tiles, in which padding is masked."""
        assert isinstance(batch, TileBatch)
        names = [f"{piece.name} {piece.box}" for piece in batch.pieces]
        lengths = torch.tensor([measured(piece.box, piece.shape[0]) for piece in batch.pieces])
        collated = Signal(batch.values, names, 0, lengths)  # type: ignore[arg-type]
        return super().to_coordinates(collated)._replace(pieces=batch.pieces)

    def _look(self, path: Path, name: str, renamed: bool) -> None:
        """Read a recording and note what is known of it."""
        seen = prepare_recording(path, self.spec.value_dim, self.sample_rate)
        samples = seen.values.shape[1]
        self.files.append(AudioFile(name, path, samples, recording_tiles(samples, self.spec.signal_shape[-1])))
        self.sample_rates[name] = seen.sample_rate
        self.notes[name] = "; ".join([*seen.notes, *([f"from {path}"] if renamed else [])])
