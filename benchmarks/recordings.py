"""Measure how many random crops per second are decoded from FLAC files: ``python -m benchmarks.recordings``."""

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
from datamodules.audio.augmentation import AudioAugmentation
from datamodules.loading import AddressSampler
from datamodules.storage.audio import recording_facts


@dataclass(frozen=True)
class RecordingsSettings:
    """Load random crops of generated FLAC files, as long as utterances of LibriSpeech, up to coordinate batches.

    Args:
        count: Number of recordings; an epoch has one crop of each.
        recording_seconds: Mean length of the recordings, which vary by half of it.
        seconds: Length of a crop.
        sample_rate: Samples per second of the recordings.
        target_sample_rate: Samples per second of the crops; if different, resampling is part of the measurement.
        batch_size: Crops per batch.
        epochs: Number of measured epochs, after one for warm-up.
        workers: Numbers of worker processes to measure; 0 loads in the main process.
        augment: Random changes of the crops, as in the data sets of audio.
        folder: Folder in which recordings are generated and reused; a temporary folder if None.
        csv: File to which one row per measurement is appended; none if None.

    Raises:
        ValueError: If an argument is out of range.
    """

    count: int = 1000
    recording_seconds: float = 12.0
    seconds: float = 1.0
    sample_rate: int = 16000
    target_sample_rate: int = 16000
    batch_size: int = 16
    epochs: int = 3
    workers: tuple[int, ...] = (0, 1, 2)
    augment: AudioAugmentation | None = None
    folder: Path | None = None
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.count < 2 * self.batch_size or min(self.batch_size, self.epochs) < 1 or self.recording_seconds <= 0:
            raise ValueError(
                f"count is {self.count}, batch_size {self.batch_size}, epochs {self.epochs}, recording_seconds "
                f"{self.recording_seconds}: all must be positive, and count at least two batches."
            )


def generate(settings: RecordingsSettings, folder: Path) -> None:
    """Write missing recordings; their content depends only on the settings."""
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
    """Return low-pass noise with syllables at 4 Hz and a noise floor; FLAC compresses it to about half, as it does speech.

    Args:
        count: Number of samples.
        sample_rate: Samples per second.
        random: Generator of the noise.
    """
    frequencies = np.fft.rfftfreq(count, 1 / sample_rate)
    spectrum = np.fft.rfft(random.standard_normal(count)) / (1 + (frequencies / 500) ** 2)
    coloured = np.fft.irfft(spectrum, count)
    syllables = np.sin(np.pi * 4 * np.arange(count) / sample_rate + random.uniform(0, np.pi)) ** 2
    noise_floor = 0.0004 * random.standard_normal(count)
    return np.asarray((0.1 * coloured / coloured.std() * syllables + noise_floor).clip(-1, 1))


def data_of(settings: RecordingsSettings, folder: Path, workers: int) -> AudioFolder:
    """Return a data module of the recordings, set up for training."""
    data = AudioFolder(
        str(folder),
        seconds=settings.seconds,
        sample_rate=settings.target_sample_rate,
        val_ratio=1 / settings.count,
        augment=settings.augment,
        batch_size=settings.batch_size,
        num_workers=workers,
    )
    data.setup("fit")
    return data


def throughputs(data: AudioFolder, epochs: int) -> list[float]:
    """Return the crops per second of every epoch, including the conversion to coordinate batches."""
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, AddressSampler)
    results = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        count, start = 0, time.perf_counter()
        for batch in loader:
            count += len(data.to_coordinates(batch, training=True).names)
        results.append(count / (time.perf_counter() - start))
    return results


def measure(settings: RecordingsSettings, folder: Path) -> list[list[str]]:
    """Return a row per number of workers: crops per second in the slowest and in the fastest epoch."""
    generate(settings, folder)
    rows = []
    for workers in settings.workers:
        _, *results = throughputs(data_of(settings, folder, workers), settings.epochs + 1)
        rows.append([str(workers), f"{min(results):,.0f}", f"{max(results):,.0f}"])
    return rows


def compression(settings: RecordingsSettings, folder: Path) -> float:
    """Return the size of the recordings relative to 16-bit PCM."""
    files = sorted(folder.glob("*.flac"))[: settings.count]
    return sum(file.stat().st_size for file in files) / sum(2 * recording_facts(file).frames for file in files)


def report(settings: RecordingsSettings, folder: Path, rows: list[list[str]]) -> None:
    """Print a table, and append its rows to the CSV file."""
    headings = ("workers", "crops per second, slowest epoch", "fastest")
    title = (
        f"{settings.count:,} FLAC of about {settings.recording_seconds:g} s, {compression(settings, folder):.0%} of PCM; crops "
        f"of {settings.seconds:g} s, {torch.get_num_threads()} threads"
    )
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if settings.csv is not None:
        is_new = not settings.csv.exists()
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                ([["count", *headings]] if is_new else []) + [[settings.count, *row] for row in rows]
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
