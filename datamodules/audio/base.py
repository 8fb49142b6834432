"""What data sets of audio have in common: recordings in files, of which no more is decoded than is heard."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from datamodules.base import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.domain import Grid
from datamodules.spec import DataSpec, Modality
from datamodules.storage.audio import in_channels, read_recording, read_resampled, recording_facts, resampled_frames
from datamodules.storage.folders import NamedFile, Split, splits_of, tell_left_out
from datamodules.storage.parallel import unreadable_of
from modalities.audio import Audio

_NAMED = 5  # files that a message names
_BLOCK = 1 << 22  # samples that are decoded at a time where a whole file is looked at


def place(total: int, wanted: int, generator: torch.Generator | None) -> int:
    """Return where a piece of ``wanted`` samples begins in ``total``: drawn evenly, or 0 without a generator."""
    return 0 if generator is None else int(torch.randint(max(total - wanted, 0) + 1, (), generator=generator))


def padded(values: Tensor, wanted: int) -> tuple[Tensor, int]:
    """Return ``(C, wanted)``, zeros after the end of ``(C, n)``, and how many samples were measured; -1 if all were.

    Example:
        >>> padded(torch.ones(1, 2), 3)
        (tensor([[1., 1., 0.]]), 2)
    """
    missing = wanted - values.shape[-1]
    return (pad(values, (0, missing)), values.shape[-1]) if missing else (values, -1)


class RandomPiece:
    """A piece of a recording in memory, at a random place; of a shorter one, all, and zeros after it.

    Args:
        samples: Of a piece.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __call__(self, item: Signal, generator: torch.Generator) -> Signal:
        """Return a piece of ``item``."""
        start = place(item.values.shape[-1], self.samples, generator)
        values, length = padded(item.values[:, start : start + self.samples], self.samples)
        return item._replace(values=values, length=length)


class Excerpt:
    """Reads a piece of a recording in a file; of a shorter recording, all, and zeros after it.

    Args:
        samples: Of a piece.
        sample_rate: Samples a second; recordings of other rates are resampled.
        channels: Of a piece; 1 mixes all channels of a recording down.
        released: Whether the last second of a recording is left out, and zeros count as measured.
    """

    def __init__(self, samples: int, sample_rate: int, channels: int = 1, released: bool = False) -> None:
        self.samples = samples
        self.sample_rate = sample_rate
        self.channels = channels
        self.released = released

    def __call__(self, file: NamedFile, generator: torch.Generator | None = None) -> Signal:
        """Return the start of a recording or, with a generator, a piece at a place drawn by it.

        Raises:
            ValueError: If the file cannot be read, with its name and the way out.
        """
        try:
            values, length = padded(self._read(file.path, generator), self.samples)
        except ValueError as error:
            raise ValueError(f"{error} Or leave such recordings out: --data.init_args.on_bad_file skip.") from error
        return Signal(values, file.name, length=-1 if self.released else length)

    def _read(self, path: Path, generator: torch.Generator | None) -> Tensor:
        """Return what there is of a piece, ``(channels, samples)`` at most."""
        facts = recording_facts(path)
        total = resampled_frames(facts.frames, facts.sample_rate, self.sample_rate) - (
            self.sample_rate if self.released else 0
        )
        count = min(total, self.samples)
        if count <= 0:
            return torch.zeros(self.channels, 0)
        values = read_resampled(path, facts, place(total, self.samples, generator), count, self.sample_rate)
        return in_channels(values, self.channels, path)


class RecordingFiles(Dataset[NamedFile]):
    """Recordings that are not read: the augmentation of training reads a piece of each, at a place that it draws.

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


class RecordingStarts(Dataset[Signal]):
    """The first seconds of recordings, read whenever they are asked for.

    Args:
        files: The recordings.
        excerpt: What reads them.
    """

    def __init__(self, files: Sequence[NamedFile], excerpt: Excerpt) -> None:
        self.files = list(files)
        self.excerpt = excerpt

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self.files)

    def __getitem__(self, index: int) -> Signal:
        """Return the start of recording ``index``, or raise a ``ValueError`` that names its file and the way out."""
        return self.excerpt(self.files[index])


class AudioModule(CoordinateDataModule):
    """Sound as batches of coordinates: time, 2 units per second, and values in [-1, 1].

    Args:
        seconds: Length of a signal.
        sample_rate: Samples per second; recordings at other rates are resampled.
        channels: 1 mixes all channels of a recording down by their mean; 2 takes recordings of two channels only.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    modality = Audio()

    def __init__(
        self, seconds: float = 1.0, sample_rate: int = 16000, channels: Literal[1, 2] = 1, **kwargs: Any
    ) -> None:
        if not math.isfinite(seconds) or sample_rate < 1 or round(seconds * sample_rate) < 1 or channels not in (1, 2):
            raise ValueError(
                f"seconds is {seconds}, sample_rate {sample_rate}, channels {channels}: a signal has at least 1 sample, in 1 "
                "or 2 channels."
            )
        super().__init__(**kwargs)
        self.samples = round(seconds * sample_rate)
        self.sample_rate = sample_rate
        self.channels = channels

    @property
    def spec(self) -> DataSpec:
        """Audio on a grid of time: 2 units per second around 0, so that 3 seconds are ``[-3, 3]``."""
        return audio_spec((self.channels, self.samples), self.sample_rate, self.modality, self.num_instances)


class RecordingSet(AudioModule):
    """Recordings in files, of which pieces of equal length are trained and evaluated on.

    A subclass says which files a split has (`files`), and what is known of their number (`count`). Training sees a piece of
    every recording, at a new random place in every epoch; validation and test see its first seconds, as published. Only the
    piece is decoded. A recording that is shorter is followed by zeros, which are masked: they count in no loss and no metric,
    though a tokenizer sees them. Silence is kept as what it is; its PSNR is high.

    With ``cropping: released`` pieces are cut as published code does it: the last second of every recording is left out first,
    so that of short recordings little or nothing is left, and the zeros after it count as measured. They are easily
    reproduced, which raises PSNR: say which of the two a number used.

    Args:
        root: Folder of the data.
        cropping: Pieces of ``whole`` recordings; or as ``released`` code cuts them, without the last second of each and with
            the zeros after short ones counted, for comparison.
        on_bad_file: What an unreadable recording does: ``raise`` stops with its name when it is met, ``skip`` reads all first,
            leaves it out and says so.
        partial: Whether a split may have fewer or more recordings than were published.
        kwargs: Arguments of `AudioModule`.

    Raises:
        ValueError: If a number is out of range; at set-up, if recordings are missing or unreadable.
    """

    train_set: Dataset[Any]  # files: the augmentation makes signals of them
    augmentation: Callable[[Any, torch.Generator], Signal] | None

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
        self.augmentation = Excerpt(self.samples, self.sample_rate, self.channels, cropping == "released")
        self.excerpt = self.augmentation

    @abstractmethod
    def files(self, split: Split) -> list[NamedFile]:
        """Return the recordings of a split that are there, in an order that is always the same.

        Raises:
            ValueError: If their folder is missing, with the way to get it.
        """

    def count(self, split: Split) -> int | None:
        """Return how many recordings a split should have; None where that is not known."""
        return None

    def fetch(self, splits: Sequence[Split]) -> None:
        """Download what can be downloaded of some splits, unless it is there."""

    def prepare_data(self) -> None:
        """Download, on one process of every machine: what the stage reads or, without a trainer, everything."""
        self.fetch(splits_of(self.trainer.state.fn) if self.trainer else ("train", "val", "test"))

    def setup(self, stage: str) -> None:
        """Fill the splits of a stage.

        Raises:
            ValueError: If there are no recordings, not as many as published, or, where they are to be skipped, only unreadable
                ones.
        """
        for split in splits_of(stage):
            files = self._usable(split)
            dataset: Dataset[Any] = RecordingFiles(files) if split == "train" else RecordingStarts(files, self.excerpt)
            setattr(self, f"{split}_set", dataset)
        if self.skipped:
            tell_left_out(self.skipped, "recordings")

    def _usable(self, split: Split) -> list[NamedFile]:
        """Return the recordings of a split without those that are skipped."""
        files = self.files(split)
        self._check(files, split)
        if self.on_bad_file == "raise":
            return files
        skipped = unreadable(files, self.sample_rate, self.channels)
        if len(skipped) == len(files):
            named = "".join(f"\n  {reason}" for reason in list(skipped.values())[:_NAMED])
            raise ValueError(f"None of {len(files):,} recordings of the split {split} can be read:{named}")
        self.skipped |= skipped
        return [file for file in files if str(file.path) not in skipped]

    def _check(self, files: Sequence[NamedFile], split: Split) -> None:
        """Refuse a split that is not what was published."""
        wanted, name = self.count(split), type(self).__name__
        if not files:
            raise ValueError(f"{name} has no recordings of the split {split} in {self.root}: {self._fix(split)}")
        if wanted not in (None, len(files)) and not self.partial:
            raise ValueError(
                f"{name} has {len(files):,} recordings of the split {split} in {self.root}, published are {wanted:,}: "
                f"{self._fix(split)} Or take what is there: --data.init_args.partial true."
            )

    def _fix(self, split: Split) -> str:
        """Return what to do about recordings that are missing."""
        return "name another folder with --data.init_args.root."


def audio_spec(
    signal_shape: tuple[int, int], sample_rate: int, modality: Modality, num_instances: int | None = None
) -> DataSpec:
    """Return the spec of audio: time as the only axis, 2 units per second around 0, as published.

    Args:
        signal_shape: Channels and samples.
        sample_rate: Samples per second.
        modality: Of audio.
        num_instances: Training instances.

    Example:
        >>> audio_spec((1, 48000), 16000, None).domain
        Grid(ranges=((-3.0, 3.0),))
    """
    channels, samples = signal_shape
    domain = Grid(((-samples / sample_rate, samples / sample_rate),))
    return DataSpec(domain, channels, (channels, samples), modality, num_instances, sample_rate)


def unreadable(files: Sequence[NamedFile], sample_rate: int, channels: int) -> dict[str, str]:
    """Return why recordings cannot be read, by path, after reading all of them.

    Args:
        files: The recordings.
        sample_rate: Samples a second that they are to be resampled to.
        channels: What they are to have; 1 fits all.
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
