"""The short options of ``cli.py predict``, and a model that the checkpoint states instead of the user."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, dict_to_namespace

from application.sizes import stated_argument
from composers.checkpoint import read, stated_rate
from modalities.images import Size, picture_size

_OF_PICTURES = ("images", "size", "scale", "tile", "tile_size")
_OF_SOUND = ("audio", "rate")
_OF_SCENES = ("views", "support", "size", "frames", "mesh", "mp4")
_OF_ALL = ("output", "steps")
_OPTIONS = {"images": _OF_PICTURES, "audio": _OF_SOUND, "views": _OF_SCENES}
_KINDS = {"images": "images", "audio": "audio", "views": "views"}  # in words
_PARTS = {  # what the options of a kind belong to: its data module and its writer
    "images": ("datamodules.PictureFiles", "callbacks.predictions.PicturePredictions"),
    "audio": ("datamodules.audio.prediction.SoundFiles", "callbacks.audio_predictions.SoundPredictions"),
    "views": ("datamodules.scenes.prediction.SceneFiles", "callbacks.view_predictions.ScenePredictions"),
}
_OF_DATA = ("images", "tile", "tile_size", "audio", "views", "support")
_OF_WRITER = ("size", "scale", "rate", "frames", "mesh", "mp4")
_EVERY = (*_OF_DATA, *_OF_WRITER, *_OF_ALL)


def kind_of_prediction(args: Sequence[str]) -> str:
    """Return what a command line predicts from: ``audio`` or ``views`` if it has that option, else ``images``.

    Example:
        >>> kind_of_prediction(["predict", "--audio", "speech.wav"]), kind_of_prediction(["fit", "--config", "a.yaml"])
        ('audio', 'images')
    """
    given = {str(arg).split("=")[0] for arg in args}
    return next((kind for kind in ("audio", "views") if f"--{kind}" in given), "images")


def add_shortcuts(parser: ArgumentParser) -> None:
    """Add the short options of prediction."""
    group = parser.add_argument_group("Pictures in and out")
    group.add_argument("--images", type=str, nargs="+", help="Files and folders.")
    group.add_argument(
        "--size",
        type=Size,
        help="Pixels of the longer side of the reconstruction, or [rows, columns]; with --views those of what is rendered.",
    )
    group.add_argument(
        "--scale", type=float | None, help="Pixels of the reconstruction per pixel of the picture; 1 by default."
    )
    group.add_argument("--tile", action="store_true", help="Cut pictures into overlapping tiles, for detail.")
    group.add_argument(
        "--tile_size", type=int | None, help="Pixels along each side of a tile; those that the model sees by default."
    )
    group = parser.add_argument_group("Sound in and out")
    group.add_argument("--audio", type=str, nargs="+", help="Files and folders of sound, with a model of sound.")
    group.add_argument(
        "--rate", type=int | None, help="Samples per second of the reconstruction; those of the clip by default."
    )
    group = parser.add_argument_group("Scenes in and out")
    group.add_argument("--views", type=str, nargs="+", help="Folders of posed pictures, with a model of views.")
    group.add_argument(
        "--support",
        type=int,
        nargs="+",
        help="Frames that are looked at, in the order of the scene, from 0: as many as the model takes, and any number with a "
        "meta-learned model; 0 by default.",
    )
    group.add_argument("--frames", type=int | None, help="Pictures of a turn around the scene, 48 by default.")
    group.add_argument("--mesh", action="store_true", help="Write the surface too, a triangle mesh.")
    group.add_argument("--mp4", action="store_true", help="Write the turn as a film too.")
    group = parser.add_argument_group("Pictures, sound or scenes")
    group.add_argument("--output", type=str, help="Folder of the results, predictions by default.")
    group.add_argument(
        "--steps",
        type=int | None,
        help="Refinement steps, or inner steps of a meta-learned model; those of the model's config by default.",
    )


def add_start(parser: ArgumentParser, command: str) -> None:
    """Add the option of ``cli.py fit`` that says where a new run begins; hidden elsewhere, where configs of runs are read."""
    parser.add_argument(
        "--weights",
        type=str | None,
        help=argparse.SUPPRESS
        if command != "fit"
        else "Start a new run from these weights: a checkpoint, or the name of weights that come along, photos_ipc. "
        "Optimizer, schedule and counters are new. The model comes with the weights unless a config states it. Excludes "
        "--ckpt_path, which resumes a run.",
    )


def settle_start(config: Namespace, args: Sequence[str], command: str) -> None:
    """Let ``--weights`` or ``--ckpt_path`` on the command line win over the other in a config, which says how that run began.

    Args:
        config: Of a command; changed in place.
        args: The command line.
        command: Its name; only ``fit`` has ``--weights``, and others leave out where the run of a config began.

    Raises:
        ValueError: If both are in one place, or ``--weights`` is given to another command.
    """
    options = {str(arg).split("=")[0] for arg in args}
    if command != "fit":
        if "--weights" in options:
            raise ValueError(f"--weights is an option of fit: name the weights of {command} by --ckpt_path.")
        config.weights = None
    if config.weights is None or config.ckpt_path is None:
        return
    given = [name for name in ("weights", "ckpt_path") if f"--{name}" in options]
    if len(given) != 1:
        raise ValueError(
            f"--weights is {config.weights} and --ckpt_path {config.ckpt_path}: give one of them; --weights starts a new run "
            "from weights, --ckpt_path resumes a run with the state of its optimizer."
        )
    config["ckpt_path" if given == ["weights"] else "weights"] = None


def folder_of_runs(loggers: Any) -> Path:
    """Return the folder of the runs of a config: that of the first logger with ``save_dir`` and ``name``.

    Args:
        loggers: ``trainer.logger`` of the config.

    Raises:
        ValueError: If there is none.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = logger.get("init_args") if isinstance(logger, Namespace) else None
        if arguments is not None and None not in (arguments.get("save_dir"), arguments.get("name")):
            return Path(arguments.save_dir, arguments.name)
    raise ValueError(
        "--ckpt_path last looks in the folder of a logger, and none of trainer.logger has save_dir and name: give the path."
    )


def expand_shortcuts(config: Namespace) -> None:
    """Write the short options of prediction to where they belong: the data module, the writer, and the model's steps.

    ``steps`` are those that find a code from a signal: of the inner loop where a model has one, else of the refinement, which a
    meta-learned model may have besides and ``--model.refinement`` sets.

    Raises:
        ValueError: If one of them is given, but what it belongs to is not there, or two that exclude each other are.
    """
    picture_size((1, 1), config.size, config.scale)
    named = {name: config.pop(name, None) for name in _EVERY}
    given = {name: value for name, value in named.items() if value is not None and value is not False}
    kind = _kind(given)
    source, writing = _PARTS[kind]
    callbacks = config.trainer.get("callbacks") or []
    writer = next((callback.init_args for callback in callbacks if callback.class_path == writing), None)
    places: dict[str, tuple[Any, str]] = {name: (config.data.init_args, name) for name in _OF_DATA}
    places |= {"output": (writer, "folder")} | {name: (writer, name) for name in _OF_WRITER}
    places["steps"] = _place_of_steps(config.model.init_args, given["steps"]) if "steps" in given else (None, "steps")
    for name, value in given.items():
        place, key = places[name]
        if place is None or key not in place:
            raise ValueError(
                f"--{name} serves {source} and {writing}, which this --config replaces: leave the config "
                "out, the checkpoint states its model."
            )
        place[key] = value


def _kind(given: Mapping[str, Any]) -> str:
    """Return what is predicted from, or refuse options of another kind."""
    kind = kind_of_prediction([f"--{name}" for name in given])
    for name in given:
        if name not in (*_OPTIONS[kind], *_OF_ALL):
            own = next(other for other, options in _OPTIONS.items() if name in options)
            what = _KINDS[own]
            why = f"{what}, which --{own} names" if kind == "images" else f"{what}, and --{kind} names {_KINDS[kind]}"
            raise ValueError(f"--{name} is of {why}: leave it out.")
    if kind == "views" and isinstance(given.get("size"), tuple):
        raise ValueError(
            f"--size is {list(given['size'])}: of scenes give the pixels of the longer side, their pictures keep their shape."
        )
    return kind


def _place_of_steps(model: Namespace, steps: int) -> tuple[Namespace, str]:
    """Return the arguments that hold the steps of prediction, with defaults where a model leaves them out, and their name."""
    if "inner_loop" in model and steps < 1:
        raise ValueError(f"--steps is {steps}: of a meta-learned model these are its inner steps, at least 1.")
    part, kind, name = (
        ("inner_loop", "composers.InnerLoop", "test_steps")
        if "inner_loop" in model
        else ("refinement", "composers.Refinement", "steps")
    )
    if model.get(part) is None:
        model[part] = dict_to_namespace({"class_path": kind, "init_args": {name: None}})
    return model[part].init_args, name


def state_signal(model: Namespace, data: Namespace, path: str | None = None) -> None:
    """Write into the config of a data module, where it leaves them open, what a model takes.

    That is the shape of its signals, how near and how far a scene lies for it, and the rate of sound. A model with an inner
    loop adapts to samples, from whatever number of views they come: it looks at as many as the data module names.

    Args:
        model: ``class_path`` and ``init_args`` of a composer.
        data: The same of a data module; changed in place.
        path: The checkpoint, which may know the rate.
    """
    for name in ("signal_shape", "near", "far"):
        if name in data.init_args and data.init_args[name] is None:
            data.init_args[name] = stated_argument(model, name)
    shape = data.init_args.get("signal_shape")
    if shape is not None and "support" in data.init_args and "inner_loop" in model.init_args:
        data.init_args.signal_shape = [len(data.init_args.support), *shape[1:]]
    if path not in (None, "last") and "rate" in data.init_args and data.init_args.rate is None:
        data.init_args.rate = stated_rate(read(path))


def stated_model(args: Sequence[str] | None, default: str | None, option: str = "--ckpt_path") -> dict[str, Any] | None:
    """Return the config of the model in the checkpoint that the command line names, if there is one to be had.

    Args:
        args: The command line, from its command on.
        default: The checkpoint of a command line that names none.
        option: What names it.
    """
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scout.add_argument(option, dest="path", default=default)
    path = scout.parse_known_args(args)[0].path
    if path in (None, "last"):
        return None
    config = read(path).get("composer")
    return config if isinstance(config, dict) else None
