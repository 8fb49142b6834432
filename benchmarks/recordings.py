"""Pieces of audio a second from FLAC files, decoded where they lie: ``python -m benchmarks.recordings``."""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from jsonargparse import auto_cli
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from datamodules import AudioFolder
from datamodules.loading import AddressSampler
from datamodules.storage.audio import recording_facts


@dataclass(frozen=True)
class RecordingsSettings:
    """Load random pieces of generated FLAC files as long as utterances of LibriSpeech until they are batches of coordinates.

    Args:
        count: Recordings; an epoch has one piece of each.
        recording_seconds: Their length in the mean; they vary by a half.
        seconds: Of a piece.
        sample_rate: Samples a second of the recordings.
        target_sample_rate: The same of pieces; another makes resampling part of the measurement.
        batch_size: Pieces of a batch.
        epochs: That are measured, after one that is not.
        workers: Numbers of loading processes to measure; 0 loads in the main process.
        folder: Where recordings are made, kept and found again; a temporary folder if None.
        csv: File that gets one row per measurement, made if missing; none if None.

    Raises:
        ValueError: If a number is out of range.
    """

    count: int = 1000
    recording_seconds: float = 12.0
    seconds: float = 1.0
    sample_rate: int = 16000
    target_sample_rate: int = 16000
    batch_size: int = 16
    epochs: int = 3
    workers: tuple[int, ...] = (0, 1, 2)
    folder: Path | None = None
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.count < 2 * self.batch_size or min(self.batch_size, self.epochs) < 1 or self.recording_seconds <= 0:
            raise ValueError(
                f"count is {self.count}, batch_size {self.batch_size}, epochs {self.epochs}, recording_seconds "
                f"{self.recording_seconds}: give positive numbers, and recordings for two batches at least."
            )


def generate(settings: RecordingsSettings, folder: Path) -> None:
    """Write recordings, the same every time; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(settings.count) if not (folder / f"{number:06d}.flac").exists()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: _write(settings, folder / f"{number:06d}.flac", number), missing))


def _write(settings: RecordingsSettings, path: Path, number: int) -> None:
    """Write one recording."""
    random = np.random.default_rng(number)
    count = round(settings.sample_rate * settings.recording_seconds * random.uniform(0.5, 1.5))
    soundfile.write(path, speech_like(count, settings.sample_rate, random), settings.sample_rate, subtype="PCM_16")


def speech_like(count: int, sample_rate: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Return noise that falls with frequency and swells four times a second, and a noise floor: FLAC halves it, as speech.

    Args:
        count: Samples.
        sample_rate: Samples a second.
        random: What the noise is drawn from.
    """
    frequencies = np.fft.rfftfreq(count, 1 / sample_rate)
    spectrum = np.fft.rfft(random.standard_normal(count)) / (1 + (frequencies / 500) ** 2)
    coloured = np.fft.irfft(spectrum, count)
    syllables = np.sin(np.pi * 4 * np.arange(count) / sample_rate + random.uniform(0, np.pi)) ** 2
    quiet = 0.0004 * random.standard_normal(count)
    return np.asarray((0.1 * coloured / coloured.std() * syllables + quiet).clip(-1, 1))


def data_of(settings: RecordingsSettings, folder: Path, workers: int) -> AudioFolder:
    """Return random pieces of the recordings as a data module that is set up for training."""
    data = AudioFolder(
        str(folder),
        seconds=settings.seconds,
        sample_rate=settings.target_sample_rate,
        val_ratio=1 / settings.count,
        batch_size=settings.batch_size,
        num_workers=workers,
    )
    data.setup("fit")
    return data


def throughputs(data: AudioFolder, count: int) -> list[float]:
    """Return the pieces a second of so many epochs, until their coordinate batches were made."""
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, AddressSampler)
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        done, start = 0, time.perf_counter()
        for batch in loader:
            done += len(data.to_coordinates(batch, training=True).names)
        found.append(done / (time.perf_counter() - start))
    return found


def measure(settings: RecordingsSettings, folder: Path) -> list[list[str]]:
    """Return a line per number of workers: pieces a second in the slowest and in the fastest epoch."""
    generate(settings, folder)
    lines = []
    for workers in settings.workers:
        _, *found = throughputs(data_of(settings, folder, workers), settings.epochs + 1)
        lines.append([str(workers), f"{min(found):,.0f}", f"{max(found):,.0f}"])
    return lines


def share(settings: RecordingsSettings, folder: Path) -> float:
    """Return the bytes of the recordings as a part of those that they would have as 16-bit PCM."""
    files = sorted(folder.glob("*.flac"))[: settings.count]
    return sum(file.stat().st_size for file in files) / sum(2 * recording_facts(file).frames for file in files)


def report(settings: RecordingsSettings, folder: Path, lines: list[list[str]]) -> None:
    """Print a table, and append it to the CSV."""
    headings = ("workers", "a second, slowest epoch", "fastest")
    title = (
        f"{settings.count:,} FLAC of about {settings.recording_seconds:g} s, {share(settings, folder):.0%} of PCM; pieces of "
        f"{settings.seconds:g} s, {torch.get_num_threads()} threads"
    )
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    if settings.csv is not None:
        fresh = not settings.csv.exists()
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                ([["count", *headings]] if fresh else []) + [[settings.count, *line] for line in lines]
            )


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    settings = auto_cli(RecordingsSettings, args=args)
    try:
        if settings.folder is not None:
            report(settings, settings.folder, measure(settings, settings.folder))
            return
        with tempfile.TemporaryDirectory() as folder:
            report(settings, Path(folder), measure(settings, Path(folder)))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
