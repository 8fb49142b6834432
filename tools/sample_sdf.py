"""Sample the signed distances of meshes for training: OUT receives a file NAME.safetensors per mesh.

Meshes are normalised as for DeepSDF: bounding box centred at the origin, farthest vertex at 1 / 1.03. Samples are near the
surface and in the cube [-1, 1], and distances are negative inside. Running the command again resumes an interrupted run: valid
files of the same meshes and settings are kept. --verify changes nothing, and compares the files with the meshes.

Exit status: 0 if all meshes are sampled or verified, 1 if any cannot be, 2 if the command line is invalid.
"""

from __future__ import annotations

import csv
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from datamodules.shapes.mesh_sampling import SamplingSettings
from datamodules.shapes.sampling_run import MeshOutcome, sample_folder, verify_folder
from datamodules.storage.files import written_whole
from datamodules.storage.meshes import mesh_files
from datamodules.storage.parallel import processors
from datamodules.storage.text import printable

_MAX_LISTED = 20  # meshes listed per kind


def main(args: list[str] | None = None) -> None:
    """Run the command line; exit with status 1 if a mesh fails, and 2 if an argument is invalid.

    Args:
        args: Arguments of the command line; ``sys.argv[1:]`` if None.
    """
    options = vars(_parser().parse_args(args))
    paths, out, seed, workers, overwrite, verify, table = (
        options.pop(name) for name in ("meshes", "out", "seed", "workers", "overwrite", "verify", "csv")
    )
    try:
        settings = SamplingSettings(**options | {"std": tuple(options["std"])})
        meshes = mesh_files(paths)
        if verify:
            outcomes = verify_folder(meshes, out, settings, seed, workers=workers)
        else:
            outcomes = sample_folder(meshes, out, settings, seed, workers=workers, overwrite=overwrite)
        if table is not None:
            _write_csv(table, outcomes)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    _report(outcomes, out)
    if any(outcome.result == "failed" for outcome in outcomes):
        sys.exit(1)


def _parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(
        "python -m tools.sample_sdf", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    default = SamplingSettings()
    add = parser.add_argument
    add("meshes", type=Path, nargs="+", help="OBJ, PLY, STL or GLB files, or folders of them, such as ShapeNetCore's")
    add("out", type=Path, help="output folder")
    add("--samples", type=int, default=default.samples, help=f"samples with distances per mesh ({default.samples:,})")
    add(
        "--uniform",
        type=float,
        default=default.uniform,
        help=f"fraction of the samples that are uniform in [-1, 1]^3 ({default.uniform:g})",
    )
    add(
        "--std",
        type=float,
        nargs="+",
        default=default.std,
        help="standard deviations of the samples around surface points; DeepSDF has variances 0.005 and 0.0005 "
        f"({' '.join(map(str, default.std))})",
    )
    add("--surface", type=int, default=default.surface, help=f"points on the surface per mesh ({default.surface:,})")
    add(
        "--on_open",
        choices=("repair", "refuse", "accept"),
        default=default.on_open,
        help="for meshes that are not watertight: fill small holes and let winding numbers close the others, refuse them, or "
        "let winding numbers close all holes (repair)",
    )
    add(
        "--max_doubt",
        type=float,
        default=default.max_doubt,
        help="refuse meshes with a larger fraction of samples whose winding number is within 0.1 of 0.5 "
        f"({default.max_doubt:g})",
    )
    add("--up", choices=("y", "z"), help="axis of the mesh files that points up; z turns meshes so that y is up (none)")
    add("--seed", type=int, default=0, help="seed of the random numbers (0)")
    add("--workers", type=int, default=processors(), help="number of processes (one per processor)")
    add("--overwrite", action="store_true", help="sample all meshes again")
    add("--verify", action="store_true", help="read all files, and compute distances of some samples again")
    add("--csv", type=Path, help="CSV file to write with the outcome and the quality of every mesh")
    return parser


def _report(outcomes: Sequence[MeshOutcome], out: Path) -> None:
    """Print meshes that failed to stderr, then those that are not watertight, and a summary."""
    failed = [outcome.reason for outcome in outcomes if outcome.result == "failed"]
    if failed:
        _print_list(f"{len(failed):,} of {len(outcomes):,} meshes failed:", failed, stderr=True)
    opened = [outcome for outcome in outcomes if outcome.quality is not None and not outcome.quality.is_watertight]
    if opened:
        worst = sorted(opened, key=lambda outcome: -outcome.quality.doubt if outcome.quality else 0)
        _print_list(f"{len(opened):,} of {len(outcomes):,} meshes are not watertight:", [_line(item) for item in worst])
    table = Table(title=printable(str(out)), title_justify="left")
    for heading in ("outcome", "meshes", "watertight", "doubtful signs, median", "maximum"):
        table.add_column(heading, justify="left" if heading == "outcome" else "right")
    for result in ("sampled", "kept", "verified", "failed"):
        qualities = [outcome.quality for outcome in outcomes if outcome.result == result]
        if qualities:
            known = [quality for quality in qualities if quality is not None]
            doubts = [quality.doubt for quality in known]
            numbers = (f"{median(doubts):.2%}", f"{max(doubts):.2%}") if doubts else ("", "")
            watertight = f"{sum(quality.is_watertight for quality in known):,}" if known else ""
            table.add_row(result, f"{len(qualities):,}", watertight, *numbers)
    Console().print(table)


def _line(outcome: MeshOutcome) -> str:
    """Return a line on a mesh that is not watertight."""
    assert outcome.quality is not None
    notes = "".join(f", {note}" for note in outcome.quality.notes)
    return f"{outcome.name}: {outcome.quality.doubt:.2%} of the signs in doubt{notes}"


def _print_list(title: str, lines: Sequence[str], stderr: bool = False) -> None:
    """Print a title and the first of some lines."""
    console = Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False)
    more = [f"and {len(lines) - _MAX_LISTED:,} more; --csv FILE lists all"] if len(lines) > _MAX_LISTED else []
    for line in (title, *(f"  {line}" for line in [*lines[:_MAX_LISTED], *more])):
        console.print(printable(line))


def _write_csv(path: Path, outcomes: Sequence[MeshOutcome]) -> None:
    """Write a row per mesh."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "outcome", "watertight", "doubt", "inside", "notes", "reason"))
        for name, result, quality, reason in outcomes:
            numbers = ("", "", "", "")
            if quality is not None:
                watertight, doubt, inside, notes = quality
                numbers = (str(watertight).lower(), f"{doubt:.6f}", f"{inside:.6f}", "; ".join(notes))
            writer.writerow((printable(name), result, *numbers, printable(reason)))


if __name__ == "__main__":
    main()
