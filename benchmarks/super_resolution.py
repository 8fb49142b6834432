"""Time and memory of super-resolution: ``python -m benchmarks.super_resolution``.

Every measurement runs in a new process, so that none inherits the memory of another. Sizes and methods alternate. ``tiles`` is
`modalities.super_resolve`; ``whole`` does the same without tiles; ``per query`` multiplies the first layer of the decoding MLP
with the unfolded features at every coordinate, as in the released code, rather than once per map.
"""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import composers
from benchmarks.memory import memory
from composers.base import Composer
from composers.networks import LocalMLP
from composers.networks.cells import cells_around
from composers.networks.local_mlp import UnfoldedFeatures
from datamodules.batch import Observation
from datamodules.domain import CellGrid
from modalities.enlarging import super_resolve

_CLEAR = Path("/proc/self/clear_refs")
_CHUNK = 30_000  # coordinates at a time in the released evaluation


@dataclass(frozen=True)
class SuperResolutionSettings:
    """Enlarge random images.

    Args:
        checkpoint: Path of a checkpoint or name of bundled weights.
        sizes: Rows and columns of the results.
        scale: Scale factor.
        methods: ``tiles``, ``whole`` and ``per query``; the others are compared with the first.
        repeats: Number of processes per size and method.
        csv: CSV file to which one row per size and method is appended. If None, no file is written.

    Raises:
        ValueError: If an argument is out of range.
    """

    checkpoint: str = "photos_liif"
    sizes: tuple[tuple[int, int], ...] = ((1080, 1920), (2048, 2048), (4096, 4096))
    scale: int = 4
    methods: tuple[str, ...] = ("tiles", "whole", "per query")
    repeats: int = 3
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if (
            not self.sizes
            or self.repeats < 1
            or self.scale < 1
            or any(side % self.scale for size in self.sizes for side in size)
        ):
            raise ValueError(
                f"sizes is {self.sizes}, scale {self.scale}, repeats {self.repeats}: there must be sizes, all multiples of "
                "scale, and scale and repeats must be positive."
            )
        if not self.methods or set(self.methods) - set(METHODS):
            raise ValueError(f"methods is {self.methods}: choose some of {', '.join(METHODS)}.")


@dataclass(frozen=True)
class Measurement:
    """Measurement of one enlargement.

    Attributes:
        seconds: Time from the pixels to the result.
        peak_mb: Peak memory in MB (10^6 bytes) above that of the process with the model, the image and the result.
    """

    seconds: float
    peak_mb: float


def tiles(composer: Composer, image: Tensor, scale: int) -> Image.Image:
    """Enlarge in tiles."""
    return super_resolve(composer, image, scale=scale)


def whole(composer: Composer, image: Tensor, scale: int) -> Tensor:
    """Return the values ``(N, C)`` of the result, computed at once."""
    coords = CellGrid.unit(2).coords([scale * extent for extent in image.shape[1:]])
    values: Tensor = composer(Observation(image.unsqueeze(0).float() / 255), coords)
    return values[0]


def per_query(composer: Composer, image: Tensor, scale: int) -> Tensor:
    """Return the values ``(N, C)`` of the result, with the first layer at every coordinate."""
    network, first = cast(LocalMLP, composer.network), cast(UnfoldedFeatures, cast(LocalMLP, composer.network).first)
    latents = composer.encode(Observation(image.unsqueeze(0).float() / 255))
    features = functional.unfold(latents["map"], 3, padding=1)[0].mT.contiguous()
    height, width = image.shape[1:]
    results = []
    observed = latents["image"][0].flatten(1).mT if network.skip else None
    for coords in CellGrid.unit(2).coords([scale * extent for extent in image.shape[1:]]).split(_CHUNK):
        around, values = cells_around(coords[:, :2], (height, width)), torch.zeros(1)
        cell = coords[:, 2:] * coords.new_tensor([height, width])
        for index, offset, weight in zip(*around, strict=True):
            hidden = torch.relu(first.linear(torch.cat((features[index], offset, cell), dim=-1)))
            for layer in network.hidden:
                hidden = torch.relu(layer(hidden))
            predicted = network.last(hidden) / 2 + (0.5 if observed is None else observed[index])
            values = values + predicted * weight.unsqueeze(-1)
        results.append(values)
    return torch.cat(results)


METHODS: dict[str, Callable[[Composer, Tensor, int], Tensor | Image.Image]] = {
    "tiles": tiles,
    "whole": whole,
    "per query": per_query,
}


def measure(settings: SuperResolutionSettings, size: tuple[int, int], method: str) -> Measurement:
    """Enlarge once in this process, after a small warm-up."""
    composer = composers.load(settings.checkpoint)
    with torch.inference_mode():
        METHODS[method](composer, torch.zeros(3, 32, 32, dtype=torch.uint8), settings.scale)
        image = torch.randint(256, (3, *(side // settings.scale for side in size)), dtype=torch.uint8)
        _CLEAR.write_text("5")  # resets the peak
        before, start = memory("VmRSS"), time.perf_counter()
        METHODS[method](composer, image, settings.scale)
    result = 3e-6 * size[0] * size[1]
    return Measurement(time.perf_counter() - start, memory("VmHWM") - before - result)


def run(settings: SuperResolutionSettings) -> dict[tuple[tuple[int, int], str], list[Measurement]]:
    """Return the measurements by size and method, which alternate."""
    results: dict[tuple[tuple[int, int], str], list[Measurement]] = {
        (size, method): [] for size in settings.sizes for method in settings.methods
    }
    for _ in range(settings.repeats):
        for size, method in results:
            command = [sys.executable, "-m", "benchmarks.super_resolution", "--once", json.dumps([size, method])]
            command += ["--checkpoint", settings.checkpoint, "--scale", str(settings.scale)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - this module
            results[size, method].append(Measurement(**json.loads(printed.splitlines()[-1])))
    return results


def report(settings: SuperResolutionSettings, results: dict[tuple[tuple[int, int], str], list[Measurement]]) -> None:
    """Print a table, and append it to the CSV file."""
    table = Table(
        title=f"{settings.checkpoint}, x{settings.scale}, {torch.get_num_threads()} threads", title_justify="left"
    )
    headings = ("result", "method", "seconds", "peak [MB]", "time over the first")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    lines = []
    for (size, method), measurements in results.items():
        first = results[size, settings.methods[0]]
        ratio = statistics.median(b.seconds / a.seconds for a, b in zip(first, measurements, strict=True))
        seconds = statistics.median(measurement.seconds for measurement in measurements)
        peak = max(measurement.peak_mb for measurement in measurements)
        lines.append([f"{size[0]} x {size[1]}", method, f"{seconds:.2f}", f"{peak:.0f}", f"{ratio:.2f}"])
        table.add_row(*lines[-1])
    Console().print(table)
    if settings.csv is not None:
        is_new = not settings.csv.exists()
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([*([headings] if is_new else []), *lines])


def main(args: list[str] | None = None) -> None:
    """Run the benchmark; with ``--once``, measure one size and method in this process and print the result as JSON."""
    arguments = sys.argv[1:] if args is None else args
    if "--once" in arguments:
        index = arguments.index("--once")
        settings = auto_cli(SuperResolutionSettings, args=arguments[:index] + arguments[index + 2 :])
        size, method = json.loads(arguments[index + 1])
        print(json.dumps(vars(measure(settings, tuple(size), method))))
        return
    settings = auto_cli(SuperResolutionSettings, args=arguments)
    report(settings, run(settings))


if __name__ == "__main__":
    main()
