"""Draw what happens inside a coordinate network: activation maps, what single units are worth, and where codes lie.

activations.png shows the layers before, at and after the modulated one; the units are those whose maps vary most over images
and places together, the same for every image. units.png shows the PSNR that is lost when a unit is switched off, codes.png
the first principal components of codes. Beside each lies its table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser

from composers.base import Composer
from composers.checkpoint import load
from datamodules.configuration import readable
from tools.activations.images import read_all
from tools.activations.report import report_activations, report_codes, report_units
from tools.activations.subject import StudySettings, Subject


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one message, and exit status 2 if in the arguments, else 1.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    parser = ArgumentParser(
        prog="python -m tools.activations", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_function_arguments(_look_inside, as_group=False, skip={"images", "settings"})
    parser.add_argument("--images", nargs="+", required=True, help="images, and folders that are searched for images")
    parser.add_class_arguments(StudySettings, as_group=False)
    try:
        options = parser.parse_args(args).as_dict()
        settings = StudySettings(**{field.name: options.pop(field.name) for field in fields(StudySettings)})
        _look_inside(settings=settings, **options)
    except ArgumentError as error:
        print(f"error: {readable(error)}\nSee python -m tools.activations --help.", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}." if error.strerror else f"error: {error}")
    except ValueError as error:
        sys.exit(f"error: {error}")


def _look_inside(
    checkpoint: str,
    images: list[str],
    settings: StudySettings,
    compare: str | None = None,
    output: str = "activations",
    device: str = "cpu",
) -> None:
    """Draw the figures of one model, or of two side by side, and say what was found.

    Args:
        checkpoint: Of the model, as cli.py fit and composers.save write it.
        images: Images, and folders that are searched for images.
        settings: How much is shown, and of which layer.
        compare: Checkpoint of a second model, drawn beside the first.
        output: Folder of figures and tables; those of an earlier call are replaced.
        device: Where to compute, such as cpu or cuda.
    """
    paths = [path for path in (checkpoint, compare) if path is not None]
    models = [load(path, _device(device)) for path in paths]
    found, skipped = read_all(images)
    layer = min(models[0].network.modulated_layers, default=0) if settings.layer is None else settings.layer
    subjects = [
        Subject(name, model, found, layer, settings) for name, model in zip(_names(models), models, strict=True)
    ]
    for subject, path in zip(subjects, paths, strict=True):
        print(f"{subject.name}: {path}, images of {subject.size} x {subject.size} pixels")
    for line in skipped:
        print(line)
    folder = _made(Path(output))
    for report in (report_activations, report_units, report_codes):
        print(*report(subjects, folder), sep="\n", flush=True)


def _names(models: Sequence[Composer]) -> list[str]:
    """Return the classes of models, with a letter where they are of one class."""
    kinds = [type(model).__name__ for model in models]
    return kinds if len(set(kinds)) == len(kinds) else [f"{kinds[0]} A", f"{kinds[1]} B"]


def _made(folder: Path) -> Path:
    """Return a folder that exists."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The folder {folder} cannot be made: {error.strerror}. Choose another with --output."
        ) from error
    return folder


def _device(name: str) -> torch.device:
    """Return a device that this machine has."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which this machine does not have: try cpu.") from error


if __name__ == "__main__":
    main()
