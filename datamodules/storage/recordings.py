"""Recordings of audio as a model takes them: with its channels, at its rate, in tiles of its length."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from datamodules.storage.audio import Recording, read_recording, resampled
from datamodules.tiles import Box, cover


class PreparedRecording(NamedTuple):
    """A recording as a model sees it, and what it was.

    Attributes:
        values: ``(C, n)`` float32 in [-1, 1], with the channels of the model and at its rate.
        sample_rate: Samples a second of the file.
        samples: Of every channel of the file.
        notes: What had to be decided, for people: channels that were mixed, and so on.
    """

    values: Tensor
    sample_rate: int
    samples: int
    notes: tuple[str, ...] = ()


def prepare_recording(path: str | Path, channels: int, sample_rate: int) -> PreparedRecording:
    """Read a recording as a model sees it; sample 0 stays at the same time.

    Args:
        path: The file.
        channels: Those of the model, as for `in_channels_of`.
        sample_rate: Samples a second of the signals that the model was trained with.

    Raises:
        ValueError: If the file cannot be read, or cannot become what the model takes; the message names it.
    """
    recording = read_recording(path)
    values, notes = in_channels_of(recording, channels, path)
    if recording.sample_rate != sample_rate:
        notes += (f"{recording.sample_rate:,} Hz made {sample_rate:,}",)
    try:
        return PreparedRecording(
            resampled(values, recording.sample_rate, sample_rate), recording.sample_rate, values.shape[1], notes
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def in_channels_of(recording: Recording, channels: int, path: str | Path) -> tuple[Tensor, tuple[str, ...]]:
    """Return a recording ``(C, n)`` with the channels that a model takes, and what was decided.

    Any number of channels is mixed to one by their mean; one is repeated where several are wanted.

    Args:
        recording: As it was read.
        channels: ``C``.
        path: What the message names.

    Raises:
        ValueError: If the channels cannot become those of the model.

    Example:
        >>> in_channels_of(Recording(Tensor([[1.0, 0.0], [0.0, 0.0]]), 8000), 1, "stereo.wav")
        (tensor([[0.5000, 0.0000]]), ('2 channels mixed to one',))
    """
    found = len(recording.values)
    if found == channels:
        return recording.values, ()
    if channels == 1:
        return recording.values.mean(0, keepdim=True), (f"{found} channels mixed to one",)
    if found == 1:
        return recording.values.expand(channels, -1), (f"one channel repeated {channels} times",)
    raise ValueError(f"{path} has {found} channels, the model takes {channels}: mix it to one, or to {channels}.")


def recording_tiles(samples: int, length: int) -> list[Box]:
    """Return the tiles of a recording, each ``length`` samples; the only tile of a short recording extends past its end.

    Example:
        >>> recording_tiles(10, 8), recording_tiles(6, 8)
        ([((0, 8),), ((2, 10),)], [((0, 8),)])
    """
    return cover((samples,), length) if samples > length else [((0, length),)]


def cut_recording(values: Tensor, box: Box) -> Tensor:
    """Return the part ``(C, length)`` of a recording ``(C, n)`` in a tile, with zeros beyond the end of the recording.

    Example:
        >>> cut_recording(Tensor([[1.0, 2.0, 3.0]]), ((1, 5),)).tolist()
        [[2.0, 3.0, 0.0, 0.0]]
    """
    [(start, stop)] = box
    part = values[:, start:stop]
    return pad(part, (0, stop - start - part.shape[1]))


def measured(box: Box, samples: int) -> int:
    """Return how many samples of a tile are of the recording; what follows is padding.

    Example:
        >>> measured(((0, 8),), 6), measured(((2, 10),), 10)
        (6, 8)
    """
    [(start, stop)] = box
    return min(stop, samples) - start
