"""Audio files as tensors: reading, resampling and mixing channels."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.storage.folders import files_below, not_regular
from datamodules.storage.torchaudio import import_torchaudio

_FORMATS = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64"}
_UNSUPPORTED_FORMATS = {".m4a", ".m4b", ".aac", ".wma", ".amr", ".ape", ".wv", ".mka"}  # found, and reported
_UNKNOWN_LENGTH = 1 << 62  # frames; libsndfile reports this many or more when a header states no length
_BLOCK = 1 << 18  # samples per channel that are decoded at a time where the length is unknown
_SMALL_RECORDING = 1 << 26  # numbers; up to here, the size of the file is not checked
_VALUES_PER_BYTE = 1000  # of longer recordings; silence takes a byte per 300 samples in FLAC
_STREAMED = 0x7F000000  # bytes; a WAV header states this many or more if it was written to a pipe
_MP3_PREROLL = 1 << 14  # samples decoded before an MP3 segment, because its frames depend on earlier ones
_MAX_PEAK = 2.0  # lossy codecs overshoot 1; a larger peak means that samples are not scaled to [-1, 1]
_FILTER_WIDTH, _ROLL_OFF = 6, 0.99  # defaults of torchaudio's Resample
_MAX_FILTER_SIZE = 32_000_000  # weights; resampling from 44,056 to 16,000 Hz takes 11 million
_UNRECOGNISED_FORMAT = 1  # error code of libsndfile


class Recording(NamedTuple):
    """Audio as read from a file.

    Attributes:
        values: ``(C, n)`` float32 in [-1, 1].
        sample_rate: Samples per second.
    """

    values: Tensor
    sample_rate: int


class RecordingFacts(NamedTuple):
    """Header of an audio file.

    Attributes:
        frames: Samples per channel, at least 1.
        sample_rate: Samples per second.
        channels: Number of channels.
    """

    frames: int
    sample_rate: int
    channels: int


def audio_files(path: Path) -> list[tuple[Path, Path]]:
    """Return the audio files at a path, each with its path relative to that folder.

    A folder is searched recursively for files with an audio extension, as `files_below` does, in alphabetical order.
    Formats that are known to be unsupported are included, so that reading them reports the reason.

    Args:
        path: A folder; or a file, which is returned whatever its extension.
    """
    return files_below(path, _FORMATS | _UNSUPPORTED_FORMATS)


def recording_facts(path: str | Path) -> RecordingFacts:
    """Read the header of an audio file; samples are decoded only to count them where the header states no length.

    Raises:
        ValueError: If the file is missing, empty, truncated or in an unsupported format; the message names the file.
    """
    with _open(Path(path)) as file:
        frames = file.frames if file.frames < _UNKNOWN_LENGTH else len(_decoded_to_end(file, Path(path)))
        return RecordingFacts(frames, file.samplerate, file.channels)


def read_recording(path: str | Path, start: int = 0, frames: int = -1) -> Recording:
    """Read a segment of an audio file (WAV, FLAC, OGG, MP3 and others), decoding no more than necessary.

    Samples of lossy files that overshoot [-1, 1] are clipped.

    Args:
        path: The file.
        start: First sample.
        frames: Samples per channel; -1 reads to the end.

    Raises:
        ValueError: If the file is missing, empty, corrupt, in an unsupported format, shorter than the segment or than its
            header states, or holds values that are not audio samples; the message names the file.

    Example:
        ``values, sample_rate = read_recording("interview.flac", start=16000, frames=16000)``
    """
    path = Path(path)
    with _open(path) as file:
        whole = None if file.frames < _UNKNOWN_LENGTH else _decoded_to_end(file, path)
        total = file.frames if whole is None else len(whole)
        count = total - start if frames < 0 else frames
        if not 0 <= start <= start + count <= total:
            raise _AudioFileError(f"has {total:,} samples; samples {start:,} to {start + count:,} do not exist.")
        decoded = _decoded(file, start, count) if whole is None else whole[start : start + count]
        values = torch.from_numpy(decoded).T.contiguous()
        if values.shape[1] < count:
            raise _AudioFileError(
                f"is truncated: it holds {start + values.shape[1]:,} of {total:,} samples. Obtain a new copy."
            )
        return Recording(_clipped(values), file.samplerate)


def resampled_frames(frames: int, sample_rate: int, new_sample_rate: int) -> int:
    """Return the number of samples after `resampled`.

    Example:
        >>> resampled_frames(44101, 44100, 16000)
        16001
    """
    return -(-frames * new_sample_rate // sample_rate)


def resampled(values: Tensor, sample_rate: int, new_sample_rate: int, clip: bool = True) -> Tensor:
    """Resample audio with torchaudio's windowed sinc filter.

    Args:
        values: ``(C, n)`` in [-1, 1].
        sample_rate: Samples per second of ``values``.
        new_sample_rate: Samples per second of the result.
        clip: Whether to clip the result, which may overshoot, to [-1, 1].

    Returns:
        ``(C, ceil(n new_sample_rate / sample_rate))``.

    Raises:
        ValueError: If the greatest common divisor of the sampling rates is so small that the filter would take gigabytes.
    """
    if sample_rate == new_sample_rate:
        return values
    converted: Tensor = _resampler(sample_rate, new_sample_rate)(values)
    return converted.clamp(-1, 1) if clip else converted


def read_resampled(path: str | Path, facts: RecordingFacts, start: int, frames: int, sample_rate: int) -> Tensor:
    """Read a segment of the resampled recording, decoding only the segment and the support of the filter around it.

    The result equals the same segment of the recording resampled as a whole.

    Args:
        path: The file.
        facts: Its header.
        start: First sample, counted after resampling.
        frames: Samples per channel, counted after resampling; they must exist.
        sample_rate: Samples per second of the result.

    Returns:
        ``(C, frames)`` float32 in [-1, 1].

    Raises:
        ValueError: As `read_recording` and `resampled` do; the message names the file.
    """
    if facts.sample_rate == sample_rate:
        return read_recording(path, start, frames).values
    divisor = math.gcd(facts.sample_rate, sample_rate)
    # Every block of `old` samples becomes `new` samples; segments are read in whole blocks.
    old, new = facts.sample_rate // divisor, sample_rate // divisor
    margin = math.ceil(_FILTER_WIDTH / (min(old, new) * _ROLL_OFF))  # blocks
    first, stop = max(0, start // new - margin), (start + frames) // new + 1 + margin
    segment = read_recording(path, first * old, min(facts.frames, stop * old) - first * old)
    try:
        values = resampled(segment.values, facts.sample_rate, sample_rate)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return values[:, start - first * new :][:, :frames]


def in_channels(values: Tensor, channels: int, path: str | Path) -> Tensor:
    """Return audio with the requested number of channels; any number is mixed down to one by the mean.

    Args:
        values: ``(C, n)``.
        channels: Number of channels of the result.
        path: File that the error message names.

    Raises:
        ValueError: If more than one channel is requested and ``C`` differs.
    """
    if channels == 1:
        return values.mean(0, keepdim=True)
    if len(values) != channels:
        raise ValueError(
            f"{path} has {len(values)} channel(s), not {channels}: convert it, or mix all recordings down to mono with "
            "--data.init_args.channels 1."
        )
    return values


class _AudioFileError(Exception):
    """A problem of an audio file and its fix; the message continues a sentence that begins with the path."""


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open an audio file as ``soundfile.SoundFile``; convert every error into a ``ValueError`` that names the file."""
    soundfile = _soundfile()
    try:
        if problem := not_regular(path):
            raise _AudioFileError(f"cannot be read: {problem}.")
        with path.open("rb") as file:
            if not file.read(1):
                raise _AudioFileError("is empty: obtain a new copy.")
        name = os.fsencode(path) if os.name == "posix" else path  # soundfile rejects str paths that are not UTF-8
        with soundfile.SoundFile(name) as audio:
            if audio.frames or audio.format not in ("WAV", "WAVEX") or (streamed := _streamed_wav(path)) is None:
                _check_length(audio, path)
                yield audio
                return
        with soundfile.SoundFile(streamed) as audio:
            _check_length(audio, path)
            yield audio
    except MemoryError:  # not a fault of the file
        raise
    except Exception as error:  # decoders raise various exceptions for corrupt data
        raise ValueError(_error_message(path, error)) from error


def _streamed_wav(path: Path) -> io.BytesIO | None:
    """Return a WAV file whose header states 0 bytes of samples, as programs write to a pipe, with an unknown length instead.

    None if the header is followed by no samples.
    """
    content = bytearray(path.read_bytes())
    place = content.find(b"data\0\0\0\0")
    if place < 0 or place + 8 == len(content):
        return None
    content[place + 4 : place + 8] = b"\xff" * 4
    return io.BytesIO(content)


def _decoded(file: Any, start: int, count: int) -> NDArray[np.float32]:
    """Return samples ``(count, C)`` of a recording of known length; earlier samples are decoded if the file is not seekable."""
    preroll = min(start, _MP3_PREROLL) if file.format == "MP3" else 0
    if file.seekable():
        file.seek(start - preroll)  # also to the start, which changes the first samples of MP3
    else:
        for place in range(0, start, _BLOCK):
            file.read(min(_BLOCK, start - place), dtype="float32")
    samples: NDArray[np.float32] = file.read(preroll + count, dtype="float32", always_2d=True)[preroll:]
    return samples


def _decoded_to_end(file: Any, path: Path) -> NDArray[np.float32]:
    """Return all samples ``(n, C)`` of a recording whose header does not state its length."""
    file.seekable = lambda: False  # otherwise, soundfile seeks to the end of every block, which fails at the last one
    blocks = []
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
        _check_values(sum(map(np.size, blocks)), path)
    if not blocks:
        raise _AudioFileError("holds no samples: obtain a new copy.")
    return np.concatenate(blocks)


@cache
def _soundfile() -> Any:
    """Import soundfile, which only audio needs."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ValueError(
            f"Reading audio requires the package soundfile, which cannot be imported ({error}): "
            "python -m pip install --requirement requirements.txt."
        ) from error
    return soundfile


def _check_length(file: Any, path: Path) -> None:
    """Raise an error if the header states no samples, or more data than the file holds."""
    if file.frames < 1:
        raise _AudioFileError("holds no samples: obtain a new copy.")
    if file.frames < _UNKNOWN_LENGTH:
        _check_values(file.frames * file.channels, path)
    # libsndfile reads a truncated WAV without an error and only logs the length in its header.
    lengths = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if lengths is not None:
        stated, actual = int(lengths[1]), int(lengths[2])
        if actual < stated < _STREAMED:
            raise _AudioFileError(f"is truncated: it holds {actual:,} of {stated:,} bytes. Obtain a new copy.")


def _check_values(count: int, path: Path) -> None:
    """Raise an error if a recording has more numbers than a file of its size can hold."""
    if count > max(_SMALL_RECORDING, _VALUES_PER_BYTE * path.stat().st_size):
        raise _AudioFileError(
            f"states {count:,} samples in {path.stat().st_size:,} bytes, which cannot hold them: obtain a new copy."
        )


def _clipped(values: Tensor) -> Tensor:
    """Clip samples to [-1, 1] in place; raise an error if they are not finite or exceed the overshoot of lossy codecs."""
    peak = float(values.abs().max()) if values.numel() else 0.0
    if not math.isfinite(peak):
        raise _AudioFileError("holds NaN or infinite samples: obtain a new copy.")
    if peak > _MAX_PEAK:
        raise _AudioFileError(f"has a peak of {peak:g}: scale its samples to [-1, 1].")
    return values.clamp_(-1, 1) if peak > 1 else values


def _error_message(path: Path, error: Exception) -> str:
    """Return one line that names the file, the problem and the fix."""
    if isinstance(error, _AudioFileError):
        return f"{path} {error}"
    if isinstance(error, FileNotFoundError):
        return f"The audio file {path} does not exist: name another file or folder."
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}."
    # soundfile raises a TypeError for .raw, which has no header.
    if isinstance(error, TypeError) or getattr(error, "code", None) == _UNRECOGNISED_FORMAT:
        return f"{path} is not an audio file of a supported format: convert it to FLAC or WAV."
    reason = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".") or type(error).__name__
    return f"{path} is corrupt or truncated ({reason}): obtain a new copy, or convert it to FLAC."


@cache
def _resampler(sample_rate: int, new_sample_rate: int) -> Any:
    """Return torchaudio's resampler; caching it computes every filter once."""
    divisor = math.gcd(sample_rate, new_sample_rate)
    old, new = sample_rate // divisor, new_sample_rate // divisor
    if new * (old + 2 * math.ceil(_FILTER_WIDTH * old / (min(old, new) * _ROLL_OFF))) > _MAX_FILTER_SIZE:
        raise ValueError(
            f"cannot resample from {sample_rate:,} to {new_sample_rate:,} Hz, because their greatest common divisor is only "
            f"{divisor}: convert it to a common sampling rate, or set another with --data.init_args.sample_rate."
        )
    return import_torchaudio().transforms.Resample(sample_rate, new_sample_rate)
