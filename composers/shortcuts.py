"""The short options of ``cli.py predict``, and a model that the checkpoint states instead of the user."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace, dict_to_namespace

from composers.checkpoint import read
from composers.pictures import Size, picture_size

_OF_PICTURES = ("pictures", "size", "scale", "tile", "tile_size")
_OF_SOUND = ("clips", "rate")
_PARTS = {  # what the options of a kind belong to: its data module and its writer
    "pictures": ("datamodules.PictureFiles", "composers.predictions.PicturePredictions"),
    "clips": ("datamodules.sound_files.SoundFiles", "composers.sound_predictions.SoundPredictions"),
}


def kind_of_prediction(args: Sequence[str]) -> str:
    """Return what a command line predicts from: ``clips`` if it has that option, else ``pictures``.

    Example:
        >>> kind_of_prediction(["predict", "--clips", "speech.wav"]), kind_of_prediction(["fit", "--config", "a.yaml"])
        ('clips', 'pictures')
    """
    return "clips" if any(str(arg).split("=")[0] == "--clips" for arg in args) else "pictures"


def add_shortcuts(parser: ArgumentParser) -> None:
    """Add the short options of prediction."""
    group = parser.add_argument_group("Pictures in and out")
    group.add_argument("--pictures", type=str, nargs="+", help="Files and folders.")
    group.add_argument("--size", type=Size, help="Pixels of the longer side of the reconstruction, or [rows, columns].")
    group.add_argument(
        "--scale", type=float | None, help="Pixels of the reconstruction per pixel of the picture; 1 by default."
    )
    group.add_argument("--tile", action="store_true", help="Cut pictures into overlapping tiles, for detail.")
    group.add_argument(
        "--tile_size", type=int | None, help="Pixels along each side of a tile; those that the model sees by default."
    )
    group = parser.add_argument_group("Sound in and out")
    group.add_argument("--clips", type=str, nargs="+", help="Files and folders of sound, with a model of sound.")
    group.add_argument(
        "--rate", type=int | None, help="Samples per second of the reconstruction; those of the clip by default."
    )
    group = parser.add_argument_group("Pictures or sound")
    group.add_argument("--output", type=str, help="Folder of the results, predictions by default.")
    group.add_argument("--steps", type=int | None, help="Refinement steps; those of the model's config by default.")


def expand_shortcuts(config: Namespace) -> None:
    """Write the short options of prediction to where they belong: the data module, the writer and the refinement.

    Raises:
        ValueError: If one of them is given, but what it belongs to is not there, or two that exclude each other are.
    """
    picture_size((1, 1), config.size, config.scale)
    given = {name: config.pop(name) for name in (*_OF_PICTURES, *_OF_SOUND, "output", "steps")}
    given["tile"] = given["tile"] or None
    given = {name: value for name, value in given.items() if value is not None}
    kind = _kind(given)
    source, writing = _PARTS[kind]
    callbacks = config.trainer.get("callbacks") or []
    writer = next((callback.init_args for callback in callbacks if callback.class_path == writing), None)
    places: dict[str, tuple[Any, str]] = {
        name: (config.data.init_args, name) for name in ("pictures", "tile", "tile_size", "clips")
    }
    places |= {"output": (writer, "folder")} | {name: (writer, name) for name in ("size", "scale", "rate")}
    places["steps"] = (_refinement(config.model.init_args) if "steps" in given else None, "steps")
    for name, value in given.items():
        place, key = places[name]
        if place is None or key not in place:
            raise ValueError(
                f"--{name} serves {source} and {writing}, which this --config replaces: leave the config "
                "out, the checkpoint states its model."
            )
        place[key] = value


def _kind(given: Mapping[str, Any]) -> str:
    """Return what is predicted from, or refuse options of the other kind."""
    kind = kind_of_prediction([f"--{name}" for name in given])
    for name in _OF_PICTURES if kind == "clips" else _OF_SOUND:
        if name in given:
            raise ValueError(
                f"--{name} is of {'pictures, and --clips names sound' if kind == 'clips' else 'sound, which --clips names'}: "
                "leave it out."
            )
    return kind


def _refinement(model: Namespace) -> Namespace:
    """Return the arguments of the refinement of a model, with defaults where it has none."""
    if model.get("refinement") is None:
        model.refinement = dict_to_namespace({"class_path": "composers.Refinement", "init_args": {"steps": None}})
    init_args: Namespace = model.refinement.init_args
    return init_args


def state_signal(model: Namespace, data: Namespace) -> None:
    """Write into the config of a data module, where it leaves it open, the shape of the signals that a model takes."""
    if "signal_shape" in data.init_args and data.init_args.signal_shape is None:
        shapes = [value for key, value in model.items() if key.rsplit(".", 1)[-1] == "signal_shape"]
        data.init_args.signal_shape = next(iter(shapes), None)


def stated_model(args: Sequence[str] | None, default: str | None) -> dict[str, Any] | None:
    """Return the config of the model in the checkpoint that the command line names, if there is one to be had.

    Args:
        args: The command line, from its command on.
        default: The checkpoint of a command line that names none.
    """
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scout.add_argument("--ckpt_path", default=default)
    path = scout.parse_known_args(args)[0].ckpt_path
    if path in (None, "last"):
        return None
    config = read(path).get("composer")
    return config if isinstance(config, dict) else None
