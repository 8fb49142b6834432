"""Measure sampling signed distances of meshes: ``python -m benchmarks.shape_sampling``."""

from __future__ import annotations

import csv
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trimesh
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from datamodules.shapes.mesh_sampling import SamplingSettings
from datamodules.shapes.sampling_run import MeshOutcome, sample_folder
from datamodules.storage.folders import NamedFile
from datamodules.storage.meshes import mesh_files
from datamodules.storage.parallel import processors

_BUNDLED = Path(__file__).parent.parent / "samples" / "meshes"
_HEADINGS = ("mesh", "faces", "watertight", "seconds, min", "max", "CPU seconds, min")


@dataclass(frozen=True)
class ShapeSamplingSettings:
    """Sample every mesh by itself on all processors, and then all meshes on one process per processor.

    Args:
        meshes: Mesh files and folders; if empty, bundled meshes with about 10,000 faces and a generated one.
        faces: Minimum number of faces of the generated mesh.
        samples: Samples with distances per mesh.
        surface: Points on the surface per mesh.
        repeats: Number of repetitions of each measurement.
        csv: CSV file to append one row per measurement to; created if missing. Nothing is written if None.

    Raises:
        ValueError: If a number is out of range.
    """

    meshes: tuple[Path, ...] = ()
    faces: int = 10000
    samples: int = 200_000
    surface: int = 50_000
    repeats: int = 3
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` if a number is out of range."""
        if min(self.faces, self.samples - 1, self.surface, self.repeats) < 1:
            raise ValueError(
                f"faces is {self.faces}, samples {self.samples}, surface {self.surface}, repeats {self.repeats}: samples must "
                "be at least 2, the others at least 1."
            )


def generate(settings: ShapeSamplingSettings, folder: Path) -> list[NamedFile]:
    """Write a torus with the requested number of faces; return it and the bundled meshes of about this size."""
    side = max(3, math.ceil((settings.faces / 2) ** 0.5))
    trimesh.creation.torus(0.6, 0.25, major_sections=side, minor_sections=side).export(folder / "torus.ply")
    bundled = [_BUNDLED / f"chair_{name}.ply" for name in ("chair", "antiqueChair", "thonet", "chairWithCushion")]
    return mesh_files([folder, *bundled])


def measure(settings: ShapeSamplingSettings, folder: Path) -> list[list[str]]:
    """Return a row per mesh, and one of all meshes on several processes: least and most seconds, files included.

    CPU seconds are those of all threads of this process; on a busy machine, they tell more than the others.

    Raises:
        ValueError: If a mesh cannot be sampled.
    """
    (folder / "meshes").mkdir()
    meshes = mesh_files(settings.meshes) if settings.meshes else generate(settings, folder / "meshes")
    rows = []
    for mesh in meshes:
        outcomes, seconds = _timed(settings, [mesh], folder / "out", 1)
        quality = outcomes[0].quality
        assert quality is not None
        faces = f"{len(trimesh.load_mesh(mesh.path, process=False).faces):,}"
        rows.append([mesh.name, faces, "yes" if quality.is_watertight else "no", *seconds])
    outcomes, seconds = _timed(settings, meshes, folder / "out", processors())
    rows.append([f"all {len(outcomes)}, {processors()} processes", "", "", *seconds[:2], ""])
    return rows


def _timed(
    settings: ShapeSamplingSettings, meshes: Sequence[NamedFile], out: Path, workers: int
) -> tuple[list[MeshOutcome], tuple[str, str, str]]:
    """Return the outcomes of sampling meshes, the least and most seconds that it takes, and the least of CPU seconds."""
    sampling = SamplingSettings(samples=settings.samples, surface=settings.surface, max_doubt=1.0)
    seconds, cpu_seconds = [], []
    for _ in range(settings.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        outcomes = sample_folder(meshes, out, sampling, workers=workers, overwrite=True)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    failed = [outcome.reason for outcome in outcomes if outcome.result == "failed"]
    if failed:
        raise ValueError(failed[0])
    return outcomes, (f"{min(seconds):.2f}", f"{max(seconds):.2f}", f"{min(cpu_seconds):.2f}")


def report(settings: ShapeSamplingSettings, rows: list[list[str]]) -> None:
    """Print a table, and append it to the CSV file."""
    title = f"{settings.samples:,} samples and {settings.surface:,} surface points per mesh, {processors()} processors"
    table = Table(title=title, title_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "mesh" else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if settings.csv is not None:
        header = [] if settings.csv.exists() else [["samples", *_HEADINGS]]
        with settings.csv.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(header + [[str(settings.samples), *row] for row in rows])


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    settings = auto_cli(ShapeSamplingSettings, args=args)
    try:
        with tempfile.TemporaryDirectory() as folder:
            report(settings, measure(settings, Path(folder)))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
