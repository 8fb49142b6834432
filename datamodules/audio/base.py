"""What data sets of sound have in common: clips in files, of which no more is decoded than is heard."""

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
from datamodules.storage.audio import clip_facts, in_channels, read_clip, read_resampled, resampled_frames
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
    """A piece of a clip in memory, at a random place; of a shorter one, all, and zeros after it.

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
    """Reads a piece of a clip in a file; of a shorter clip, all, and zeros after it.

    Args:
        samples: Of a piece.
        rate: Samples a second; clips of other rates are resampled.
        channels: Of a piece; 1 mixes all channels of a clip down.
        released: Whether the last second of a clip is left out, and zeros count as measured.
    """

    def __init__(self, samples: int, rate: int, channels: int = 1, released: bool = False) -> None:
        self.samples = samples
        self.rate = rate
        self.channels = channels
        self.released = released

    def __call__(self, file: NamedFile, generator: torch.Generator | None = None) -> Signal:
        """Return the start of a clip or, with a generator, a piece at a place drawn by it.

        Raises:
            ValueError: If the file cannot be read, with its name and the way out.
        """
        try:
            values, length = padded(self._read(file.path, generator), self.samples)
        except ValueError as error:
            raise ValueError(f"{error} Or leave such clips out: --data.init_args.on_bad_file skip.") from error
        return Signal(values, file.name, length=-1 if self.released else length)

    def _read(self, path: Path, generator: torch.Generator | None) -> Tensor:
        """Return what there is of a piece, ``(channels, samples)`` at most."""
        facts = clip_facts(path)
        total = resampled_frames(facts.frames, facts.rate, self.rate) - (self.rate if self.released else 0)
        count = min(total, self.samples)
        if count <= 0:
            return torch.zeros(self.channels, 0)
        values = read_resampled(path, facts, place(total, self.samples, generator), count, self.rate)
        return in_channels(values, self.channels, path)


class ClipFiles(Dataset[NamedFile]):
    """Clips that are not read: the augmentation of training reads a piece of each, at a place that it draws.

    Args:
        files: The clips.
    """

    def __init__(self, files: Sequence[NamedFile]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.files)

    def __getitem__(self, index: int) -> NamedFile:
        """Return clip ``index``."""
        return self.files[index]


class ClipStarts(Dataset[Signal]):
    """The first seconds of clips, read whenever they are asked for.

    Args:
        files: The clips.
        excerpt: What reads them.
    """

    def __init__(self, files: Sequence[NamedFile], excerpt: Excerpt) -> None:
        self.files = list(files)
        self.excerpt = excerpt

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.files)

    def __getitem__(self, index: int) -> Signal:
        """Return the start of clip ``index``, or raise a ``ValueError`` that names its file and the way out."""
        return self.excerpt(self.files[index])


class SoundModule(CoordinateDataModule):
    """Sound as batches of coordinates: time, 2 units per second, and values in [-1, 1].

    Args:
        seconds: Length of a signal.
        rate: Samples per second; recordings at other rates are resampled.
        channels: 1 mixes all channels of a recording down by their mean; 2 takes recordings of two channels only.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    modality = Audio()

    def __init__(self, seconds: float = 1.0, rate: int = 16000, channels: Literal[1, 2] = 1, **kwargs: Any) -> None:
        if not math.isfinite(seconds) or rate < 1 or round(seconds * rate) < 1 or channels not in (1, 2):
            raise ValueError(
                f"seconds is {seconds}, rate {rate}, channels {channels}: a signal has at least 1 sample, in 1 or 2 channels."
            )
        super().__init__(**kwargs)
        self.samples = round(seconds * rate)
        self.rate = rate
        self.channels = channels

    @property
    def spec(self) -> DataSpec:
        """Audio on a grid of time: 2 units per second around 0, so that 3 seconds are ``[-3, 3]``."""
        return audio_spec((self.channels, self.samples), self.rate, self.modality, self.num_instances)


class ClipSet(SoundModule):
    """Clips in files, of which pieces of equal length are trained and evaluated on.

    A subclass says which files a split has (`files`), and what is known of their number (`count`). Training sees a piece of
    every clip, at a new random place in every epoch; validation and test see its first seconds, as published. Only the piece
    is decoded. A clip that is shorter is followed by zeros, which are masked: they count in no loss and no metric, though a
    tokenizer sees them. Silence is kept as what it is; its PSNR is high.

    With ``cropping: released`` pieces are cut as published code does it: the last second of every clip is left out first, so
    that of short clips little or nothing is left, and the zeros after it count as measured. They are easily reproduced, which
    raises PSNR: say which of the two a number used.

    Args:
        root: Folder of the data.
        cropping: Pieces of ``whole`` clips; or as ``released`` code cuts them, without the last second of each and with the
            zeros after short ones counted, for comparison.
        on_bad_file: What an unreadable clip does: ``raise`` stops with its name when it is met, ``skip`` reads all first,
            leaves it out and says so.
        partial: Whether a split may have fewer or more clips than were published.
        kwargs: Arguments of `SoundModule`.

    Raises:
        ValueError: If a number is out of range; at set-up, if clips are missing or unreadable.
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
        self.augmentation = Excerpt(self.samples, self.rate, self.channels, cropping == "released")
        self.excerpt = self.augmentation

    @abstractmethod
    def files(self, split: Split) -> list[NamedFile]:
        """Return the clips of a split that are there, in an order that is always the same.

        Raises:
            ValueError: If their folder is missing, with the way to get it.
        """

    def count(self, split: Split) -> int | None:
        """Return how many clips a split should have; None where that is not known."""
        return None

    def fetch(self, splits: Sequence[Split]) -> None:
        """Download what can be downloaded of some splits, unless it is there."""

    def prepare_data(self) -> None:
        """Download, on one process of every machine: what the stage reads or, without a trainer, everything."""
        self.fetch(splits_of(self.trainer.state.fn) if self.trainer else ("train", "val", "test"))

    def setup(self, stage: str) -> None:
        """Fill the splits of a stage.

        Raises:
            ValueError: If there are no clips, not as many as published, or, where they are to be skipped, only unreadable ones.
        """
        for split in splits_of(stage):
            files = self._usable(split)
            dataset: Dataset[Any] = ClipFiles(files) if split == "train" else ClipStarts(files, self.excerpt)
            setattr(self, f"{split}_set", dataset)
        if self.skipped:
            tell_left_out(self.skipped, "clips")

    def _usable(self, split: Split) -> list[NamedFile]:
        """Return the clips of a split without those that are skipped."""
        files = self.files(split)
        self._check(files, split)
        if self.on_bad_file == "raise":
            return files
        skipped = unreadable(files, self.rate, self.channels)
        if len(skipped) == len(files):
            named = "".join(f"\n  {reason}" for reason in list(skipped.values())[:_NAMED])
            raise ValueError(f"None of {len(files):,} clips of the split {split} can be read:{named}")
        self.skipped |= skipped
        return [file for file in files if str(file.path) not in skipped]

    def _check(self, files: Sequence[NamedFile], split: Split) -> None:
        """Refuse a split that is not what was published."""
        wanted, name = self.count(split), type(self).__name__
        if not files:
            raise ValueError(f"{name} has no clips of the split {split} in {self.root}: {self._mend(split)}")
        if wanted not in (None, len(files)) and not self.partial:
            raise ValueError(
                f"{name} has {len(files):,} clips of the split {split} in {self.root}, published are {wanted:,}: "
                f"{self._mend(split)} Or take what is there: --data.init_args.partial true."
            )

    def _mend(self, split: Split) -> str:
        """Return what to do about clips that are missing."""
        return "name another folder with --data.init_args.root."


def audio_spec(
    signal_shape: tuple[int, int], rate: int, modality: Modality, num_instances: int | None = None
) -> DataSpec:
    """Return the spec of audio: time as the only axis, 2 units per second around 0, as published.

    Args:
        signal_shape: Channels and samples.
        rate: Samples per second.
        modality: Of audio.
        num_instances: Training instances.

    Example:
        >>> audio_spec((1, 48000), 16000, None).domain
        Grid(ranges=((-3.0, 3.0),))
    """
    channels, samples = signal_shape
    domain = Grid(((-samples / rate, samples / rate),))
    return DataSpec(domain, channels, (channels, samples), modality, num_instances, rate)


def unreadable(files: Sequence[NamedFile], rate: int, channels: int) -> dict[str, str]:
    """Return why clips cannot be read, by path, after reading all of them.

    Args:
        files: The clips.
        rate: Samples a second that they are to be resampled to.
        channels: What they are to have; 1 fits all.
    """
    return unreadable_of(files, partial(_reason, rate=rate, channels=channels), "reading clips")


def _reason(file: NamedFile, rate: int, channels: int) -> str | None:
    """Return why a clip cannot be read, or None."""
    try:
        facts = clip_facts(file.path)
        in_channels(read_resampled(file.path, facts, 0, 1, rate), channels, file.path)
        for start in range(0, facts.frames, _BLOCK):
            read_clip(file.path, start, min(_BLOCK, facts.frames - start))
    except ValueError as error:
        return str(error)
    return None
