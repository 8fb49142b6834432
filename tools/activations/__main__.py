"""Draw figures of a coordinate network: activation maps, importance of units, and principal components of codes.

activations.png shows the analysed layer, the one before and the one after it; the units are those with the largest variance
over images and coordinates, the same for all images. units.png shows the PSNR that is lost if a unit is set to zero, codes.png
the first two principal components of codes. A table with the values is written beside each figure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser

from composers.base import Composer
from composers.construction import load
from composers.plugins import add_plugins_option, import_plugins
from datamodules.configuration import readable
from tools.activations.analysis import AnalysisSettings, ModelAnalysis
from tools.activations.images import read_all
from tools.activations.report import report_activations, report_codes, report_units


def main(args: list[str] | None = None) -> None:
    """Run the command line; invalid input ends with one message, and exit status 2 for invalid arguments, else 1.

    Args:
        args: Arguments of the command line; ``sys.argv`` if None.
    """
    parser = ArgumentParser(
        prog="python -m tools.activations", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_function_arguments(_analyse, as_group=False, skip={"images", "settings"})
    parser.add_argument("--images", nargs="+", required=True, help="image files, and folders to search for images")
    parser.add_class_arguments(AnalysisSettings, as_group=False)
    add_plugins_option(parser)
    try:
        options = parser.parse_args(args).as_dict()
        import_plugins(options.pop("plugins") or ())
        settings = AnalysisSettings(**{field.name: options.pop(field.name) for field in fields(AnalysisSettings)})
        _analyse(settings=settings, **options)
    except ArgumentError as error:
        print(f"error: {readable(error)}\nSee python -m tools.activations --help.", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}." if error.strerror else f"error: {error}")
    except ValueError as error:
        sys.exit(f"error: {error}")


def _analyse(
    checkpoint: str,
    images: list[str],
    settings: AnalysisSettings,
    compare: str | None = None,
    output: str = "activations",
    device: str = "cpu",
) -> None:
    """Draw the figures of one model, or of two models side by side, and print the main results.

    Args:
        checkpoint: Checkpoint of cli.py fit or composers.save, or the name of bundled weights.
        images: Image files, and folders to search for images.
        settings: Settings of the figures.
        compare: Checkpoint of a second model to draw beside the first.
        output: Folder for figures and tables, which replace those of an earlier run.
        device: Device for the computation, such as cpu or cuda.
    """
    paths = [path for path in (checkpoint, compare) if path is not None]
    models = [load(path, _device(device)) for path in paths]
    pixels, skipped = read_all(images)
    analyses: list[ModelAnalysis] = []
    for name, model in zip(_names(models), models, strict=True):
        layer = analyses[0].layer if analyses else None
        analyses.append(ModelAnalysis(name, model, pixels, settings, layer))
    for analysis, path in zip(analyses, paths, strict=True):
        print(f"{analysis.name}: {path}, images of {analysis.size} x {analysis.size} pixels")
    for line in skipped:
        print(line)
    folder = _create_folder(Path(output))
    for report in (report_activations, report_units, report_codes):
        print(*report(analyses, folder), sep="\n", flush=True)


def _names(models: Sequence[Composer]) -> list[str]:
    """Return the class names of models, with a letter if they are the same."""
    names = [type(model).__name__ for model in models]
    return names if len(set(names)) == len(names) else [f"{names[0]} A", f"{names[1]} B"]


def _create_folder(folder: Path) -> Path:
    """Create a folder if it does not exist, and return it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The folder {folder} cannot be created: {error.strerror}. Choose another folder with --output."
        ) from error
    return folder


def _device(name: str) -> torch.device:
    """Return a device if this machine has it."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which is not available: try cpu.") from error


if __name__ == "__main__":
    main()
