"""The short options of ``cli.py predict``, and a model that the checkpoint states instead of the user."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, Namespace, dict_to_namespace
from jsonargparse.util import import_object

from application.sizes import encodes, stated_argument
from callbacks.predictions import PredictionWriter
from composers.checkpoint import read, stated_sample_rate
from datamodules.spec import Modality
from modalities import MODALITIES

_WRITER = f"{PredictionWriter.__module__}.{PredictionWriter.__name__}"
_OF_ALL = ("output", "steps")


class Option(NamedTuple):
    """A short option that a modality declares.

    Attributes:
        name: Without the dashes.
        kind: Its type.
        help: From the docstring of what it is an argument of.
        is_read: Whether it is an argument of the data module, rather than of the writer.
    """

    name: str
    kind: Any
    help: str
    is_read: bool


def options_of(modality: Modality) -> Iterator[Option]:
    """Yield the options of prediction that a modality declares: the paths, what reads them, and the fields of its writer."""
    assert modality.reader is not None
    assert modality.writer is not None
    reader, writer = import_object(modality.reader), modality.writer
    parts = (
        (reader, (modality.name, *modality.reading), True),
        (writer, tuple(inspect.signature(writer).parameters), False),
    )
    for owner, names, is_read in parts:
        described = {
            entry.arg_name: entry.description or "" for entry in docstring_parser.parse(owner.__doc__ or "").params
        }
        kinds = get_type_hints(vars(owner)["__init__"])
        for name in names:
            yield Option(name, kinds[name], " ".join(described[name].split()), is_read)


def kind_of_prediction(args: Sequence[str]) -> Modality:
    """Return what a command line predicts from: the modality whose option it has, else images.

    Example:
        >>> kind_of_prediction(["predict", "--audio", "speech.wav"]).name
        'audio'
        >>> kind_of_prediction(["fit", "--config", "a.yaml"]).name
        'images'
    """
    given = {str(arg).split("=")[0] for arg in args}
    named = [modality for modality in MODALITIES if f"--{modality.name}" in given]
    return named[-1] if named else MODALITIES[0]


def add_shortcuts(parser: ArgumentParser) -> None:
    """Add the short options of prediction: those that modalities declare, once each, and those of all."""
    added: set[str] = set()
    for modality in MODALITIES:
        group = parser.add_argument_group(f"{modality.name.capitalize()} in and out")
        for option in options_of(modality):
            if option.name in added:
                continue
            added.add(option.name)
            same = [(owner, other) for owner in MODALITIES for other in options_of(owner) if other.name == option.name]
            text = (
                option.help if len(same) == 1 else f"{option.help} (Of {', '.join(owner.name for owner, _ in same)}.)"
            )
            _add(group, option._replace(kind=same[0][1].kind, help=text))
    group = parser.add_argument_group("All predictions")
    group.add_argument("--output", type=str, help="Folder of the results, predictions by default.")
    group.add_argument(
        "--steps",
        type=int | None,
        help="Refinement steps, or inner steps of a meta-learned model; those of the model's config by default.",
    )


def _add(group: Any, option: Option) -> None:
    """Add an option, which is None unless it is given."""
    if option.kind is bool:
        group.add_argument(f"--{option.name}", action="store_true", help=option.help)
    elif option.kind in (Sequence[str], Sequence[int]):
        group.add_argument(f"--{option.name}", type=option.kind.__args__[0], nargs="+", help=option.help)
    else:
        group.add_argument(f"--{option.name}", type=option.kind | None, help=option.help)


def add_start(parser: ArgumentParser, command: str) -> None:
    """Add the option of ``cli.py fit`` that says where a new run begins; hidden elsewhere, where configs of runs are read."""
    parser.add_argument(
        "--weights",
        type=str | None,
        help=argparse.SUPPRESS
        if command != "fit"
        else "Start a new run from these weights: a checkpoint, or the name of bundled weights, photos_ipc. "
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
    options = {modality.name: {option.name: option for option in options_of(modality)} for modality in MODALITIES}
    names = dict.fromkeys([name for declared in options.values() for name in declared] + list(_OF_ALL))
    named = {name: config.pop(name, None) for name in names}
    given = {name: value for name, value in named.items() if value is not None and value is not False}
    modality = _kind(given, config.data)
    declared = options[modality.name]
    _refuse_others(given, modality, options)
    callbacks = config.trainer.get("callbacks") or []
    writer: Any = next((callback.init_args for callback in callbacks if callback.class_path == _WRITER), None)
    written = {name: value for name, value in given.items() if name in declared and not declared[name].is_read}
    if modality.writer is not None:
        modality.writer(**written)  # which refuses numbers out of range
    for name, value in given.items():
        if name == "steps":
            place, key = _place_of_steps(config.model.init_args, value)
            place[key] = value
        elif name in declared and declared[name].is_read:
            _serves(name, name in config.data.init_args, modality.reader)
            config.data.init_args[name] = value
        elif name == "output":
            _serves(name, writer is not None, _WRITER)
            writer.folder = value
    if written:
        _serves(next(iter(written)), writer is not None, _WRITER)
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in written.items()}
        writer.options = {**(writer.get("options") or {}), **plain}


def _kind(given: Mapping[str, Any], data: Namespace) -> Modality:
    """Return what is predicted from: what an option names, else what the data module of the config states."""
    for modality in reversed(MODALITIES):
        if modality.name in given:
            return modality
    stated = getattr(import_object(data.class_path), "modality", None)
    return next((modality for modality in MODALITIES if type(modality) is type(stated)), MODALITIES[0])


def _refuse_others(given: Mapping[str, Any], modality: Modality, options: Mapping[str, Mapping[str, Option]]) -> None:
    """Refuse options of another modality."""
    for name in given:
        if name not in (*options[modality.name], *_OF_ALL):
            owner = next(other for other, declared in options.items() if name in declared)
            raise ValueError(f"--{name} is of {owner}, and this predicts from {modality.name}: leave it out.")


def _serves(name: str, is_there: bool, class_path: str | None) -> None:
    """Refuse an option of something that a config replaces."""
    if not is_there:
        raise ValueError(
            f"--{name} serves {class_path}, which this --config replaces: leave the config out, the "
            "checkpoint states its model."
        )


def _place_of_steps(model: Namespace, steps: int) -> tuple[Namespace, str]:
    """Return the arguments that hold the steps of prediction, with defaults where a model leaves them out, and their name."""
    adapts = model.get("inner") is not None and model.get("refinement") is None
    if adapts and steps < 1:
        raise ValueError(f"--steps is {steps}; of a model with an inner loop these are its inner steps, at least 1.")
    part, kind, name = (
        ("inner", "composers.GradientSteps", "test_steps")
        if adapts
        else ("refinement", "composers.Refinement", "steps")
    )
    if model.get(part) is None:
        model[part] = dict_to_namespace({"class_path": kind, "init_args": {name: None}})
    return model[part].init_args, name


def state_signal(model: Namespace, data: Namespace, path: str | None = None) -> None:
    """Write into the config of a data module, where it leaves them open, what a model takes.

    That is the shape of its signals, how near and how far a scene lies for it, and the rate of audio. A model with an inner
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
    if shape is not None and "support" in data.init_args and not encodes(model):
        data.init_args.signal_shape = [len(data.init_args.support), *shape[1:]]
    if path not in (None, "last") and "sample_rate" in data.init_args and data.init_args.sample_rate is None:
        data.init_args.sample_rate = stated_sample_rate(read(path))


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
