"""Render anybody's meshes as scenes to train on, in the layout of learnit's ShapeNet: images, cameras and splits.

OUT gets a folder CATEGORY with one folder per object, of PNG images with transparency and their cameras in transforms.json,
and CATEGORY_splits.json without the plural s, such as chair_splits.json. The same command goes on where it was interrupted,
and renders only what was added. Objects are scaled to a radius of 1.4 around the origin, z up.
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
    """Run the command line; a user's mistake ends with one message and exit status 1 or 2.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    chosen = vars(_parser().parse_args(args))
    meshes, out, category, workers, overwrite = (
        chosen.pop(name) for name in ("meshes", "out", "category", "workers", "overwrite")
    )
    try:
        settings = RenderSettings(**chosen | {"elevation": tuple(chosen["elevation"])})
        found = render_folder(mesh_files(meshes), out, category, settings, workers, overwrite)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    _report(found, out, category, settings)


def _parser() -> ArgumentParser:
    """Return what reads the command line."""
    parser = ArgumentParser(
        "python -m tools.render_views", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    usual = RenderSettings()
    add = parser.add_argument
    add("meshes", type=Path, nargs="+", help="OBJ, PLY, STL or GLB, and folders of them, such as ShapeNetCore's")
    add("out", type=Path, help="folder to write to")
    add("--category", default="chairs", help="folder of the objects in OUT, a plural (chairs)")
    add("--views", type=int, default=usual.views, help=f"images of an object ({usual.views})")
    add("--size", type=int, default=usual.size, help=f"pixels along each side ({usual.size})")
    add("--seed", type=int, default=usual.seed, help=f"of cameras and splits ({usual.seed})")
    add("--field_of_view", type=float, default=usual.field_of_view, help=f"degrees ({usual.field_of_view:g})")
    add("--distance", type=float, default=usual.distance, help=f"of cameras from the origin ({usual.distance:g})")
    add(
        "--cameras", choices=("own", "shared"), default=usual.cameras, help="of every object, or the same for all (own)"
    )
    add("--elevation", type=float, nargs=2, default=usual.elevation, metavar=("FROM", "TO"), help="degrees (0 60)")
    add("--up", choices=("y", "z"), default=usual.up, help="axis of the meshes that points up (y)")
    add("--val", type=float, default=usual.val, help=f"part of the objects for validation ({usual.val:g})")
    add("--test", type=float, default=usual.test, help=f"part of the objects for the test ({usual.test:g})")
    add("--workers", type=int, default=processors(), help="processes that render (one per processor)")
    add("--overwrite", action="store_true", help="remove what was rendered to OUT/CATEGORY, and render all anew")
    return parser


def _report(found: RenderReport, out: Path, category: str, settings: RenderSettings) -> None:
    """Print what became of meshes, and what data they are."""
    if found.bad:
        total = len(found.made) + len(found.kept) + len(found.bad)
        print(f"Left out, for they cannot be read: {len(found.bad):,} of {total:,} meshes", file=sys.stderr)
        for reason in found.bad.values():
            print(f"  {reason}", file=sys.stderr)
    splits = json.loads(splits_file(out, category).read_text(encoding="utf-8"))
    counts = ", ".join(f"{len(names):,} {split}" for split, names in splits.items())
    print(f"{out / category}: {len(found.made):,} objects rendered, {len(found.kept):,} were there; {counts}.")
    near, far = settings.distance - RADIUS, settings.distance + RADIUS
    print(f"{settings.views} views of {settings.size} x {settings.size} pixels, depths from {near:g} to {far:g}.")


if __name__ == "__main__":
    main()
