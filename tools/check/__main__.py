"""Check a data set: what is missing, extra, unreadable or of another size than published, and what fixes it.

Exit status: 0 if all is right, 1 if something is wrong with the data, 2 with the command line or a config.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from datamodules import data_sets
from datamodules.audio.base import RecordingSet
from datamodules.base import CoordinateDataModule
from datamodules.configuration import load_layers, readable
from datamodules.images.base import ImageSet
from datamodules.scenes.base import SceneSet
from datamodules.storage.folders import Split
from tools.check.downloads import check_downloads
from tools.check.images import Findings, check_images
from tools.check.recordings import check_recordings
from tools.check.report import can_fetch, counts, fetching, fixing, named, things, visible, write
from tools.check.scenes import check_scenes, told_counts

_EXAMPLE = "configs/data/sample_photos.yaml"
_PROGRAM = ("python", "-m", "tools.check")


def main(args: list[str] | None = None) -> None:
    """Run the command line; it ends with exit status 1 if something is wrong with the data, 2 with what was asked for.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    args = sys.argv[1:] if args is None else args
    try:
        chosen = _chosen(args)
    except (ArgumentError, ValueError) as error:
        print(f"error: {readable(error)}", file=sys.stderr)
        sys.exit(2)
    try:
        if not _check(chosen, [*_PROGRAM, *_without_fetch(args)]):
            sys.exit(1)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _chosen(args: Sequence[str]) -> Any:
    """Return the options, and the data module that they describe."""
    parser = ArgumentParser(prog=" ".join(_PROGRAM), description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--config", action="config", help="YAML, of which the part data is read; a later one lies over it."
    )
    parser.add_subclass_arguments(CoordinateDataModule, "data", required=False, help="The data module.")
    parser.add_argument("--decode", type=bool, default=True, help="Whether files are decoded, or only headers read.")
    parser.add_argument("--fetch", type=bool, default=False, help="Whether to download first what can be downloaded.")
    parser.add_argument("--csv", type=Path | None, help="CSV of all problems, to be written.")
    data_sets()
    chosen = parser.instantiate(parser.parse_args(_with_data_parts(args)))
    if chosen.data is None:
        raise ValueError(f"Which data? Name a config, as in --config {_EXAMPLE}.")
    if chosen.csv is not None:
        try:
            chosen.csv.open("a").close()
        except OSError as error:
            raise ValueError(f"--csv {chosen.csv} cannot be written: {error.strerror}. Name another file.") from error
    return chosen


def _with_data_parts(args: Sequence[str]) -> list[str]:
    """Return a command line in which the part ``data`` of a config stands for its file."""
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scout.add_argument("--config", action="append", default=[])
    found, others = scout.parse_known_args(args)
    return [f"--config={json.dumps({'data': _data_part(name)}, default=str)}" for name in found.config] + others


def _data_part(name: str) -> dict[str, Any]:
    """Return the part ``data`` of a YAML; the others, which only the whole program can read, are left alone."""
    path = Path(name).absolute()
    try:
        with chdir(path.parent):
            loaded = load_layers(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"The config {name} cannot be read: {error.strerror}. Name a YAML, as in {_EXAMPLE}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The config {name} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("data"), dict):
        raise ValueError(f"The config {name} has no part data: name another, such as {_EXAMPLE}.")
    return dict(loaded["data"])


def _check(chosen: Any, command: Sequence[str]) -> bool:
    """Print what is wrong with the data, and return whether nothing is."""
    if isinstance(chosen.data, ImageSet):
        return _check_images(chosen.data, chosen, command)
    if isinstance(chosen.data, RecordingSet):
        return _check_recordings(chosen.data, chosen, command)
    if isinstance(chosen.data, SceneSet):
        return _check_scenes(chosen.data, chosen)
    _count_items(chosen.data)
    return True


def _check_images(data: ImageSet, chosen: Any, command: Sequence[str]) -> bool:
    """Print what is wrong with images, and return whether nothing is."""
    try:
        if chosen.fetch:
            data.fetch()
        findings = check_images(data, decode=chosen.decode)
    except (ValueError, OSError) as error:
        raise ValueError("\n".join([str(error), *_without_images(data, chosen, command)])) from error
    archives, notes = check_downloads(data.source, data.root)
    return _tell(data, findings._replace(problems=findings.problems + archives), notes, chosen, command)


def _check_recordings(data: RecordingSet, chosen: Any, command: Sequence[str]) -> bool:
    """Print what is wrong with recordings, and return whether nothing is."""
    try:
        if chosen.fetch:
            data.fetch(get_args(Split))
        findings = check_recordings(data, decode=chosen.decode)
    except (ValueError, OSError) as error:
        lines = [f"Fix: {fetching([], command)}"] if can_fetch(data) and not chosen.fetch else []
        raise ValueError("\n".join([str(error), *lines])) from error
    return _tell(data, findings, [], chosen, command)


def _check_scenes(data: SceneSet, chosen: Any) -> bool:
    """Print what is wrong with scenes, and return whether nothing is."""
    findings = check_scenes(data, decode=chosen.decode)
    if chosen.csv is not None:
        write(chosen.csv, findings.problems, "scenes")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    lines = [f"{type(data).__name__} in {data.root}", *told_counts(findings), *named(findings.problems)]
    lines += [f"{name}: {note}" for name, note in data.notes.items()]
    if not findings.all_right:
        lines.append("Fix them, or leave them out, which training does unless told otherwise: on_bad_scene skip")
    for line in lines:
        console.print(visible(line))
    return findings.all_right


def _tell(
    data: ImageSet | RecordingSet, findings: Findings, notes: Sequence[str], chosen: Any, command: Sequence[str]
) -> bool:
    """Print what was found, write it where that was asked for, and return whether nothing is wrong."""
    if chosen.csv is not None:
        write(chosen.csv, findings.problems, things(data))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(visible(f"{type(data).__name__} in {data.root}"))
    console.print(counts(data, findings), soft_wrap=False)
    lines = [*named(findings.problems), *(f"{name}: {note}" for name, note in data.notes.items()), *notes]
    for line in [*lines, *fixing(data, findings, command)]:
        console.print(visible(line))
    looked = "all could be read" if chosen.decode else "by their headers; --decode true looks at all of them"
    if findings.all_right:
        found = sum(row.images for row in findings.rows if row.splits)
        console.print(f"All right: {found:,} {things(data)}, {looked}.")
    return findings.all_right


def _without_images(data: ImageSet, chosen: Any, command: Sequence[str]) -> list[str]:
    """Return what lies there of a data set without images, and what fetches it."""
    archives, notes = check_downloads(data.source, data.root)
    lines = [problem.detail for problem in archives] + notes
    return lines if data.source is None or chosen.fetch else [*lines, f"Fix: {fetching(archives, command)}"]


def _count_items(data: CoordinateDataModule) -> None:
    """Print how many items every split has, which is all that can be checked of data that is not in files."""
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    for split in get_args(Split):
        items = getattr(data, f"{split}_set", None)
        if items is not None:
            print(f"{split}: {len(items):,} items")


def _without_fetch(args: Sequence[str]) -> list[str]:
    """Return a command line without the option ``--fetch``."""
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scout.add_argument("--fetch")
    return scout.parse_known_args(args)[1]


if __name__ == "__main__":
    main()
