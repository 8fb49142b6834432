"""Recordings prepared for a model: with its channels and sampling rate, and cut into tiles of its signal length."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from datamodules.storage.audio import Recording, read_recording, resampled
from datamodules.tiles import Box, cover

MAX_SECONDS = 60.0  # of a recording that is encoded whole by a model of any length


class PreparedRecording(NamedTuple):
    """A recording as input of a model, and the properties of its file.

    Attributes:
        values: ``(C, n)`` float32 in [-1, 1], with the channels and the sampling rate of the model.
        original_sample_rate: Samples per second of the file.
        original_samples: Samples per channel of the file.
        notes: Conversions that the user should know of, such as mixed channels.
    """

    values: Tensor
    original_sample_rate: int
    original_samples: int
    notes: tuple[str, ...] = ()


def prepare_recording(path: str | Path, channels: int, sample_rate: int) -> PreparedRecording:
    """Read a recording and convert it to the channels and sampling rate of a model; sample 0 keeps its time.

    Args:
        path: The file.
        channels: Channels of the model, as for `in_channels_of`.
        sample_rate: Samples per second of the signals that the model was trained with.

    Raises:
        ValueError: If the file cannot be read or converted; the message names it.
    """
    recording = read_recording(path)
    values, notes = in_channels_of(recording, channels, path)
    if recording.sample_rate != sample_rate:
        notes += (f"resampled from {recording.sample_rate:,} to {sample_rate:,} Hz",)
    try:
        converted = resampled(values, recording.sample_rate, sample_rate)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return PreparedRecording(converted, recording.sample_rate, values.shape[1], notes)


def in_channels_of(recording: Recording, channels: int, path: str | Path) -> tuple[Tensor, tuple[str, ...]]:
    """Return a recording ``(C, n)`` with the channels of a model, and notes on the conversion.

    Any number of channels is mixed down to one by the mean; one channel is repeated if the model has several.

    Args:
        recording: The recording as read.
        channels: ``C``.
        path: File that the error message names.

    Raises:
        ValueError: If the recording has several channels and the model another number above one.

    Example:
        >>> in_channels_of(Recording(Tensor([[1.0, 0.0], [0.0, 0.0]]), 8000), 1, "stereo.wav")
        (tensor([[0.5000, 0.0000]]), ('2 channels mixed to one',))
    """
    num_channels = len(recording.values)
    if num_channels == channels:
        return recording.values, ()
    if channels == 1:
        return recording.values.mean(0, keepdim=True), (f"{num_channels} channels mixed to one",)
    if num_channels == 1:
        return recording.values.expand(channels, -1), (f"one channel repeated {channels} times",)
    raise ValueError(
        f"{path} has {num_channels} channels, but the model takes {channels}: mix it down to 1 or {channels} channels."
    )


def recording_tiles(samples: int, length: int) -> list[Box]:
    """Return the tiles of a recording, each ``length`` samples; the only tile of a short recording extends past its end.

    Example:
        >>> recording_tiles(10, 8), recording_tiles(6, 8)
        ([((0, 8),), ((2, 10),)], [((0, 8),)])
    """
    return cover((samples,), length) if samples > length else [((0, length),)]


def cut_recording(values: Tensor, box: Box) -> Tensor:
    """Return the tile ``(C, length)`` of a recording ``(C, n)``, zero-padded past the end of the recording.

    Example:
        >>> cut_recording(Tensor([[1.0, 2.0, 3.0]]), ((1, 5),)).tolist()
        [[2.0, 3.0, 0.0, 0.0]]
    """
    [(start, stop)] = box
    part = values[:, start:stop]
    return pad(part, (0, stop - start - part.shape[1]))


def samples_in_tile(box: Box, samples: int) -> int:
    """Return the number of samples of a tile that belong to the recording; the rest is padding.

    Example:
        >>> samples_in_tile(((0, 8),), 6), samples_in_tile(((2, 10),), 10)
        (6, 8)
    """
    [(start, stop)] = box
    return min(stop, samples) - start
