"""Sound as tensors: reading pieces of files, resampling and mixing down."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.storage.folders import files_below
from datamodules.storage.torchaudio import import_torchaudio

_READABLE = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64"}
_UNREADABLE = {".m4a", ".m4b", ".aac", ".wma", ".amr", ".ape", ".wv", ".mka"}  # named, with the reason
_UNKNOWN_LENGTH = 1 << 62  # frames, from which on a header says that it does not know
_STREAMED = 0x7F000000  # bytes, from which on a WAV that is shorter was written by a program that could not know
_RUN_UP = 1 << 14  # samples that an MP3 is decoded from before a piece, which is built on bits of earlier blocks
_OVERSHOOT = 2.0  # what lossy files reach beyond 1, at most
_FILTER_WIDTH, _ROLL_OFF = 6, 0.99  # of torchaudio's resampling
_LARGEST_FILTER = 32_000_000  # weights; those of 44,056 to 16,000 samples a second are 11 million
_UNRECOGNISED = 1  # the code of libsndfile for a file of an unknown format


class Recording(NamedTuple):
    """Sound as it was read.

    Attributes:
        values: ``(C, n)`` float32 in [-1, 1].
        sample_rate: Samples a second.
    """

    values: Tensor
    sample_rate: int


class RecordingFacts(NamedTuple):
    """What the header of a sound file says.

    Attributes:
        frames: Samples of every channel, at least 1.
        sample_rate: Samples a second.
        channels: How many there are.
    """

    frames: int
    sample_rate: int
    channels: int


def audio_files(path: Path) -> list[tuple[Path, Path]]:
    """Return the sound files at a path and, for each, its place below the folder that was named.

    Of a folder, all files with the ending of audio are taken, in its subfolders too, in alphabetical order, as
    `files_below` does; of some endings it is known that they cannot be read, which reading them says.

    Args:
        path: A folder; or a file, which is taken whatever its ending.
    """
    return files_below(path, _READABLE | _UNREADABLE)


def recording_facts(path: str | Path) -> RecordingFacts:
    """Return what the header of a sound file says; nothing is decoded.

    Raises:
        ValueError: If the file is missing, empty, no sound of a kind that can be read, or cut off; the message names it.
    """
    with _opened(Path(path)) as sound:
        return RecordingFacts(sound.frames, sound.samplerate, sound.channels)


def read_recording(path: str | Path, start: int = 0, frames: int = -1) -> Recording:
    """Read a piece of a sound file: WAV, FLAC, OGG, MP3 and others; no more of it is decoded than is needed.

    What lossy files reach beyond 1 is cut.

    Args:
        path: The file.
        start: The first sample.
        frames: Samples of every channel; all that follow if -1.

    Raises:
        ValueError: If the file is missing, empty, no sound of a kind that can be read, damaged, shorter than that or than its
            header says, or holds numbers that are no sound; the message names it.

    Example:
        ``values, rate = read_recording("interview.flac", start=16000, frames=16000)``
    """
    with _opened(Path(path)) as sound:
        wanted = sound.frames - start if frames < 0 else frames
        if not 0 <= start <= start + wanted <= sound.frames:
            raise _RefusedError(f"has {sound.frames:,} samples, not those from {start:,} to {start + wanted:,}.")
        values = _decoded(sound, start, wanted)
        if values.shape[1] < wanted:
            raise _RefusedError(
                f"is cut off: {start + values.shape[1]:,} of {sound.frames:,} samples came. Take it from its source again."
            )
        return Recording(_as_audio(values), sound.samplerate)


def resampled_frames(frames: int, sample_rate: int, wanted: int) -> int:
    """Return how many samples `resampled` makes of so many.

    Example:
        >>> resampled_frames(44101, 44100, 16000)
        16001
    """
    return -(-frames * wanted // sample_rate)


def resampled(values: Tensor, sample_rate: int, wanted: int) -> Tensor:
    """Return sound at another rate, by a windowed sinc filter, as torchaudio has it.

    Args:
        values: ``(C, n)`` in [-1, 1].
        sample_rate: Samples a second.
        wanted: The same of the result.

    Returns:
        ``(C, ceil(n wanted / rate))`` in [-1, 1]; what the filter overshoots is cut.

    Raises:
        ValueError: If the rates have hardly a divisor in common, for which the filter would take gigabytes.
    """
    return values if sample_rate == wanted else _resampler(sample_rate, wanted)(values).clamp(-1, 1)


def read_resampled(path: str | Path, facts: RecordingFacts, start: int, frames: int, sample_rate: int) -> Tensor:
    """Return a piece of a sound file as it is when the whole is resampled, of which only the piece and a margin are decoded.

    Args:
        path: The file.
        facts: What its header says.
        start: The first sample, counted after resampling.
        frames: Samples of every channel, after resampling; they must be there.
        sample_rate: Samples a second of the result.

    Returns:
        ``(C, frames)`` float32 in [-1, 1].

    Raises:
        ValueError: As `read_recording` and `resampled` do; the message names the file.
    """
    if facts.sample_rate == sample_rate:
        return read_recording(path, start, frames).values
    divisor = math.gcd(facts.sample_rate, sample_rate)
    old, new = (
        facts.sample_rate // divisor,
        sample_rate // divisor,
    )  # so many samples become so many: both grids meet there
    margin = math.ceil(_FILTER_WIDTH / (min(old, new) * _ROLL_OFF))
    first, stop = max(0, start // new - margin), (start + frames) // new + 1 + margin
    read = read_recording(path, first * old, min(facts.frames, stop * old) - first * old)
    try:
        values = resampled(read.values, facts.sample_rate, sample_rate)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return values[:, start - first * new :][:, :frames]


def in_channels(values: Tensor, channels: int, path: str | Path) -> Tensor:
    """Return sound in so many channels: any number of them mixed down to one by the mean, or as many as there are.

    Args:
        values: ``(C, n)``.
        channels: Wanted.
        path: What the message names.

    Raises:
        ValueError: If there are others than are wanted, and more than one is.
    """
    if channels == 1:
        return values.mean(0, keepdim=True)
    if len(values) != channels:
        raise ValueError(
            f"{path} has {len(values)} channel(s), not {channels}: convert it, or mix all recordings down to one, "
            "--data.init_args.channels 1."
        )
    return values


class _RefusedError(Exception):
    """What is wrong with a sound file, and the way out, in words that follow its name."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a sound file; whatever goes wrong with it becomes a ``ValueError`` that names it."""
    library = _library()
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise _RefusedError("is empty: take it from its source again.")
        name = os.fsencode(path) if os.name == "posix" else path  # soundfile itself takes no names that are not UTF-8
        with library.SoundFile(name) as sound:
            _check_length(sound)
            yield sound
    except Exception as error:  # what decoders raise of damaged data is not foreseeable
        raise ValueError(_told(path, error)) from error


@cache
def _library() -> Any:
    """Return soundfile, which images and scenes do without."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ValueError(
            f"Sound is read by soundfile, which cannot be imported ({error}): "
            "python -m pip install --requirement requirements.txt."
        ) from error
    return soundfile


def _check_length(sound: Any) -> None:
    """Refuse a header whose length is none, or not that of its file."""
    if sound.frames >= _UNKNOWN_LENGTH:
        raise _RefusedError("does not say how long it is: convert it to FLAC or WAV, which writes a new header.")
    if sound.frames < 1:
        raise _RefusedError("holds no samples: take it from its source again.")
    # Of a WAV, libsndfile takes what is there, and only mentions what should be.
    shorter = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if shorter is not None and int(shorter[2]) < int(shorter[1]) < _STREAMED:
        came, bytes_said = int(shorter[2]), int(shorter[1])
        raise _RefusedError(f"is cut off: {came:,} of {bytes_said:,} bytes came. Take it from its source again.")


def _decoded(sound: Any, start: int, frames: int) -> Tensor:
    """Return a piece of an open file, ``(C, frames)``, less where there is no more."""
    before = min(start, _RUN_UP) if sound.format == "MP3" else 0
    sound.seek(start - before)
    return torch.from_numpy(sound.read(before + frames, dtype="float32", always_2d=True)[before:]).T.contiguous()


def _as_audio(values: Tensor) -> Tensor:
    """Return samples in [-1, 1], or refuse them."""
    peak = float(values.abs().max()) if values.numel() else 0.0
    if not math.isfinite(peak):
        raise _RefusedError("holds samples that are no numbers (NaN or infinite): take it from its source again.")
    if peak > _OVERSHOOT:
        raise _RefusedError(f"holds samples up to {peak:g}, where 1 is the loudest: scale it to [-1, 1].")
    return values.clamp_(-1, 1) if peak > 1 else values


def _told(path: Path, error: Exception) -> str:
    """Return what is wrong with a sound file, and the way out."""
    if isinstance(error, _RefusedError):
        return f"{path} {error}"
    if isinstance(error, FileNotFoundError):
        return f"There is no sound file {path}: name another file or folder."
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}."
    if isinstance(error, TypeError) or getattr(error, "code", None) == _UNRECOGNISED:  # the former of .raw
        return f"{path} is no sound of a kind that can be read: convert it to FLAC or WAV."
    reason = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".") or type(error).__name__
    return f"{path} is damaged or cut off ({reason}): take it from its source again, or convert it to FLAC."


@cache
def _resampler(sample_rate: int, wanted: int) -> Any:
    """Return what resamples; its filter is computed once."""
    divisor = math.gcd(sample_rate, wanted)
    old, new = sample_rate // divisor, wanted // divisor
    if new * (old + 2 * math.ceil(_FILTER_WIDTH * old / (min(old, new) * _ROLL_OFF))) > _LARGEST_FILTER:
        raise ValueError(
            f"{sample_rate:,} samples a second cannot be made {wanted:,}, for these numbers have hardly a divisor in common: "
            "convert it to a usual rate, or name another with --data.init_args.sample_rate."
        )
    return import_torchaudio().transforms.Resample(sample_rate, wanted)
