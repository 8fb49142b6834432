"""Time and memory of decoding a code at a large size, with and without a limit: ``python -m benchmarks.decode``.

Every measurement is a process of its own, so that none inherits the memory of another; limits take turns.
"""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

import composers
from benchmarks.memory import memory
from composers.base import Composer
from composers.codes import InstanceCode, fingerprint
from datamodules.batch import Observation
from datamodules.domain import Grid
from datamodules.tiles import whole
from modalities.images import input_size, render, to_image

_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class DecodeSettings:
    """Decode one code as a square image; 0 MB stands for the plain way, all coordinates of the image at once.

    Args:
        checkpoint: The model, a file or the name of bundled weights.
        size: Pixels along each side.
        limits: Memory limits in MB that take turns; the first is what the others are compared with.
        repeats: Processes for each.
        csv: File that gets one row per limit, made if missing; none if None.

    Raises:
        ValueError: If a number is not positive.
    """

    checkpoint: str = "photos_ipc"
    size: int = 4096
    limits: tuple[float, ...] = (2000.0, 500.0, 100.0, 0.0)
    repeats: int = 3
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.size < 1 or self.repeats < 1 or not self.limits or min(self.limits) < 0:
            raise ValueError(
                f"size is {self.size}, repeats {self.repeats}, limits {self.limits}: give positive numbers."
            )


@dataclass(frozen=True)
class DecodeMeasurement:
    """One decoding.

    Attributes:
        seconds: From the code to the image.
        peak_mb: Largest memory of the process above what it took with the model loaded, the image included, in 10^6 bytes.
    """

    seconds: float
    peak_mb: float


def measure(checkpoint: str, size: int, limit: float) -> DecodeMeasurement:
    """Decode once in this process, after a small decoding that loads what is loaded once."""
    composer = composers.load(checkpoint)
    seen = input_size(composer)
    with torch.no_grad():
        latents = composer.encode(Observation(torch.rand(1, 3, seen, seen)))
    code = InstanceCode(latents, [whole((size, size))], (size, size), fingerprint(composer), domain=Grid.unit(2))
    _decode(composer, code, 64, limit)
    _CLEAR.write_text("5")  # the peak starts again from here
    before, start = memory("VmRSS"), time.perf_counter()
    _decode(composer, code, size, limit)
    return DecodeMeasurement(time.perf_counter() - start, memory("VmHWM") - before)


def _decode(composer: Composer, code: InstanceCode, size: int, limit: float) -> None:
    """Decode a code as an image."""
    if limit:
        render(composer, code, size, max_memory=limit)
        return
    with torch.inference_mode():
        to_image(composer.render(composer.compose(code.latents), Grid.unit(2).coords((size, size)))[0], (size, size))


def run(settings: DecodeSettings) -> dict[float, list[DecodeMeasurement]]:
    """Return the measurements of every limit, made in turn."""
    found: dict[float, list[DecodeMeasurement]] = {limit: [] for limit in settings.limits}
    for _ in range(settings.repeats):
        for limit in settings.limits:
            command = [sys.executable, "-m", "benchmarks.decode", "--once", str(limit)]
            command += ["--checkpoint", settings.checkpoint, "--size", str(settings.size)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - ourselves
            found[limit].append(DecodeMeasurement(**json.loads(printed.splitlines()[-1])))
    return found


def report(settings: DecodeSettings, found: dict[float, list[DecodeMeasurement]]) -> None:
    """Print a table, and append it to the CSV."""
    pixels = settings.size**2 / 1e6
    table = Table(
        title=f"{settings.size} x {settings.size} pixels, {torch.get_num_threads()} threads", title_justify="left"
    )
    headings = ("limit [MB]", "peak [MB]", "megapixels a second", "time, first / this")
    for heading in headings:
        table.add_column(heading, justify="right")
    first, lines = found[settings.limits[0]], []
    for limit, measured in found.items():
        ratio = statistics.median(one.seconds / this.seconds for one, this in zip(first, measured, strict=True))
        speed = pixels / statistics.median(one.seconds for one in measured)
        peak = max(one.peak_mb for one in measured)
        lines.append([f"{limit:g}" if limit else "plain", f"{peak:.0f}", f"{speed:.3f}", f"{ratio:.2f}"])
        table.add_row(*lines[-1])
    Console().print(table)
    if settings.csv is not None:
        fresh = not settings.csv.exists()
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                ([["size", *headings]] if fresh else []) + [[settings.size, *line] for line in lines]
            )


def main(args: list[str] | None = None) -> None:
    """Run the command line: measure all limits in processes of their own, or one of them here, with ``--once LIMIT``."""
    given = sys.argv[1:] if args is None else args
    if "--once" in given:
        place = given.index("--once")
        settings = auto_cli(DecodeSettings, args=given[:place] + given[place + 2 :])
        print(json.dumps(vars(measure(settings.checkpoint, settings.size, float(given[place + 1])))))
        return
    settings = auto_cli(DecodeSettings, args=given)
    report(settings, run(settings))


if __name__ == "__main__":
    main()
