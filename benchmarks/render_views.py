"""Views a second of meshes, rendered and written as PNG: ``python -m benchmarks.render_views``."""

from __future__ import annotations

import csv
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import trimesh
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from datamodules.scenes.rendering import RenderSettings, render_folder
from datamodules.storage.folders import NamedFile
from datamodules.storage.meshes import mesh_files


@dataclass(frozen=True)
class RenderViewsSettings:
    """Render objects to a temporary folder, on several numbers of processes.

    Args:
        meshes: Files and folders; rumpled balls are generated if empty.
        objects: Generated meshes; processes take an object at a time.
        faces: Of a generated mesh, at least.
        views: Images of an object.
        size: Pixels along each side of an image.
        workers: Numbers of processes to measure; 1 renders in the main process.
        repeats: Times that each is measured.
        csv: File that gets one row per measurement, made if missing; none if None.

    Raises:
        ValueError: If a number is out of range.
    """

    meshes: tuple[Path, ...] = ()
    objects: int = 16
    faces: int = 10000
    views: int = 50
    size: int = 128
    workers: tuple[int, ...] = (1, 2)
    repeats: int = 3
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if min(self.objects, self.faces, self.views, self.size, self.repeats, *self.workers) < 1:
            raise ValueError(
                f"objects is {self.objects}, faces {self.faces}, views {self.views}, size {self.size}, repeats "
                f"{self.repeats}, workers {', '.join(map(str, self.workers))}: each is at least 1."
            )


def generate(settings: RenderViewsSettings, folder: Path) -> list[NamedFile]:
    """Write rumpled balls of enough faces, the same every time."""
    side = max(3, math.ceil((settings.faces / 4 + 1) ** 0.5))
    for number in range(settings.objects):
        ball = trimesh.creation.uv_sphere(count=(side, side))
        generator = torch.Generator().manual_seed(number)
        waves = 3 + 6 * torch.rand(3, generator=generator).double().numpy()
        ball.vertices *= 1 + 0.2 * torch.from_numpy(ball.vertices * waves).sin().prod(1, keepdim=True).numpy()
        ball.export(folder / f"ball_{number:03d}.ply")
    return mesh_files([folder])


def measure(settings: RenderViewsSettings, folder: Path) -> list[list[str]]:
    """Return a line per number of processes: views a second, slowest and fastest, the start of processes included."""
    (folder / "meshes").mkdir()
    meshes = mesh_files(settings.meshes) if settings.meshes else generate(settings, folder / "meshes")
    rendering = RenderSettings(views=settings.views, size=settings.size)
    lines = []
    for workers in settings.workers:
        rates = []
        for _ in range(settings.repeats):
            start = time.perf_counter()
            found = render_folder(meshes, folder / "views", "objects", rendering, workers, overwrite=True)
            rates.append(len(found.made) * settings.views / (time.perf_counter() - start))
        lines.append([str(workers), f"{min(rates):,.1f}", f"{max(rates):,.1f}"])
    return lines


def report(settings: RenderViewsSettings, lines: list[list[str]]) -> None:
    """Print a table, and append it to the CSV."""
    headings = ("workers", "views a second, slowest", "fastest")
    what = "meshes named" if settings.meshes else f"{settings.objects} meshes of {settings.faces:,} faces"
    title = (
        f"{what}, {settings.views} views of {settings.size} x {settings.size} each, {torch.get_num_threads()} threads"
    )
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    if settings.csv is not None:
        fresh = not settings.csv.exists()
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                ([["size", *headings]] if fresh else []) + [[settings.size, *line] for line in lines]
            )


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    settings = auto_cli(RenderViewsSettings, args=args)
    try:
        with tempfile.TemporaryDirectory() as folder:
            report(settings, measure(settings, Path(folder)))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
