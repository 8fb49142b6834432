"""Time and memory of extracting surfaces: ``python -m benchmarks.level_set``.

A small network is fitted to the signed distances of a generated chair first. Every measurement runs in a new process, so that
none inherits the memory of another. ``bricks`` is `modalities.level_set.level_set` with default settings, ``dense`` is marching
cubes on the complete grid, and ``bricks of 16`` and ``bricks of 32`` have larger bricks.
"""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.memory import memory
from composers.base import Composer
from composers.inference import LearnedStart
from composers.latents import Direct
from composers.networks import CoordinateMLP, FourierFeatures
from datamodules.batch import Observation
from datamodules.domain import Volume
from datamodules.shapes.families import generate
from datamodules.tiles import bands
from modalities.level_set import level_set
from modalities.shapes import evaluator
from modalities.triangle_mesh import TriangleMesh

_CLEAR = Path("/proc/self/clear_refs")
_BAND = 1 << 18  # points at a time on the complete grid

Evaluate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LevelSetSettings:
    """Extract the surface of a fitted chair.

    Args:
        hidden_dim: Width of the network.
        num_layers: Layers of the network.
        fitting_steps: Optimizer steps that fit the network, with 4,096 points each.
        resolutions: Numbers of cells along each side of the cube.
        methods: ``bricks``, ``bricks of 16``, ``bricks of 32`` and ``dense``; the others are compared with the first.
        max_dense: Largest resolution of ``dense``.
        repeats: Number of processes per resolution and method.
        csv: CSV file to which one row per resolution and method is appended. If None, no file is written.

    Raises:
        ValueError: If an argument is out of range.
    """

    hidden_dim: int = 128
    num_layers: int = 5
    fitting_steps: int = 400
    resolutions: tuple[int, ...] = (128, 256, 512)
    methods: tuple[str, ...] = ("bricks", "bricks of 16", "bricks of 32", "dense")
    max_dense: int = 256
    repeats: int = 3
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if min(self.hidden_dim, self.num_layers - 1, self.fitting_steps, self.repeats, *self.resolutions) < 1:
            raise ValueError(
                f"hidden_dim is {self.hidden_dim}, num_layers {self.num_layers}, fitting_steps {self.fitting_steps}, "
                f"resolutions {self.resolutions}, repeats {self.repeats}: num_layers must be at least 2, the others positive."
            )
        if not self.methods or set(self.methods) - set(METHODS):
            raise ValueError(f"methods is {self.methods}: choose some of {', '.join(METHODS)}.")


@dataclass(frozen=True)
class Extraction:
    """Time and memory of one extraction.

    Attributes:
        seconds: Time from the code to the mesh.
        peak_mb: Peak memory in MB (10^6 bytes) above that of the process with the model.
        evaluations: Number of points at which the network was evaluated.
        faces: Number of faces of the mesh.
    """

    seconds: float
    peak_mb: float
    evaluations: int
    faces: int


def dense(evaluate: Evaluate, resolution: int) -> TriangleMesh:
    """Return the level set from values on the complete grid."""
    from skimage.measure import marching_cubes

    shape, domain = (resolution,) * 3, Volume(1.0)
    values = torch.cat([evaluate(domain.coords(shape, band)) for band in bands(shape, _BAND)]).view(shape)
    vertices, faces, _, _ = marching_cubes(values.numpy(), 0.0, gradient_direction="descent")  # type: ignore[no-untyped-call]
    return TriangleMesh(((vertices + 0.5) * (2 / resolution) - 1).astype(np.float32), faces.astype(np.int32))


def bricks(evaluate: Evaluate, resolution: int, brick: int = 8) -> TriangleMesh:
    """Return the level set from bricks."""
    return level_set(evaluate, resolution=resolution, brick=brick)


METHODS: dict[str, Callable[[Evaluate, int], TriangleMesh]] = {
    "bricks": bricks,
    "bricks of 16": partial(bricks, brick=16),
    "bricks of 32": partial(bricks, brick=32),
    "dense": dense,
}


def build(settings: LevelSetSettings) -> Composer:
    """Return a model that has one code for all shapes."""
    network = CoordinateMLP(
        3,
        1,
        settings.hidden_dim,
        settings.num_layers,
        encoding=FourierFeatures(num_frequencies=16, max_frequency=16),
        normalize_weights=False,
        output_offset=0.0,
    )
    return Composer(network, Direct(), LearnedStart())


def fit(settings: LevelSetSettings, path: Path) -> None:
    """Fit a model to the signed distances of a generated chair, and save its state."""
    torch.manual_seed(0)
    solid, composer, generator = generate("chairs", 0), build(settings), np.random.default_rng(0)
    optimizer = torch.optim.Adam(composer.parameters(), lr=1e-3)
    for _ in range(settings.fitting_steps):
        near = solid.surface(2048, generator)[0] + 0.05 * generator.standard_normal((2048, 3))
        points = np.concatenate((near, generator.uniform(-1, 1, (2048, 3))))
        coords, distances = (torch.from_numpy(part).float() for part in (points, solid.distance(points)))
        loss = (composer.render(composer.compose(_latents(composer)), coords)[0, :, 0] - distances).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(composer.state_dict(), path)


def measure(settings: LevelSetSettings, path: Path, resolution: int, method: str) -> Extraction:
    """Extract once in this process, after a small warm-up."""
    composer = build(settings).eval()
    composer.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        evaluate, counts = evaluator(composer, composer.reconstruction(_latents(composer))), [0]

    def counted(coords: Tensor) -> Tensor:
        counts[0] += len(coords)
        return evaluate(coords)

    METHODS[method](evaluate, 48)
    _CLEAR.write_text("5")  # resets the peak
    before, start = memory("VmRSS"), time.perf_counter()
    mesh = METHODS[method](counted, resolution)
    seconds = time.perf_counter() - start
    return Extraction(seconds, memory("VmHWM") - before, counts[0], len(mesh.faces))


def _latents(composer: Composer) -> dict[str, Tensor]:
    """Return the latents of the only code."""
    return composer.encode(Observation(torch.zeros(1, 1, 3)))


def run(settings: LevelSetSettings) -> dict[tuple[int, str], list[Extraction]]:
    """Return the measurements by resolution and method, which alternate."""
    results: dict[tuple[int, str], list[Extraction]] = {
        (resolution, method): []
        for resolution in settings.resolutions
        for method in settings.methods
        if method != "dense" or resolution <= settings.max_dense
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        fit(settings, path)
        for _ in range(settings.repeats):
            for resolution, method in results:
                task = json.dumps([str(path), resolution, method])
                command = [sys.executable, "-m", "benchmarks.level_set", "--once", task]
                command += [f"--hidden_dim={settings.hidden_dim}", f"--num_layers={settings.num_layers}"]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - this module
                results[resolution, method].append(Extraction(**json.loads(printed.splitlines()[-1])))
    return results


def report(settings: LevelSetSettings, results: dict[tuple[int, str], list[Extraction]]) -> None:
    """Print a table, and append it to the CSV file."""
    title = f"{settings.num_layers} layers of {settings.hidden_dim}, {torch.get_num_threads()} threads"
    table = Table(title=title, title_justify="left")
    headings = ("resolution", "method", "seconds", "peak [MB]", "points", "share [%]", "faces", "time over the first")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    lines = []
    for (resolution, method), measurements in results.items():
        first = results[resolution, settings.methods[0]]
        ratio = statistics.median(b.seconds / a.seconds for a, b in zip(first, measurements, strict=True))
        seconds = statistics.median(measurement.seconds for measurement in measurements)
        peak, points = max(measurement.peak_mb for measurement in measurements), measurements[0].evaluations
        share = 100 * points / resolution**3
        cells = [str(resolution), method, f"{seconds:.2f}", f"{peak:.0f}", str(points), f"{share:.1f}"]
        lines.append([*cells, str(measurements[0].faces), f"{ratio:.2f}"])
        table.add_row(*lines[-1])
    Console().print(table)
    if settings.csv is not None:
        is_new = not settings.csv.exists()
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([*([headings] if is_new else []), *lines])


def main(args: list[str] | None = None) -> None:
    """Run the benchmark; with ``--once``, measure one resolution and method in this process and print the result as JSON."""
    arguments = sys.argv[1:] if args is None else args
    if "--once" in arguments:
        index = arguments.index("--once")
        settings = auto_cli(LevelSetSettings, args=arguments[:index] + arguments[index + 2 :])
        path, resolution, method = json.loads(arguments[index + 1])
        print(json.dumps(asdict(measure(settings, Path(path), resolution, method))))
        return
    settings = auto_cli(LevelSetSettings, args=arguments)
    report(settings, run(settings))


if __name__ == "__main__":
    main()
