"""Check the recordings of a data set: count them, and decode each of them."""

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
)
from datamodules.storage.folders import Split
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting
from tools.check.images import Findings, Problem, ProblemGroup, SplitFindings, merged, miscounted

_BLOCK = 1 << 22  # samples decoded at a time
_SILENCE = 1e-3  # largest peak of a recording that counts as silent: 60 dB below full scale


class RecordingProblem(NamedTuple):
    """A problem of a recording, or a conversion worth reporting.

    Attributes:
        kind: ``unreadable``; ``silent``; ``short``, shorter than a crop; ``sample_rate`` or ``channels``, converted.
        detail: Message that names the file.
    """

    kind: Literal["unreadable", "silent", "short", "sample_rate", "channels"]
    detail: str


def check_recordings(data: RecordingSet, *, decode: bool = True) -> Findings:
    """Count the recordings of a data set and check each, regardless of its ``partial`` and ``on_bad_file``.

    Args:
        data: The data set.
        decode: Whether to decode all recordings completely, on all available processors; otherwise only headers are read, which
            reveals neither silence nor most corruption.

    Raises:
        ValueError: If there are no recordings; the message states how to get them.
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
    rows = [SplitFindings(group.splits, len(group.files), group.num_published) for group in groups]
    rows += [SplitFindings("", len(unused), None)] if unused else []
    problems = [problem for group in groups for problem in miscounted(group)]
    recordings = [(group.splits, file.path) for group in groups for file in group.files]
    results = recording_problems(data, [path for _, path in recordings], decode=decode)
    for (splits, path), result in zip(recordings, results, strict=True):
        problems += [Problem(splits, problem.kind, str(path), problem.detail) for problem in result]
    return Findings(rows, problems + unused, folder)


def recording_problems(
    data: RecordingSet, paths: Sequence[Path], *, decode: bool = True
) -> Iterator[list[RecordingProblem]]:
    """Yield the problems of every recording in order; an empty list if there are none.

    Args:
        data: Data set whose sampling rate, channels and crop length the recordings are compared with.
        paths: The recordings.
        decode: Whether to decode recordings or read only their headers.
    """
    check = partial(_problems, data=data, decode=decode)
    label = "decoding" if decode else "reading headers"
    with counting(label, len(paths)) as show, closing(in_order(check, paths)) as results:
        for done, problems in enumerate(results, 1):
            yield problems
            show(done)


def _group(data: RecordingSet, split: Split) -> ProblemGroup:
    """Return the files of a split; as in training, an empty split is an error."""
    count = data.count(split)
    try:
        files = data.files(split)
    except ValueError as error:
        return ProblemGroup(split, [], None, count, str(error))
    return ProblemGroup(
        split, files, None, count, "" if files else f"There are no recordings of the split {split} in {data.root}."
    )


def _problems(path: Path, data: RecordingSet, decode: bool) -> list[RecordingProblem]:
    """Return the problems of a recording."""
    try:
        facts = recording_facts(path)
        _check_convertible(path, facts, data)
        peak = _peak(path, facts) if decode else 1.0
    except ValueError as error:
        return [RecordingProblem("unreadable", str(error))]
    problems = []
    if peak <= _SILENCE:
        problems.append(RecordingProblem("silent", f"{path} is silent: its peak is {peak:g}, at a full scale of 1."))
    available = data.reader.available_samples(facts.frames, facts.sample_rate)
    if available < data.samples:
        without = " without its last second" if data.reader.released else ""
        detail = (
            f"{path}{without} has {max(available, 0):,} of the {data.samples:,} samples of a crop: it is zero-padded."
        )
        problems.append(RecordingProblem("short", detail))
    if facts.sample_rate != data.sample_rate:
        detail = f"{path} has a sampling rate of {facts.sample_rate:,} Hz: it is resampled to {data.sample_rate:,} Hz."
        problems.append(RecordingProblem("sample_rate", detail))
    if facts.channels != data.channels:
        problems.append(RecordingProblem("channels", f"{path} has {facts.channels} channels, which are mixed to one."))
    return problems


def _check_convertible(path: Path, facts: RecordingFacts, data: RecordingSet) -> None:
    """Raise an error if a recording cannot be converted to the channels and sampling rate of the data set."""
    sample = in_channels(torch.zeros(facts.channels, 1), data.channels, path)
    try:
        resampled(sample, facts.sample_rate, data.sample_rate)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _peak(path: Path, facts: RecordingFacts) -> float:
    """Return the peak of a recording, decoding all of it in blocks."""
    starts = range(0, facts.frames, _BLOCK)
    blocks = (read_recording(path, start, min(_BLOCK, facts.frames - start)).values for start in starts)
    return max(float(block.abs().max()) for block in blocks)
