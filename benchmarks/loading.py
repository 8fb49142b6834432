"""Benchmark of image loading with and without the cache, and of its memory: ``python -m benchmarks.loading``."""

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
from datamodules.loading import AddressSampler


@dataclass(frozen=True)
class LoadingSettings:
    """Load batches of random crops of synthetic JPEGs with the sizes of ImageNette, including the coordinates.

    Args:
        count: Number of images; ImageNette has 13,394.
        short_side: Shorter side of the images in pixels; the longer side is up to 1.5 times as long.
        size: Side of the crops in pixels.
        batch_size: Crops per batch.
        epochs: Measured epochs with the cache, after one warm-up epoch.
        uncached: Number of images to load without the cache.
        workers: Numbers of worker processes to measure; 0 loads in the main process.
        folder: Folder of the images and the cache, which are reused if they exist; a temporary folder if None.
        csv: CSV file to append the measurements to; None to only print them.

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
        """Check the arguments."""
        if min(self.count, self.uncached) < 2 * self.batch_size or min(self.size, self.epochs, self.batch_size) < 1:
            raise ValueError(
                f"count is {self.count}, uncached {self.uncached}, size {self.size}, epochs {self.epochs}, "
                f"batch_size {self.batch_size}: use positive numbers, and enough images for two batches."
            )


class Epoch(NamedTuple):
    """The measurements of one epoch.

    Attributes:
        speed: Crops per second.
        anonymous_mb: Anonymous memory of this process at the end, in 10^6 bytes.
        resident_mb: Resident memory of this process at the end, including pages of the cache, in 10^6 bytes.
    """

    speed: float
    anonymous_mb: float
    resident_mb: float


def generate(settings: LoadingSettings, folder: Path) -> None:
    """Write deterministic synthetic JPEGs that do not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(settings.count) if not (folder / f"{number:06d}.jpg").exists()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: _write(settings, folder / f"{number:06d}.jpg", number), missing))


def _write(settings: LoadingSettings, path: Path, number: int) -> None:
    """Write one JPEG: smooth colours with noise."""
    random = np.random.default_rng(number)
    sides = [settings.short_side, settings.short_side + int(random.integers(settings.short_side // 2 + 1))]
    random.shuffle(sides)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((sides[0], sides[1]), Image.Resampling.BICUBIC), np.int16)
    noise = random.integers(-12, 13, smooth.shape, dtype=np.int16)
    Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(path, quality=85)


def data_of(settings: LoadingSettings, folder: Path, cache: Path | None, workers: int) -> ImageFolder:
    """Return a data module of random crops of the images, set up for training."""
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


def epochs(data: ImageFolder, count: int, max_crops: int | None = None) -> list[Epoch]:
    """Measure epochs of coordinate batches, each of at most ``max_crops`` crops."""
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, AddressSampler)
    measured = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        done, start = 0, time.perf_counter()
        for batch in loader:
            done += len(data.to_coordinates(batch, training=True).names)
            if max_crops is not None and done >= max_crops:
                break
        measured.append(Epoch(done / (time.perf_counter() - start), memory("RssAnon"), memory("VmRSS")))
    return measured


def measure(settings: LoadingSettings, folder: Path) -> list[list[str]]:
    """Return one row per measurement: source, workers, crops per second, and memory after the first and the last epoch."""
    images, cache = folder / "images", folder / "cache"
    generate(settings, images)
    start = time.perf_counter()
    data_of(settings, images, cache, 0)
    rows = [["building or verifying the cache", "", f"{settings.count / (time.perf_counter() - start):,.0f}", "", ""]]
    for workers in settings.workers:
        _, first, *rest = epochs(data_of(settings, images, cache, workers), settings.epochs + 1)
        rows.append(_row("with the cache", workers, [first, *rest]))
    rows += [
        _row("without the cache", workers, epochs(data_of(settings, images, None, workers), 1, settings.uncached))
        for workers in settings.workers
    ]
    return rows


def _row(source: str, workers: int, measured: list[Epoch]) -> list[str]:
    """Return the row of a loader, with the speed of the slowest epoch."""
    slowest = min(epoch.speed for epoch in measured)
    anonymous = f"{measured[0].anonymous_mb:.0f} -> {measured[-1].anonymous_mb:.0f}"
    resident = f"{measured[0].resident_mb:.0f} -> {measured[-1].resident_mb:.0f}"
    return [source, str(workers), f"{slowest:,.0f}", anonymous, resident]


def report(settings: LoadingSettings, rows: list[list[str]]) -> None:
    """Print a table, and append it to the CSV file."""
    headings = ("images", "workers", "images/s", "anonymous memory [MB]", "resident memory [MB]")
    title = f"{settings.count:,} JPEGs, crops of {settings.size} pixels, {torch.get_num_threads()} threads"
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading.replace("[", r"\["), justify="left" if heading == "images" else "right")
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
