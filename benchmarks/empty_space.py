"""Time, memory and quality of views with empty space skipped, against plain rendering: ``python -m benchmarks.empty_space``.

A small network is fitted to a generated chair for some seconds. Both renderers then render the same view alternately in one
process, and are compared with the chair itself and with plain rendering of the network, both in float64.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.fitted_scene import chair, fit, solid_field
from benchmarks.memory import memory
from composers.networks import CoordinateMLP, FourierFeatures
from composers.rendering import Occupancy, VolumeRenderer
from datamodules.cameras import centred_intrinsics, focal_length, orbit
from datamodules.domain import Rays

_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class EmptySpaceSettings:
    """Render views of a fitted network with and without evaluating empty space.

    The network is that of ``configs/experiments/objects_ipc.yaml``: five layers of 64.

    Args:
        size: Height and width of the view in pixels.
        samples_per_ray: Samples per ray.
        fit_steps: Steps of fitting the network.
        density: Activation of the density.
        radius: Radius of the sphere that holds the object, of the second renderer.
        cells: Cells of the grid along every axis.
        repeats: Timed views per renderer, after one that is not counted.

    Raises:
        ValueError: If a number is not positive.
    """

    size: int = 128
    samples_per_ray: int = 128
    fit_steps: int = 800
    density: Literal["relu", "softplus"] = "relu"
    radius: float = 1.1
    cells: int = 64
    repeats: int = 3

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` if a number is out of range."""
        if min(self.size, self.fit_steps, self.repeats) < 1:
            raise ValueError(
                f"size is {self.size}, fit_steps {self.fit_steps}, repeats {self.repeats}: each must be positive."
            )


@dataclass(frozen=True)
class EmptySpaceMeasurement:
    """Measurement of one renderer.

    Attributes:
        seconds: Median processor time of a view, the grid included.
        peak_mb: Peak memory above that with network and rays loaded, in 10^6 bytes; 0 where the kernel does not report it.
        psnr_chair: PSNR against the chair, in dB.
        psnr_network: PSNR against plain rendering of the network in float64, in dB.
    """

    seconds: float
    peak_mb: float
    psnr_chair: float
    psnr_network: float


def main(args: list[str] | None = None) -> dict[str, EmptySpaceMeasurement]:
    """Run the command line and print a table."""
    settings = auto_cli(EmptySpaceSettings, args=args)
    measurements = measure(settings)
    plain = measurements["plain"]
    title = f"{settings.size} x {settings.size} pixels, {settings.samples_per_ray} samples per ray, {settings.density}"
    table = Table(title=title, title_justify="left")
    for heading in ("renderer", "seconds", "plain / this", "peak [MB]", "PSNR, chair [dB]", "PSNR, network [dB]"):
        table.add_column(heading, justify="right")
    for name, row in measurements.items():
        numbers = (row.seconds, plain.seconds / row.seconds, row.peak_mb, row.psnr_chair, row.psnr_network)
        table.add_row(name, *(f"{number:.2f}" for number in numbers))
    Console(width=120).print(table)
    return measurements


@torch.no_grad()
def measure(settings: EmptySpaceSettings) -> dict[str, EmptySpaceMeasurement]:
    """Fit the network, and measure all renderers by name, the plain one first."""
    torch.manual_seed(0)
    solid = chair()
    network = CoordinateMLP(3, 4, 64, 5, (1,), FourierFeatures(6, 16.0, use_pi=False), output_offset=0.0)
    with torch.enable_grad():
        modulations = fit(network, solid, settings.fit_steps)
    field, rays = network.bind(modulations), _rays(settings.size)
    plain = partial(VolumeRenderer, 2.0, 6.0, settings.samples_per_ray, density=settings.density)
    occupancy = Occupancy(settings.cells)
    renderers = {
        "plain": plain(),
        "occupancy": plain(occupancy=occupancy),
        "radius": plain(radius=settings.radius),
        "radius and occupancy": plain(radius=settings.radius, occupancy=occupancy),
    }
    exact = copy.deepcopy(network).double().bind({name: value.double() for name, value in modulations.items()})
    judge = plain(chunk_size=32768)
    views = {name: renderer(field, rays) for name, renderer in renderers.items()}  # as warm-up, too
    network_view = judge(exact, rays.double())
    fine = VolumeRenderer(2.0, 6.0, 2 * settings.samples_per_ray, radius=1.0, chunk_size=32768)
    chair_view = fine(solid_field(solid), rays.double())
    seconds: dict[str, list[float]] = {name: [] for name in renderers}
    peaks = dict.fromkeys(renderers, 0.0)
    for _ in range(settings.repeats):
        for name, renderer in renderers.items():
            before = _reset_peak()
            start = time.process_time()
            renderer(field, rays)
            seconds[name].append(time.process_time() - start)
            peaks[name] = max(peaks[name], memory("VmHWM") - before if before else 0.0)
    return {
        name: EmptySpaceMeasurement(
            statistics.median(seconds[name]), peaks[name], _psnr(view, chair_view), _psnr(view, network_view)
        )
        for name, view in views.items()
    }


def _rays(size: int) -> Tensor:
    """Return all rays ``(size * size, 6)`` of a view."""
    intrinsics = centred_intrinsics(torch.full((1, 2), focal_length(0.7, size)), (size, size))
    return Rays().coords((1, size, size), cameras=(orbit(8)[1:2], intrinsics))


def _reset_peak() -> float:
    """Reset the peak memory of this process, and return its memory in MB; 0 where the kernel does not report it."""
    if not _CLEAR.exists():
        return 0.0
    _CLEAR.write_text("5")
    return memory("VmRSS")


def _psnr(view: Tensor, reference: Tensor) -> float:
    """Return the PSNR of a view in dB."""
    return float(-10 * (view.double() - reference).square().mean().log10())


if __name__ == "__main__":
    main()
