"""Time and memory of decoding a code at a large size, with and without a memory limit: ``python -m benchmarks.decode``.

Every measurement runs in a new process, so that none inherits the memory of another. Limits alternate.
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
    """Decode one code as a square image under several memory limits.

    Args:
        checkpoint: Path of a checkpoint or name of bundled weights.
        size: Height and width of the image in pixels.
        limits: Memory limits in MB; 0 decodes all coordinates at once. Other limits are compared with the first.
        repeats: Number of processes per limit.
        csv: CSV file to which one row per limit is appended. If None, no file is written.

    Raises:
        ValueError: If ``size`` or ``repeats`` is not positive, or a limit is negative.
    """

    checkpoint: str = "photos_ipc"
    size: int = 4096
    limits: tuple[float, ...] = (2000.0, 500.0, 100.0, 0.0)
    repeats: int = 3
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Raise if an argument is out of range."""
        if self.size < 1 or self.repeats < 1 or not self.limits or min(self.limits) < 0:
            raise ValueError(
                f"size is {self.size}, repeats is {self.repeats} and limits is {self.limits}; size and repeats must be "
                "positive, and limits must not be empty or negative."
            )


@dataclass(frozen=True)
class DecodeMeasurement:
    """Measurement of one decoding.

    Attributes:
        seconds: Time from the code to the image.
        peak_mb: Peak memory in MB (10^6 bytes) above that of the process with the model loaded, including the image.
    """

    seconds: float
    peak_mb: float


def measure(checkpoint: str, size: int, limit: float) -> DecodeMeasurement:
    """Decode once in this process, after a small warm-up decoding."""
    composer = composers.load(checkpoint)
    input_pixels = input_size(composer)
    with torch.no_grad():
        latents = composer.encode(Observation(torch.rand(1, 3, input_pixels, input_pixels)))
    code = InstanceCode(latents, [whole((size, size))], (size, size), fingerprint(composer), domain=Grid.unit(2))
    _decode(composer, code, 64, limit)
    _CLEAR.write_text("5")  # resets the peak
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
    """Return the measurements by limit; the limits alternate."""
    results: dict[float, list[DecodeMeasurement]] = {limit: [] for limit in settings.limits}
    for _ in range(settings.repeats):
        for limit in settings.limits:
            command = [sys.executable, "-m", "benchmarks.decode", "--once", str(limit)]
            command += ["--checkpoint", settings.checkpoint, "--size", str(settings.size)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - this module
            results[limit].append(DecodeMeasurement(**json.loads(printed.splitlines()[-1])))
    return results


def report(settings: DecodeSettings, results: dict[float, list[DecodeMeasurement]]) -> None:
    """Print a table, and append it to the CSV file."""
    pixels = settings.size**2 / 1e6
    table = Table(
        title=f"{settings.size} x {settings.size} pixels, {torch.get_num_threads()} threads", title_justify="left"
    )
    headings = ("limit [MB]", "peak [MB]", "megapixels per second", "speed-up over the first")
    for heading in headings:
        table.add_column(heading, justify="right")
    first, lines = results[settings.limits[0]], []
    for limit, measurements in results.items():
        ratio = statistics.median(a.seconds / b.seconds for a, b in zip(first, measurements, strict=True))
        speed = pixels / statistics.median(measurement.seconds for measurement in measurements)
        peak = max(measurement.peak_mb for measurement in measurements)
        lines.append([f"{limit:g}" if limit else "plain", f"{peak:.0f}", f"{speed:.3f}", f"{ratio:.2f}"])
        table.add_row(*lines[-1])
    Console().print(table)
    if settings.csv is not None:
        is_new = not settings.csv.exists()
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                ([["size", *headings]] if is_new else []) + [[settings.size, *line] for line in lines]
            )


def main(args: list[str] | None = None) -> None:
    """Run the benchmark; with ``--once LIMIT``, measure one limit in this process and print the result as JSON."""
    arguments = sys.argv[1:] if args is None else args
    if "--once" in arguments:
        index = arguments.index("--once")
        settings = auto_cli(DecodeSettings, args=arguments[:index] + arguments[index + 2 :])
        print(json.dumps(vars(measure(settings.checkpoint, settings.size, float(arguments[index + 1])))))
        return
    settings = auto_cli(DecodeSettings, args=arguments)
    report(settings, run(settings))


if __name__ == "__main__":
    main()
