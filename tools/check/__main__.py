"""Check a data set for missing, extra, unreadable and wrongly sized files, and print how to fix them.

Exit status: 0 if the data set passes, 1 if it has problems, 2 if the command line or a config is invalid.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from datamodules import data_sets
from datamodules.audio.base import RecordingSet
from datamodules.base import CoordinateDataModule
from datamodules.configuration import load_config, readable
from datamodules.images.base import ImageSet
from datamodules.images.super_resolution import SuperResolution, with_options_of_images
from datamodules.scenes.base import SceneSet
from datamodules.shapes.shape_set import ShapeSet
from datamodules.storage.folders import Split
from tools.check.downloads import check_downloads
from tools.check.images import Findings, check_images
from tools.check.recordings import check_recordings
from tools.check.report import (
    can_fetch,
    count_table,
    fetch_command,
    file_noun,
    fixes,
    printable,
    problem_lines,
    write_csv,
)
from tools.check.scenes import check_scenes, folder_counts
from tools.check.shapes import check_shapes

_EXAMPLE = "configs/data/sample_photos.yaml"
_PROGRAM = ("python", "-m", "tools.check")


def main(args: list[str] | None = None) -> None:
    """Run the command line. Exit with status 1 if the data set has problems, 2 if an argument is invalid.

    Args:
        args: Command-line arguments; ``sys.argv[1:]`` if None.
    """
    args = sys.argv[1:] if args is None else args
    try:
        options = _parse(args)
    except (ArgumentError, ValueError) as error:
        print(f"error: {readable(error)}", file=sys.stderr)
        sys.exit(2)
    try:
        if not _check(options, [*_PROGRAM, *_without_fetch(args)]):
            sys.exit(1)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _parse(args: Sequence[str]) -> Any:
    """Return the parsed options, with the data module instantiated."""
    parser = ArgumentParser(prog=" ".join(_PROGRAM), description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--config", action="config", help="YAML whose section data is read; later configs override earlier ones."
    )
    parser.add_subclass_arguments(CoordinateDataModule, "data", required=False, help="The data module.")
    parser.add_argument(
        "--decode", type=bool, default=True, help="Whether to decode files, or read only their headers."
    )
    parser.add_argument("--fetch", type=bool, default=False, help="Whether to download missing data first.")
    parser.add_argument("--csv", type=Path | None, help="CSV file to write all problems to.")
    data_sets()
    options = parser.instantiate(parser.parse_args(_with_inline_configs(args)))
    if options.data is None:
        raise ValueError(f"A data set is required: pass a config, as in --config {_EXAMPLE}.")
    if options.csv is not None:
        try:
            options.csv.open("a").close()
        except OSError as error:
            raise ValueError(f"--csv {options.csv} cannot be written: {error.strerror}. Pass another path.") from error
    return options


def _with_inline_configs(args: Sequence[str]) -> list[str]:
    """Return a command line with every config file replaced by its section ``data``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    parsed, others = parser.parse_known_args(args)
    return [f"--config={json.dumps({'data': _data_section(name)}, default=str)}" for name in parsed.config] + others


def _data_section(name: str) -> dict[str, Any]:
    """Return the section ``data`` of a YAML; other sections are ignored, since only ``cli.py`` can parse them."""
    loaded = load_config(name)
    if not isinstance(loaded.get("data"), dict):
        raise ValueError(f"The config {name} has no section data: pass another, such as {_EXAMPLE}.")
    return dict(loaded["data"])


def _check(options: Any, command: Sequence[str]) -> bool:
    """Check the data set, print the report, and return whether the data set passes."""
    if isinstance(options.data, ImageSet):
        return _check_images(options.data, options, command)
    if isinstance(options.data, SuperResolution) and isinstance(images := options.data.images, ImageSet):
        return _check_images(images, options, command, options.data.smallest_side)
    if isinstance(options.data, RecordingSet):
        return _check_recordings(options.data, options, command)
    if isinstance(options.data, SceneSet):
        return _report_folders(options.data, check_scenes(options.data, decode=options.decode), options, "scenes")
    if isinstance(options.data, ShapeSet):
        return _report_folders(options.data, check_shapes(options.data, decode=options.decode), options, "shapes")
    _print_item_counts(options.data)
    return True


def _check_images(data: ImageSet, options: Any, command: Sequence[str], smallest: int | None = None) -> bool:
    """Check a data set of images, print the report, and return whether the data set passes.

    Args:
        data: The data set.
        options: The parsed options.
        command: The command that runs the check.
        smallest: Pixels that training images must have, if super-resolution wraps the data set; else None.
    """
    wording = str if smallest is None else with_options_of_images
    try:
        if options.fetch:
            data.fetch()
        findings = check_images(data, decode=options.decode, smallest=smallest)
    except (ValueError, OSError) as error:
        archives, notes = check_downloads(data.sources, data.root)
        lines = [wording(str(error)), *(problem.detail for problem in archives), *notes]
        if data.sources and not options.fetch:
            lines.append(f"Fix: {fetch_command(archives, command)}")
        raise ValueError("\n".join(lines)) from error
    archives, notes = check_downloads(data.sources, data.root)
    return _report(data, findings._replace(problems=findings.problems + archives), notes, options, command, wording)


def _check_recordings(data: RecordingSet, options: Any, command: Sequence[str]) -> bool:
    """Check a data set of recordings, print the report, and return whether the data set passes."""
    try:
        if options.fetch:
            data.fetch(get_args(Split))
        findings = check_recordings(data, decode=options.decode)
    except (ValueError, OSError) as error:
        lines = [f"Fix: {fetch_command([], command)}"] if can_fetch(data) and not options.fetch else []
        raise ValueError("\n".join([str(error), *lines])) from error
    return _report(data, findings, [], options, command)


def _report_folders(data: SceneSet | ShapeSet, findings: Findings, options: Any, noun: str) -> bool:
    """Print the report of scenes or shapes, write the CSV if requested, and return whether the data set passes."""
    if options.csv is not None:
        write_csv(options.csv, findings.problems, noun)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    lines = [f"{type(data).__name__} in {data.root}", *folder_counts(findings, noun), *problem_lines(findings.problems)]
    lines += [f"{name}: {note}" for name, note in data.notes.items()]
    if not findings.all_right:
        default = ", which is the default in training" if noun == "scenes" else ""
        lines.append(f"Fix these {noun}, or skip them{default}: on_bad_{noun.removesuffix('s')} skip")
    for line in lines:
        console.print(printable(line))
    return findings.all_right


def _report(
    data: ImageSet | RecordingSet,
    findings: Findings,
    notes: Sequence[str],
    options: Any,
    command: Sequence[str],
    wording: Callable[[str], str] = str,
) -> bool:
    """Print the report of a data set in some wording, write the CSV if requested, and return whether the data set passes."""
    if options.csv is not None:
        write_csv(options.csv, findings.problems, file_noun(data))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(printable(f"{type(data).__name__} in {data.root}"))
    console.print(count_table(data, findings), soft_wrap=False)
    lines = [*problem_lines(findings.problems), *(f"{name}: {note}" for name, note in data.notes.items()), *notes]
    for line in [*lines, *fixes(data, findings, command)]:
        console.print(printable(wording(line)))
    if findings.all_right:
        count = sum(row.images for row in findings.rows if row.splits)
        scope = "all decoded" if options.decode else "only headers read; pass --decode true to decode all of them"
        console.print(f"No problems: {count:,} {file_noun(data)}, {scope}.")
    return findings.all_right


def _print_item_counts(data: CoordinateDataModule) -> None:
    """Print the number of items in every split, the only check of data that is not stored in files."""
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    for split in get_args(Split):
        items = getattr(data, f"{split}_set", None)
        if items is not None:
            print(f"{split}: {len(items):,} items")


def _without_fetch(args: Sequence[str]) -> list[str]:
    """Return a command line without the option ``--fetch``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--fetch")
    return parser.parse_known_args(args)[1]


if __name__ == "__main__":
    main()
