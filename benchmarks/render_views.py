"""Measure the throughput of rendering meshes and writing PNG: ``python -m benchmarks.render_views``."""

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
    """Render objects to a temporary folder with different numbers of processes.

    Args:
        meshes: Mesh files and folders; if empty, wavy spheres are generated.
        objects: Number of generated meshes; each process renders one object at a time.
        faces: Minimum number of faces of a generated mesh.
        views: Number of images per object.
        size: Height and width of the images in pixels.
        workers: Numbers of processes to measure; 1 renders in the main process.
        repeats: Number of repetitions of each measurement.
        csv: CSV file to append one row per measurement to; created if missing. Nothing is written if None.

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
        """Raise a ``ValueError`` if a number is out of range."""
        if min(self.objects, self.faces, self.views, self.size, self.repeats, *self.workers) < 1:
            raise ValueError(
                f"objects is {self.objects}, faces {self.faces}, views {self.views}, size {self.size}, repeats "
                f"{self.repeats}, workers {', '.join(map(str, self.workers))}: each must be at least 1."
            )


def generate(settings: RenderViewsSettings, folder: Path) -> list[NamedFile]:
    """Write wavy spheres with the requested number of faces; the result is deterministic."""
    side = max(3, math.ceil((settings.faces / 4 + 1) ** 0.5))
    for index in range(settings.objects):
        sphere = trimesh.creation.uv_sphere(count=(side, side))
        generator = torch.Generator().manual_seed(index)
        waves = 3 + 6 * torch.rand(3, generator=generator).double().numpy()
        sphere.vertices *= 1 + 0.2 * torch.from_numpy(sphere.vertices * waves).sin().prod(1, keepdim=True).numpy()
        sphere.export(folder / f"sphere_{index:03d}.ply")
    return mesh_files([folder])


def measure(settings: RenderViewsSettings, folder: Path) -> list[list[str]]:
    """Return a row per number of processes: lowest and highest views per second, including the start of the processes."""
    (folder / "meshes").mkdir()
    meshes = mesh_files(settings.meshes) if settings.meshes else generate(settings, folder / "meshes")
    rendering = RenderSettings(views=settings.views, size=settings.size)
    rows = []
    for workers in settings.workers:
        throughputs = []
        for _ in range(settings.repeats):
            start = time.perf_counter()
            result = render_folder(meshes, folder / "views", "objects", rendering, workers, overwrite=True)
            throughputs.append(len(result.rendered) * settings.views / (time.perf_counter() - start))
        rows.append([str(workers), f"{min(throughputs):,.1f}", f"{max(throughputs):,.1f}"])
    return rows


def report(settings: RenderViewsSettings, rows: list[list[str]]) -> None:
    """Print a table, and append it to the CSV file."""
    headings = ("workers", "views per second, min", "max")
    meshes = "given meshes" if settings.meshes else f"{settings.objects} meshes of {settings.faces:,} faces"
    title = (
        f"{meshes}, {settings.views} views of {settings.size} x {settings.size} each, {torch.get_num_threads()} threads"
    )
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if settings.csv is not None:
        header = [] if settings.csv.exists() else [["size", *headings]]
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(header + [[str(settings.size), *row] for row in rows])


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
