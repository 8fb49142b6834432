"""Images a second from files, with the cache and without, and memory over epochs: ``python -m benchmarks.loading``."""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.memory import memory
from datamodules import ImageFolder
from datamodules.batch import Signal
from datamodules.loading import AddressSampler


@dataclass(frozen=True)
class LoadingSettings:
    """Load random crops of generated JPEGs of the sizes of ImageNette, epoch after epoch, until the crops are batches.

    Args:
        count: Images; ImageNette has 13,394.
        short_side: Pixels of their shorter side; the longer one has up to half as many more.
        size: Pixels along each side of a crop.
        batch_size: Crops of a batch.
        epochs: Epochs with the cache, after one that is not counted.
        uncached: Images that are loaded without the cache.
        workers: Numbers of loading processes to measure; 0 loads in the main process.
        folder: Where images and cache are made, kept and found again; a temporary folder if None.
        csv: File that gets one row per measurement, made if missing; none if None.

    Raises:
        ValueError: If a number is out of range.
    """

    count: int = 13394
    short_side: int = 320
    size: int = 178
    batch_size: int = 16
    epochs: int = 3
    uncached: int = 2000
    workers: tuple[int, ...] = (0, 1, 2)
    folder: Path | None = None
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if min(self.count, self.uncached) < 2 * self.batch_size or min(self.size, self.epochs, self.batch_size) < 1:
            raise ValueError(
                f"count is {self.count}, uncached {self.uncached}, size {self.size}, epochs {self.epochs}, "
                f"batch_size {self.batch_size}: give positive numbers, and images for two batches at least."
            )


class Epoch(NamedTuple):
    """What one epoch took.

    Attributes:
        rate: Crops a second.
        own_mb: Memory of this process at the end that is its own, in 10^6 bytes.
        resident_mb: The same with the pages of the cache that the system keeps for it.
    """

    rate: float
    own_mb: float
    resident_mb: float


def generate(settings: LoadingSettings, folder: Path) -> None:
    """Write JPEGs with shapes and a little noise, the same every time; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(settings.count) if not (folder / f"{number:06d}.jpg").exists()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: _write(settings, folder / f"{number:06d}.jpg", number), missing))


def _write(settings: LoadingSettings, path: Path, number: int) -> None:
    """Write one image."""
    random = np.random.default_rng(number)
    sides = [settings.short_side, settings.short_side + int(random.integers(settings.short_side // 2 + 1))]
    random.shuffle(sides)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((sides[0], sides[1]), Image.Resampling.BICUBIC), np.int16)
    noise = random.integers(-12, 13, smooth.shape, dtype=np.int16)
    Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(path, quality=85)


def data_of(settings: LoadingSettings, folder: Path, cache: Path | None, workers: int) -> ImageFolder:
    """Return random crops of the images as a data module that is set up for training."""
    data = ImageFolder(
        str(folder),
        size=settings.size,
        crop="random",
        crop_scale=None,
        flip=True,
        val_ratio=1 / settings.count,
        cache=None if cache is None else str(cache),
        batch_size=settings.batch_size,
        num_workers=workers,
    )
    data.setup("fit")
    return data


def epochs(data: ImageFolder, count: int, most: int | None = None) -> list[Epoch]:
    """Return what epochs took until the coordinate batches were made, each of ``most`` crops if that is less."""
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, AddressSampler)
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        done, start = 0, time.perf_counter()
        for batch in loader:
            done += len(_crops(data, batch))
            if most is not None and done >= most:
                break
        found.append(Epoch(done / (time.perf_counter() - start), memory("RssAnon"), memory("VmRSS")))
    return found


def _crops(data: ImageFolder, batch: Signal) -> torch.Tensor:
    """Return the images of a batch as the composer sees them, ``(B, 3, size, size)`` in [0, 1]."""
    signal = data.to_coordinates(batch, training=True).observation.signal
    assert isinstance(signal, torch.Tensor)
    return signal


def measure(settings: LoadingSettings, folder: Path) -> list[list[str]]:
    """Return a line per measurement: what was loaded how, crops a second, and memory after the first and the last epoch."""
    images, cache = folder / "images", folder / "cache"
    generate(settings, images)
    start = time.perf_counter()
    data_of(settings, images, cache, 0)
    lines = [
        ["making the cache, or verifying it", "", f"{settings.count / (time.perf_counter() - start):,.0f}", "", ""]
    ]
    for workers in settings.workers:
        _, first, *rest = epochs(data_of(settings, images, cache, workers), settings.epochs + 1)
        lines.append(_line("with the cache", workers, [first, *rest]))
    lines += [
        _line("without", workers, epochs(data_of(settings, images, None, workers), 1, settings.uncached))
        for workers in settings.workers
    ]
    return lines


def _line(what: str, workers: int, found: list[Epoch]) -> list[str]:
    """Return the line of a loader: the slowest epoch counts."""
    slowest = min(epoch.rate for epoch in found)
    own = f"{found[0].own_mb:.0f} -> {found[-1].own_mb:.0f}"
    resident = f"{found[0].resident_mb:.0f} -> {found[-1].resident_mb:.0f}"
    return [what, str(workers), f"{slowest:,.0f}", own, resident]


def report(settings: LoadingSettings, lines: list[list[str]]) -> None:
    """Print a table, and append it to the CSV."""
    headings = ("images", "workers", "a second", "own memory [MB]", "resident [MB]")
    title = f"{settings.count:,} JPEGs, crops of {settings.size} pixels, {torch.get_num_threads()} threads"
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading.replace("[", r"\["), justify="left" if heading == "images" else "right")
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
    settings = auto_cli(LoadingSettings, args=args)
    try:
        if settings.folder is not None:
            report(settings, measure(settings, settings.folder))
            return
        with tempfile.TemporaryDirectory() as folder:
            report(settings, measure(settings, Path(folder)))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
