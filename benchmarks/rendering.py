"""Measure time and memory of rendering views of one scene: ``python -m benchmarks.rendering``.

Every measurement runs in a separate process, so that none inherits the memory of another.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.memory import memory
from composers.networks import CoordinateMLP, Field, FourierFeatures
from composers.rendering import VolumeRenderer
from datamodules.cameras import centred_intrinsics, focal_length, orbit
from datamodules.domain import Rays

_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class RenderingSettings:
    """Render all pixels of square views in one call, with a randomly initialised coordinate network of the published size.

    Args:
        size: Height and width of a view in pixels.
        samples_per_ray: Number of samples per ray.
        views: Numbers of views, each measured in a separate process.
        hidden_dim: Width of the six layers.
        chunk_size: Number of points that the renderer evaluates at once.

    Raises:
        ValueError: If a number is not positive.
    """

    size: int = 128
    samples_per_ray: int = 128
    views: tuple[int, ...] = (1, 8)
    hidden_dim: int = 256
    chunk_size: int = 131072

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` if a number is out of range."""
        if not self.views or min(self.size, self.hidden_dim, *self.views) < 1:
            raise ValueError(
                f"size is {self.size}, hidden_dim {self.hidden_dim}, views {self.views}: each must be positive."
            )


@dataclass(frozen=True)
class RenderingMeasurement:
    """Time and memory of one rendering.

    Attributes:
        seconds: Time from rays to colours.
        peak_mb: Peak memory of the process in 10^6 bytes, in addition to the memory with network and rays loaded.
    """

    seconds: float
    peak_mb: float


def measure(settings: RenderingSettings, views: int) -> RenderingMeasurement:
    """Measure one rendering in the current process, after a small warm-up rendering."""
    field = scene(settings.hidden_dim)
    renderer = VolumeRenderer(2.0, 6.0, settings.samples_per_ray, chunk_size=settings.chunk_size)
    rays = _rays(views, settings.size)
    with torch.inference_mode():
        renderer.rendered(field, _rays(1, 4))
        _CLEAR.write_text("5")  # resets the peak
        before, start = memory("VmRSS"), time.perf_counter()
        renderer.rendered(field, rays)
    return RenderingMeasurement(time.perf_counter() - start, memory("VmHWM") - before)


def scene(hidden_dim: int) -> Field:
    """Return a field with random weights, including the modulated second layer."""
    network = CoordinateMLP(3, 4, hidden_dim, 6, (1,), FourierFeatures(20, 2.0**8, use_pi=False), output_offset=0.0)
    return network.bind({"weight.1": torch.randn(1, *network.layer_sizes[1])})


def _rays(views: int, size: int) -> Tensor:
    """Return all rays ``(V * size * size, 6)`` of views around the origin."""
    intrinsics = centred_intrinsics(torch.full((views, 2), focal_length(0.7, size)), (size, size))
    return Rays().coords((views, size, size), cameras=(orbit(views), intrinsics))


def run(settings: RenderingSettings) -> dict[int, RenderingMeasurement]:
    """Return the measurement for every number of views, each from a separate process."""
    measurements = {}
    for views in settings.views:
        command = [sys.executable, "-m", "benchmarks.rendering", "--once", str(views)]
        command += [f"--{name}={value}" for name, value in vars(settings).items() if name != "views"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - this program
        measurements[views] = RenderingMeasurement(**json.loads(output.splitlines()[-1]))
    return measurements


def report(settings: RenderingSettings, measurements: dict[int, RenderingMeasurement]) -> None:
    """Print a table."""
    title = f"{settings.size} x {settings.size} pixels, {settings.samples_per_ray} samples per ray"
    table = Table(title=f"{title}, {torch.get_num_threads()} threads", title_justify="left")
    for heading in ("views", "peak [MB]", "seconds per view"):
        table.add_column(heading, justify="right")
    for views, measurement in measurements.items():
        table.add_row(str(views), f"{measurement.peak_mb:.0f}", f"{measurement.seconds / views:.1f}")
    Console().print(table)


def main(args: list[str] | None = None) -> None:
    """Run the command line: measure in separate processes, or with ``--once VIEWS`` in the current one."""
    args = sys.argv[1:] if args is None else args
    if "--once" in args:
        position = args.index("--once")
        settings = auto_cli(RenderingSettings, args=args[:position] + args[position + 2 :])
        print(json.dumps(vars(measure(settings, int(args[position + 1])))))
        return
    settings = auto_cli(RenderingSettings, args=args)
    report(settings, run(settings))


if __name__ == "__main__":
    main()
