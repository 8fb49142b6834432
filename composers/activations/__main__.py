"""Draw what happens inside a coordinate network: activation maps, what single units are worth, and where codes lie."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser

from composers.activations.pictures import read_all
from composers.activations.report import report_activations, report_codes, report_units
from composers.activations.study import Settings, Study
from composers.activations.subject import Subject, look_at
from composers.checkpoint import load
from composers.configuration import readable


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one message, and exit status 2 if in the arguments, else 1.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    parser = ArgumentParser(
        prog="python -m composers.activations", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_function_arguments(look_inside, skip={"pictures"})
    parser.add_argument(
        "--pictures", nargs="+", required=True, help="pictures, and folders that are searched for pictures"
    )
    try:
        look_inside(**parser.parse_args(args).as_dict())
    except ArgumentError as error:
        print(f"error: {readable(error)}\nSee python -m composers.activations --help.", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}." if error.strerror else f"error: {error}")
    except ValueError as error:
        sys.exit(f"error: {error}")


def look_inside(
    checkpoint: str,
    pictures: list[str],
    compare: str | None = None,
    output: str = "activations",
    layer: int | None = None,
    num_units: int = 6,
    num_rows: int = 3,
    size: int = 128,
    crops: int = 16,
    steps: int = 0,
    device: str = "cpu",
) -> None:
    """Draw the sheets of one model, or of two side by side, and say what was found.

    ``activations.png`` shows the layers before, at and after the modulated one; the units are those whose maps vary most over
    pictures and places together, the same for every picture. ``units.png`` shows the PSNR that is lost when a unit is switched
    off, ``codes.png`` the first principal components of codes. Beside each lies its table.

    Args:
        checkpoint: Of the model, as cli.py fit and composers.save write it.
        pictures: Pictures, and folders that are searched for pictures.
        compare: Checkpoint of a second model, drawn beside the first.
        output: Folder of sheets and tables; those of an earlier call are replaced.
        layer: The hidden layer to look at, counted from 0; by default the first modulated one of the first model.
        num_units: Units of each layer that are shown.
        num_rows: Pictures that are shown, the first ones; numbers are of all.
        size: Coordinates along the longer side of a map.
        crops: Crops of each picture whose codes are drawn too; with steps they are refined as well, which takes its time.
        steps: Gradient steps that refine codes first, 0 for the prediction.
        device: Where to compute, such as cpu or cuda.
    """
    settings = Settings(layer, num_units, num_rows, size, crops, steps)
    subjects = _subjects([path for path in (checkpoint, compare) if path is not None], _device(device))
    found, skipped = read_all(pictures)
    for line in skipped:
        print(line)
    study = Study(subjects, found, settings)
    folder = _made(Path(output))
    for report in (report_activations, report_units, report_codes):
        for line in report(study, folder):
            print(line, flush=True)


def _subjects(paths: list[str], device: torch.device) -> list[Subject]:
    """Return the models of checkpoints, called by their classes, or by these and a letter where they are of one class."""
    models = [load(path, device) for path in paths]
    kinds = [type(model).__name__ for model in models]
    marks = ["", ""] if len(set(kinds)) == len(kinds) else [" A", " B"]
    subjects = []
    for path, model, kind, mark in zip(paths, models, kinds, marks, strict=False):
        subject = look_at(f"{kind}{mark}", model)
        print(f"{subject.name}: {path}, pictures of {subject.shape[0]} x {subject.shape[1]} pixels")
        subjects.append(subject)
    return subjects


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
