"""Render meshes as training scenes in the layout of learnit's ShapeNet: images, cameras and splits.

OUT receives a folder CATEGORY with one folder per object, which contains RGBA images in PNG format and their cameras in
transforms.json, and the split lists in CATEGORY_splits.json without the plural s, such as chair_splits.json. Running the
command again resumes an interrupted run, and renders only new objects. Objects are scaled to a radius of 1.4 around the
origin, z up.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from datamodules.scenes.rendering import RenderReport, RenderSettings, render_folder, splits_file
from datamodules.storage.meshes import RADIUS, mesh_files
from datamodules.storage.parallel import processors


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user error ends with a message and exit status 1 or 2.

    Args:
        args: Arguments of the command line; ``sys.argv[1:]`` if None.
    """
    options = vars(_parser().parse_args(args))
    meshes, out, category, workers, overwrite = (
        options.pop(name) for name in ("meshes", "out", "category", "workers", "overwrite")
    )
    try:
        settings = RenderSettings(**options | {"elevation": tuple(options["elevation"])})
        report = render_folder(mesh_files(meshes), out, category, settings, workers, overwrite)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    _print_report(report, out, category, settings)


def _parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(
        "python -m tools.render_views", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    default = RenderSettings()
    add = parser.add_argument
    add("meshes", type=Path, nargs="+", help="OBJ, PLY, STL or GLB files, or folders of them, such as ShapeNetCore's")
    add("out", type=Path, help="output folder")
    add("--category", default="chairs", help="name of the folder in OUT for the objects, a plural (chairs)")
    add("--views", type=int, default=default.views, help=f"number of images per object ({default.views})")
    add("--size", type=int, default=default.size, help=f"height and width of the images in pixels ({default.size})")
    add("--seed", type=int, default=default.seed, help=f"seed of cameras and splits ({default.seed})")
    add(
        "--field_of_view",
        type=float,
        default=default.field_of_view,
        help=f"field of view in degrees ({default.field_of_view:g})",
    )
    add(
        "--distance",
        type=float,
        default=default.distance,
        help=f"distance of the cameras from the origin ({default.distance:g})",
    )
    add(
        "--cameras",
        choices=("own", "shared"),
        default=default.cameras,
        help="different cameras for every object, or the same for all (own)",
    )
    add(
        "--elevation",
        type=float,
        nargs=2,
        default=default.elevation,
        metavar=("FROM", "TO"),
        help="range of the elevation of the cameras in degrees (0 60)",
    )
    add("--up", choices=("y", "z"), default=default.up, help="axis of the mesh files that points up (y)")
    add("--val", type=float, default=default.val, help=f"fraction of the objects for validation ({default.val:g})")
    add("--test", type=float, default=default.test, help=f"fraction of the objects for the test ({default.test:g})")
    add("--workers", type=int, default=processors(), help="number of processes (one per processor)")
    add("--overwrite", action="store_true", help="delete everything rendered to OUT/CATEGORY, and start again")
    return parser


def _print_report(report: RenderReport, out: Path, category: str, settings: RenderSettings) -> None:
    """Print the outcome, and the properties of the data set."""
    if report.failed:
        total = len(report.rendered) + len(report.kept) + len(report.failed)
        print(f"Skipped {len(report.failed):,} of {total:,} meshes that cannot be read:", file=sys.stderr)
        for reason in report.failed.values():
            print(f"  {reason}", file=sys.stderr)
    splits = json.loads(splits_file(out, category).read_text(encoding="utf-8"))
    counts = ", ".join(f"{len(names):,} {split}" for split, names in splits.items())
    print(
        f"{out / category}: {len(report.rendered):,} objects rendered, {len(report.kept):,} already existed; {counts}."
    )
    near, far = settings.distance - RADIUS, settings.distance + RADIUS
    print(f"{settings.views} views of {settings.size} x {settings.size} pixels, depths from {near:g} to {far:g}.")


if __name__ == "__main__":
    main()
