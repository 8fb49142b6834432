"""Base classes of audio data sets; recordings are decoded on demand, and only as far as needed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from datamodules.audio.augmentation import AudioAugmentation
from datamodules.base import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.domain import Grid
from datamodules.loading import Augmentation
from datamodules.spec import DataSpec, Modality
from datamodules.storage.audio import in_channels, read_recording, read_resampled, recording_facts, resampled_frames
from datamodules.storage.folders import NamedFile, Split, report_skipped, splits_of
from datamodules.storage.parallel import unreadable_of
from modalities.audio import Audio

_HOW_TO_SKIP = "To skip unreadable recordings: --data.init_args.on_bad_file skip, which checks all of them at set-up."
_MAX_REASONS = 5  # unreadable files that an error message lists
_BLOCK = 1 << 22  # samples decoded at a time when a whole file is checked


def crop_start(total: int, length: int, generator: torch.Generator | None) -> int:
    """Return the first sample of a crop of ``length`` out of ``total`` samples: uniform, or 0 without a generator."""
    return 0 if generator is None else int(torch.randint(max(total - length, 0) + 1, (), generator=generator))


def pad_to(values: Tensor, length: int) -> tuple[Tensor, int]:
    """Zero-pad ``(C, n)`` to ``(C, length)``; also return the number of samples before the padding, -1 if there is none.

    Example:
        >>> pad_to(torch.ones(1, 2), 3)
        (tensor([[1., 1., 0.]]), 2)
    """
    missing = length - values.shape[-1]
    return (pad(values, (0, missing)), values.shape[-1]) if missing else (values, -1)


class AudioCrop(ABC):
    """Base class of random crops of recordings; a shorter recording is zero-padded.

    A subclass takes segments of a recording (`segment`) and names the result (`signal`).

    Args:
        samples: Length of a crop.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __call__(self, recording: Any, generator: torch.Generator | None = None) -> Signal:
        """Return a random crop of a recording or, without a generator, its beginning."""
        return self.signal(recording, self.segment(recording, self.samples, generator))

    @abstractmethod
    def segment(self, recording: Any, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Return a random segment ``(C, samples)`` or, without a generator, the first one; a short recording has less."""

    @abstractmethod
    def signal(self, recording: Any, values: Tensor) -> Signal:
        """Return values of a recording as a signal, padded to the length of a crop."""


class RandomAudioCrop(AudioCrop):
    """Crop of a recording in memory, which is a `Signal`; see `AudioCrop`."""

    def segment(self, recording: Signal, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Return a segment of at most ``samples`` samples."""
        start = crop_start(recording.values.shape[-1], samples, generator)
        return recording.values[:, start : start + samples]

    def signal(self, recording: Signal, values: Tensor) -> Signal:
        """Return ``recording`` with other values."""
        values, length = pad_to(values, self.samples)
        return recording._replace(values=values, length=length)


class CropReader(AudioCrop):
    """Crop of a recording that is read from its file, and only as far as needed; see `AudioCrop`.

    Args:
        samples: Length of a crop.
        sample_rate: Samples per second of a crop; other recordings are resampled.
        channels: Channels of a crop; 1 mixes all channels of a recording down.
        released: Whether to leave out the last second of every recording and to count padding as measured.
    """

    def __init__(self, samples: int, sample_rate: int, channels: int = 1, released: bool = False) -> None:
        super().__init__(samples)
        self.sample_rate = sample_rate
        self.channels = channels
        self.released = released

    def segment(self, recording: NamedFile, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Read a segment of at most ``(channels, samples)``.

        Raises:
            ValueError: If the file cannot be read; the message names it and the fix.
        """
        try:
            return self._read(recording.path, samples, generator)
        except ValueError as error:
            raise ValueError(f"{error} {_HOW_TO_SKIP}") from error

    def signal(self, recording: NamedFile, values: Tensor) -> Signal:
        """Return values of a file as a signal of its name."""
        values, length = pad_to(values, self.samples)
        return Signal(values, recording.name, length=-1 if self.released else length)

    def available_samples(self, frames: int, sample_rate: int) -> int:
        """Return the samples that crops of a recording of ``frames`` samples may use after resampling; negative if none."""
        return resampled_frames(frames, sample_rate, self.sample_rate) - (self.sample_rate if self.released else 0)

    def _read(self, path: Path, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return a segment of a file, empty if no sample is available."""
        facts = recording_facts(path)
        total = self.available_samples(facts.frames, facts.sample_rate)
        count = min(total, samples)
        if count <= 0:
            return torch.zeros(self.channels, 0)
        start = crop_start(total, samples, generator)
        return in_channels(read_resampled(path, facts, start, count, self.sample_rate), self.channels, path)


class AugmentedCrop:
    """Random crop of a recording, changed at random.

    Args:
        crop: Takes the crops.
        recordings: The recordings that may be mixed in.
        augment: The changes.
    """

    def __init__(self, crop: AudioCrop, recordings: Sequence[Any], augment: AudioAugmentation) -> None:
        self.crop = crop
        self.recordings = recordings
        self.augment = augment

    def __call__(self, recording: Any, generator: torch.Generator) -> Signal:
        """Return an augmented crop of a recording."""
        other = self.recordings[int(torch.randint(len(self.recordings), (), generator=generator))]
        segment, other_segment = (partial(self.crop.segment, item, generator=generator) for item in (recording, other))
        values = self.augment(self.crop.samples, segment, other_segment, generator)
        return self.crop.signal(recording, values)


class RecordingFiles(Dataset[NamedFile]):
    """Files of recordings for training; the augmentation reads a random crop of each.

    Args:
        files: The recordings.
    """

    def __init__(self, files: Sequence[NamedFile]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self.files)

    def __getitem__(self, index: int) -> NamedFile:
        """Return recording ``index``."""
        return self.files[index]


class FirstCrops(Dataset[Signal]):
    """The first seconds of recordings, read on access.

    Args:
        files: The recordings.
        reader: Reads the crops.
    """

    def __init__(self, files: Sequence[NamedFile], reader: CropReader) -> None:
        self.files = list(files)
        self.reader = reader

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self.files)

    def __getitem__(self, index: int) -> Signal:
        """Return the beginning of recording ``index``; raise a ``ValueError`` that names the file if it is unreadable."""
        return self.reader(self.files[index])


class AudioModule(CoordinateDataModule):
    """Audio as coordinate batches: time at 2 units per second, values in [-1, 1].

    Args:
        seconds: Length of a signal.
        sample_rate: Samples per second; other recordings are resampled.
        channels: 1 mixes all channels of a recording down by the mean; 2 requires recordings of two channels.
        augment: Random changes of training crops beside their position; None for none.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If an argument is out of range.
    """

    modality = Audio()

    def __init__(
        self,
        seconds: float = 1.0,
        sample_rate: int = 16000,
        channels: Literal[1, 2] = 1,
        augment: AudioAugmentation | None = None,
        **kwargs: Any,
    ) -> None:
        if not math.isfinite(seconds) or sample_rate < 1 or round(seconds * sample_rate) < 1 or channels not in (1, 2):
            raise ValueError(
                f"seconds is {seconds}, sample_rate {sample_rate}, channels {channels}: a signal must have at least 1 sample "
                "and 1 or 2 channels."
            )
        super().__init__(**kwargs)
        self.samples = round(seconds * sample_rate)
        self.sample_rate = sample_rate
        self.channels = channels
        self.augment = augment

    @property
    def spec(self) -> DataSpec:
        """Audio on a grid of time, 2 units per second around 0: the domain of 3 seconds is ``[-3, 3]``."""
        return audio_spec((self.channels, self.samples), self.sample_rate, self.modality, self.num_instances)

    def _training_crop(self, crop: AudioCrop, recordings: Sequence[Any]) -> Augmentation:
        """Return the augmentation of training items: a random crop, with the changes of ``augment``."""
        if self.augment is None:
            return crop
        self.notes["augmentation"] = str(self.augment)
        return AugmentedCrop(crop, recordings, self.augment)


class RecordingSet(AudioModule):
    """Audio files, cropped to equal length for training and evaluation.

    A subclass lists the files of a split (`files`) and may state how many there should be (`count`). Training takes a new
    random crop of every recording in every epoch; validation and test take its first seconds, as published. Only the crop is
    decoded. Shorter recordings are zero-padded. The padding is masked: losses and metrics ignore it, but encoders see it.
    Silent recordings are kept; their PSNR is high.

    ``cropping: released`` crops as the released code does: it leaves out the last second of every recording, so that little
    or nothing is left of short ones, and counts the padding as measured. Padding is easy to reconstruct and raises the PSNR, so
    report the cropping with every result.

    Args:
        root: Folder of the data.
        cropping: ``whole`` crops from complete recordings; ``released`` leaves out their last second and counts the padding of
            short ones, for comparison with the released code.
        on_bad_file: ``raise`` stops with an error when an unreadable recording is encountered; ``skip`` reads all recordings at
            set-up, leaves out the unreadable ones and reports them.
        partial: Whether a split may have fewer or more recordings than were published.
        kwargs: Arguments of `AudioModule`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if recordings are missing or unreadable.
    """

    train_set: Dataset[Any]  # of files, which the augmentation converts to signals

    def __init__(
        self,
        root: str = "data",
        *,
        cropping: Literal["whole", "released"] = "whole",
        on_bad_file: Literal["raise", "skip"] = "raise",
        partial: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.on_bad_file = on_bad_file
        self.partial = partial
        self.reader = CropReader(self.samples, self.sample_rate, self.channels, cropping == "released")

    @abstractmethod
    def files(self, split: Split) -> list[NamedFile]:
        """Return the existing recordings of a split in a fixed order.

        Raises:
            ValueError: If their folder is missing; the message states how to get it.
        """

    def count(self, split: Split) -> int | None:
        """Return the published number of recordings of a split; None if unknown."""
        return None

    def fetch(self, splits: Sequence[Split]) -> None:
        """Download missing data of the splits, if the data set can be downloaded."""

    def prepare_data(self) -> None:
        """Download the data of the stage, or of all splits without a trainer, on one process per machine."""
        self.fetch(splits_of(self.trainer.state.fn) if self.trainer else ("train", "val", "test"))

    def setup(self, stage: str) -> None:
        """Fill the splits of a stage.

        Raises:
            ValueError: If a split has no recordings, not the published number, or, with ``on_bad_file: skip``, no readable
                ones.
        """
        for split in splits_of(stage):
            files = self._usable_files(split)
            if split == "train":
                self.train_set = RecordingFiles(files)
                self.augmentation = self._training_crop(self.reader, files)
            else:
                setattr(self, f"{split}_set", FirstCrops(files, self.reader))
        if self.skipped:
            report_skipped(self.skipped, "recordings")

    def _usable_files(self, split: Split) -> list[NamedFile]:
        """Return the recordings of a split without skipped ones."""
        files = self.files(split)
        self._check_count(files, split)
        if self.on_bad_file == "raise":
            return files
        skipped = unreadable_recordings(files, self.sample_rate, self.channels)
        if len(skipped) == len(files):
            reasons = "".join(f"\n  {reason}" for reason in list(skipped.values())[:_MAX_REASONS])
            raise ValueError(f"None of the {len(files):,} recordings of the split {split} can be read:{reasons}")
        self.skipped |= skipped
        return [file for file in files if str(file.path) not in skipped]

    def _check_count(self, files: Sequence[NamedFile], split: Split) -> None:
        """Raise an error if a split is empty or does not have the published number of recordings."""
        expected, name = self.count(split), type(self).__name__
        if not files:
            raise ValueError(f"{name} has no recordings of the split {split} in {self.root}: {self._fix(split)}")
        if expected not in (None, len(files)) and not self.partial:
            raise ValueError(
                f"{name} has {len(files):,} recordings of the split {split} in {self.root}, but {expected:,} were published: "
                f"{self._fix(split)} To use the existing ones: --data.init_args.partial true."
            )

    def _fix(self, split: Split) -> str:
        """Return the instruction that follows the message on missing recordings."""
        return "set another folder with --data.init_args.root."


def audio_spec(
    signal_shape: tuple[int, int], sample_rate: int, modality: Modality, num_instances: int | None = None
) -> DataSpec:
    """Return the spec of audio: time is the only axis, at 2 units per second around 0, as published.

    Args:
        signal_shape: Channels and samples.
        sample_rate: Samples per second.
        modality: Modality of audio.
        num_instances: Number of training instances.

    Example:
        >>> audio_spec((1, 48000), 16000, None).domain
        Grid(ranges=((-3.0, 3.0),))
    """
    channels, samples = signal_shape
    domain = Grid(((-samples / sample_rate, samples / sample_rate),))
    return DataSpec(domain, channels, (channels, samples), modality, num_instances, sample_rate)


def unreadable_recordings(files: Sequence[NamedFile], sample_rate: int, channels: int) -> dict[str, str]:
    """Read all recordings and return, by path, the error messages of unreadable ones.

    Args:
        files: The recordings.
        sample_rate: Samples per second after resampling.
        channels: Channels that crops are to have; 1 accepts any recording.
    """
    return unreadable_of(files, partial(_reason, sample_rate=sample_rate, channels=channels), "reading recordings")


def _reason(file: NamedFile, sample_rate: int, channels: int) -> str | None:
    """Return why a recording cannot be read, or None."""
    try:
        facts = recording_facts(file.path)
        in_channels(read_resampled(file.path, facts, 0, 1, sample_rate), channels, file.path)
        for start in range(0, facts.frames, _BLOCK):
            read_recording(file.path, start, min(_BLOCK, facts.frames - start))
    except ValueError as error:
        return str(error)
    return None
