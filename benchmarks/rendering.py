"""Time and memory of rendering views of one scene: ``python -m benchmarks.rendering``.

Every measurement is a process of its own, so that none inherits the memory of another.
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
from datamodules.cameras import focal_length, orbit
from datamodules.domain import Rays

_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class RenderingSettings:
    """Render all pixels of square views in one call, through a coordinate network of the published size with random weights.

    Args:
        size: Pixels along each side of a view.
        samples_per_ray: Points of every ray.
        views: Numbers of views, each measured in a process of its own.
        hidden_dim: Width of the six layers.
        chunk_size: Points that the renderer evaluates at a time.

    Raises:
        ValueError: If a number is not positive.
    """

    size: int = 128
    samples_per_ray: int = 128
    views: tuple[int, ...] = (1, 8)
    hidden_dim: int = 256
    chunk_size: int = 131072

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.views or min(self.size, self.hidden_dim, *self.views) < 1:
            raise ValueError(
                f"size is {self.size}, hidden_dim {self.hidden_dim}, views {self.views}: give positive numbers."
            )


@dataclass(frozen=True)
class Measurement:
    """One rendering.

    Attributes:
        seconds: From rays to colours.
        peak_mb: Largest memory of the process above what it took with network and rays loaded, in 10^6 bytes.
    """

    seconds: float
    peak_mb: float


def measure(settings: RenderingSettings, views: int) -> Measurement:
    """Render once in this process, after a small rendering that loads what is loaded once."""
    field = scene(settings.hidden_dim)
    renderer = VolumeRenderer(2.0, 6.0, settings.samples_per_ray, chunk_size=settings.chunk_size)
    rays = _rays(views, settings.size)
    with torch.inference_mode():
        renderer.rendered(field, _rays(1, 4))
        _CLEAR.write_text("5")  # the peak starts again from here
        before, start = memory("VmRSS"), time.perf_counter()
        renderer.rendered(field, rays)
    return Measurement(time.perf_counter() - start, memory("VmHWM") - before)


def scene(hidden_dim: int) -> Field:
    """Return the field of random weights of the second layer."""
    inr = CoordinateMLP(3, 4, hidden_dim, 6, (1,), FourierFeatures(20, 2.0**8, use_pi=False), output_offset=0.0)
    return inr.bind({1: (torch.randn(1, *inr.layer_sizes[1]), None)})


def _rays(views: int, size: int) -> Tensor:
    """Return all rays of views around the origin, ``(V * size * size, 6)``."""
    focals = torch.full((views, 2), focal_length(0.7, size))
    return Rays().coords((views, size, size), cameras=(orbit(views), focals))


def run(settings: RenderingSettings) -> dict[int, Measurement]:
    """Return the measurement of every number of views."""
    found = {}
    for views in settings.views:
        command = [sys.executable, "-m", "benchmarks.rendering", "--once", str(views)]
        command += [f"--{name}={value}" for name, value in vars(settings).items() if name != "views"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - ourselves
        found[views] = Measurement(**json.loads(printed.splitlines()[-1]))
    return found


def report(settings: RenderingSettings, found: dict[int, Measurement]) -> None:
    """Print a table."""
    title = f"{settings.size} x {settings.size} pixels, {settings.samples_per_ray} samples a ray"
    table = Table(title=f"{title}, {torch.get_num_threads()} threads", title_justify="left")
    for heading in ("views", "peak [MB]", "seconds a view"):
        table.add_column(heading, justify="right")
    for views, one in found.items():
        table.add_row(str(views), f"{one.peak_mb:.0f}", f"{one.seconds / views:.1f}")
    Console().print(table)


def main(args: list[str] | None = None) -> None:
    """Run the command line: measure in processes of their own, or one of them here, with ``--once VIEWS``."""
    given = sys.argv[1:] if args is None else args
    if "--once" in given:
        place = given.index("--once")
        settings = auto_cli(RenderingSettings, args=given[:place] + given[place + 2 :])
        print(json.dumps(vars(measure(settings, int(given[place + 1])))))
        return
    settings = auto_cli(RenderingSettings, args=given)
    report(settings, run(settings))


if __name__ == "__main__":
    main()
