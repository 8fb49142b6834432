"""What is wrong with the recordings of a data set: all are counted, and each is listened to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

from datamodules.audio.base import RecordingSet
from datamodules.storage.audio import (
    RecordingFacts,
    audio_files,
    in_channels,
    read_recording,
    recording_facts,
    resampled,
    resampled_frames,
)
from datamodules.storage.folders import Split
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting
from tools.check.images import Findings, Problem, ProblemGroup, SplitFindings, merged, miscounted

_BLOCK = 1 << 22  # samples that are decoded at a time
_SILENT = 1e-3  # what a recording that can be heard exceeds somewhere: 60 dB below the loudest


class Sounding(NamedTuple):
    """Something that is wrong with a recording, or worth knowing of it.

    Attributes:
        kind: ``unreadable``; ``silent``; ``short``, shorter than a piece; of another ``sample_rate``; or of more ``channels``.
        detail: In words that name the file.
    """

    kind: Literal["unreadable", "silent", "short", "sample_rate", "channels"]
    detail: str


def check_recordings(data: RecordingSet, *, decode: bool = True) -> Findings:
    """Count the recordings of a data set and look at each, whatever ``partial`` and ``on_bad_file`` let training bear.

    Args:
        data: The data set.
        decode: Whether every recording is decoded from its start to its end, by all processors that this process may use, or
            only its header is read, which tells neither silence nor most damage.

    Raises:
        ValueError: If there are no recordings, with the way to get them.
    """
    groups = merged([_group(data, split) for split in get_args(Split)])
    files = {file.path for group in groups for file in group.files}
    if not files:
        raise ValueError(next(group.refusal for group in groups if group.refusal))
    folder = Path(os.path.commonpath([path.parent for path in files]))
    unused = [
        Problem("", "unused", str(path), f"{path} belongs to no split.")
        for path, _ in audio_files(folder)
        if path not in files
    ]
    rows = [SplitFindings(group.splits, len(group.files), group.wanted) for group in groups]
    rows += [SplitFindings("", len(unused), None)] if unused else []
    counted = [problem for group in groups for problem in miscounted(group)]
    return Findings(rows, [*counted, *_heard(data, groups, decode), *unused], folder)


def soundings(data: RecordingSet, paths: Sequence[Path], *, decode: bool = True) -> Iterator[list[Sounding]]:
    """Yield what is wrong with every recording or worth knowing of it, in order; nothing if it is as it should be.

    Args:
        data: Whose rate, channels and length of a piece count.
        paths: The recordings.
        decode: Whether recordings are decoded, or only their headers are read.
    """
    look = partial(_soundings, data=data, decode=decode)
    label = "decoding" if decode else "reading headers"
    with counting(label, len(paths)) as show, closing(in_order(look, paths)) as found:
        for done, told in enumerate(found, 1):
            yield told
            show(done)


def _group(data: RecordingSet, split: Split) -> ProblemGroup:
    """Return a split; one without recordings is refused, as training does."""
    wanted = data.count(split)
    try:
        files = data.files(split)
    except ValueError as error:
        return ProblemGroup(split, [], None, wanted, str(error))
    return ProblemGroup(
        split, files, None, wanted, "" if files else f"There are no recordings of the split {split} in {data.root}."
    )


def _heard(data: RecordingSet, groups: Sequence[ProblemGroup], decode: bool) -> list[Problem]:
    """Return what there is to say of single recordings."""
    places = [(group.splits, file.path) for group in groups for file in group.files]
    found = soundings(data, [path for _, path in places], decode=decode)
    return [
        Problem(splits, one.kind, str(path), one.detail)
        for (splits, path), told in zip(places, found, strict=True)
        for one in told
    ]


def _soundings(path: Path, data: RecordingSet, decode: bool) -> list[Sounding]:
    """Return what there is to say of a recording."""
    try:
        facts = recording_facts(path)
        _check_use(path, facts, data)
        peak = _peak(path, facts) if decode else 1.0
    except ValueError as error:
        return [Sounding("unreadable", str(error))]
    found = _notes(path, facts, data)
    if peak <= _SILENT:
        found.insert(0, Sounding("silent", f"{path} is silent: its loudest sample is {peak:g}, of 1 at most."))
    return found


def _check_use(path: Path, facts: RecordingFacts, data: RecordingSet) -> None:
    """Refuse channels and rates that cannot become those of a piece."""
    moment = in_channels(torch.zeros(facts.channels, 1), data.channels, path)
    try:
        resampled(moment, facts.sample_rate, data.sample_rate)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _peak(path: Path, facts: RecordingFacts) -> float:
    """Return the largest sample of a recording, all of which is decoded, a block at a time."""
    starts = range(0, facts.frames, _BLOCK)
    blocks = (read_recording(path, start, min(_BLOCK, facts.frames - start)).values for start in starts)
    return max(float(block.abs().max()) for block in blocks)


def _notes(path: Path, facts: RecordingFacts, data: RecordingSet) -> list[Sounding]:
    """Return what is done to a recording that can be read."""
    found = []
    left = resampled_frames(facts.frames, facts.sample_rate, data.sample_rate) - (
        data.sample_rate if data.excerpt.released else 0
    )
    if left < data.samples:
        told = " without its last second" if data.excerpt.released else ""
        samples = f"{max(left, 0):,} of the {data.samples:,} samples of a piece"
        found.append(Sounding("short", f"{path} has {samples}{told}: zeros follow."))
    if facts.sample_rate != data.sample_rate:
        found.append(
            Sounding(
                "sample_rate", f"{path} has {facts.sample_rate:,} samples a second, which become {data.sample_rate:,}."
            )
        )
    if facts.channels != data.channels:
        found.append(Sounding("channels", f"{path} has {facts.channels} channels, which are mixed to one."))
    return found
