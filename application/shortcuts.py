"""Short options of ``cli.py predict``, ``--weights`` of ``cli.py fit``, and model configs read from checkpoints."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, Namespace, dict_to_namespace
from jsonargparse.util import import_object

from application.sizes import encodes, stated_argument
from callbacks.predictions import PredictionWriter
from composers.checkpoint import read, stated_sample_rate, training_domain
from composers.codes import check_bits
from composers.construction import stated_config
from composers.plugins import allow_classes_of, import_plugins
from datamodules.configuration import load_config
from datamodules.spec import Modality
from modalities import MODALITIES

_WRITER = f"{PredictionWriter.__module__}.{PredictionWriter.__name__}"
_COMMON = ("output", "steps", "bits", "table")  # options of every modality; without codes, only the first
_TO_WRITER = {"output": "folder", "bits": "bits", "table": "table"}  # arguments of the prediction writer


def _fact(checkpoint: Mapping[str, Any], name: str) -> Any:
    """Return a fact of the training data in a checkpoint, None if it does not state it."""
    return (checkpoint.get("data") or {}).get(name)


def _domain(checkpoint: Mapping[str, Any]) -> Namespace | None:
    """Return the config of the domain of the training data, None if a checkpoint does not state it."""
    domain = training_domain(checkpoint)
    return None if domain is None else dict_to_namespace(domain.config())


_FACTS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "sample_rate": stated_sample_rate,
    "scales": partial(_fact, name="scales"),
    "domain": _domain,
    "context_points": lambda checkpoint: next(iter(_fact(checkpoint, "signal_shape") or ()), None),
    "normal_offset": partial(_fact, name="normal_offset"),
    "inside": partial(_fact, name="inside"),
    "uniform": partial(_fact, name="uniform"),
}
"""Facts of the training data in a checkpoint, by the argument of a data module that they fill."""


class Option(NamedTuple):
    """A short option that a modality declares.

    Attributes:
        name: Name without dashes.
        kind: Type of the value.
        help: Description, from the docstring of the class that has this argument.
        is_read: Whether it is an argument of the data module; otherwise it is one of the writer.
    """

    name: str
    kind: Any
    help: str
    is_read: bool


def options_of(modality: Modality) -> Iterator[Option]:
    """Yield the prediction options of a modality: the paths, further arguments of the data module, and those of the writer."""
    assert modality.reader is not None
    assert modality.writer is not None
    reader, writer = import_object(modality.reader), modality.writer
    sources = (
        (reader, (modality.name, *modality.reading), True),
        (writer, tuple(inspect.signature(writer).parameters), False),
    )
    for owner, names, is_read in sources:
        descriptions = {
            entry.arg_name: entry.description or "" for entry in docstring_parser.parse(owner.__doc__ or "").params
        }
        kinds = get_type_hints(vars(owner)["__init__"])
        for name in names:
            yield Option(name, kinds[name], " ".join(descriptions[name].split()), is_read)


def modality_of(args: Sequence[str], facts: Mapping[str, Any] | None = None) -> Modality:
    """Return the modality whose option is on the command line; images without one.

    Args:
        args: Command-line arguments.
        facts: Facts of the training data of the model, which choose between modalities with the same option.

    Example:
        >>> modality_of(["predict", "--audio", "speech.wav"]).name
        'audio'
        >>> modality_of(["fit", "--config", "a.yaml"]).name
        'images'
    """
    options = {str(arg).split("=")[0] for arg in args}
    matches = [modality for modality in MODALITIES if f"--{modality.name}" in options]
    name = matches[-1].name if matches else MODALITIES[0].name
    named = [modality for modality in MODALITIES if modality.name == name]
    return next((modality for modality in named if modality.takes(facts or {})), named[0])


def add_shortcuts(parser: ArgumentParser) -> None:
    """Add the short options of prediction: those that modalities declare, each once, and the common ones."""
    added: set[str] = set()
    for modality in MODALITIES:
        group = parser.add_argument_group(f"Options for {modality.name}")
        for option in options_of(modality):
            if option.name in added:
                continue
            added.add(option.name)
            shared = [
                (owner, other) for owner in MODALITIES for other in options_of(owner) if other.name == option.name
            ]
            owners = ", ".join(dict.fromkeys(owner.name for owner, _ in shared))
            text = option.help if len({owner.name for owner, _ in shared}) == 1 else f"{option.help} (For {owners}.)"
            text += "".join(
                f" For {owner.task}: {other.help}"
                for owner, other in shared
                if owner.task and other.help != option.help
            )
            _add(group, option._replace(kind=shared[0][1].kind, help=text))
    group = parser.add_argument_group("Options for all predictions")
    group.add_argument("--output", type=str, help="Output folder. Default: predictions.")
    group.add_argument(
        "--steps",
        type=int | None,
        help="Number of refinement steps, or of inner steps for a meta-learned model. Default: as in the config of the model.",
    )
    group.add_argument(
        "--bits",
        type=int | None,
        help="Quantise the codes to 16, 8, 6 or 4 bits per number and write them compressed, as NAME.inr. The results are "
        "those of the quantised codes. Default: NAME.safetensors with float32 numbers.",
    )
    group.add_argument(
        "--table",
        type=str | None,
        help="Table of python -m tools.codes table, learned for this model and number of bits. Without one, every "
        "compressed code contains its own scales.",
    )


def _add(group: Any, option: Option) -> None:
    """Add an option whose default is None."""
    if option.kind is bool:
        group.add_argument(f"--{option.name}", action="store_true", help=option.help)
    elif option.kind in (Sequence[str], Sequence[int]):
        group.add_argument(f"--{option.name}", type=option.kind.__args__[0], nargs="+", help=option.help)
    else:
        group.add_argument(f"--{option.name}", type=option.kind | None, help=option.help)


def add_weights_option(parser: ArgumentParser, command: str) -> None:
    """Add ``--weights``, which initialises a new run; hidden for commands other than ``fit``, which read configs of runs."""
    parser.add_argument(
        "--weights",
        type=str | None,
        help=argparse.SUPPRESS
        if command != "fit"
        else "Initialise a new run from these weights: path of a checkpoint, or name of bundled weights such as photos_ipc. "
        "The optimizer, the schedule and all counters start from scratch. Unless a config sets the model, it is read from the "
        "checkpoint. Mutually exclusive with --ckpt_path, which resumes a run.",
    )


def resolve_weights(config: Namespace, args: Sequence[str], command: str) -> None:
    """Make ``--weights`` or ``--ckpt_path`` on the command line override the other in the config of an earlier run.

    Args:
        config: Config of the command; modified in place.
        args: Command-line arguments.
        command: Name of the command. Commands other than ``fit`` ignore the ``weights`` of a config.

    Raises:
        ValueError: If both are set in the same place, or ``--weights`` is passed to another command.
    """
    options = {str(arg).split("=")[0] for arg in args}
    if command != "fit":
        if "--weights" in options:
            raise ValueError(f"--weights is an option of fit: pass the weights of {command} with --ckpt_path.")
        config.weights = None
    if config.weights is None or config.ckpt_path is None:
        return
    on_command_line = [name for name in ("weights", "ckpt_path") if f"--{name}" in options]
    if len(on_command_line) != 1:
        raise ValueError(
            f"--weights is {config.weights} and --ckpt_path is {config.ckpt_path}, but they are mutually exclusive: --weights "
            "initialises a new run, --ckpt_path resumes a run with the state of its optimizer."
        )
    config["ckpt_path" if on_command_line == ["weights"] else "weights"] = None


def folder_of_runs(loggers: Any) -> Path:
    """Return the folder with the runs of a config: that of the first logger with ``save_dir`` and ``name``.

    Args:
        loggers: ``trainer.logger`` of the config.

    Raises:
        ValueError: If there is no such logger.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = logger.get("init_args") if isinstance(logger, Namespace) else None
        if arguments is not None and None not in (arguments.get("save_dir"), arguments.get("name")):
            return Path(arguments.save_dir, arguments.name)
    raise ValueError(
        "--ckpt_path last needs a logger with save_dir and name in trainer.logger: add one, or pass the path of a checkpoint."
    )


def expand_shortcuts(config: Namespace) -> None:
    """Move the short options of prediction to the arguments of the data module, the writer and the model.

    ``steps`` are those that find a code from a signal: inner steps if the model has an inner loop, otherwise refinement steps.
    The refinement of a meta-learned model is set with ``--model.refinement``.

    Raises:
        ValueError: If an option belongs to another modality or to a part that the config replaces, or a value is out of range.
    """
    options = [(modality, {option.name: option for option in options_of(modality)}) for modality in MODALITIES]
    names = dict.fromkeys([name for _, declared in options for name in declared] + list(_COMMON))
    values = {name: config.pop(name, None) for name in names}
    values = {name: value for name, value in values.items() if value is not None and value is not False}
    modality = _input_modality(values, config.data)
    declared = next(names for owner, names in options if owner is modality)
    common = _COMMON[:1] if modality.task else _COMMON
    _check_compression(values)
    for name in values:
        if name not in (*declared, *common):
            raise ValueError(f"--{name} {_reason(name, modality, options)}: remove it.")
    callbacks = config.trainer.get("callbacks") or []
    writer: Any = next((callback.init_args for callback in callbacks if callback.class_path == _WRITER), None)
    written = {name: value for name, value in values.items() if name in declared and not declared[name].is_read}
    if modality.writer is not None:
        modality.writer(**written)  # checks ranges
    for name, value in values.items():
        if name == "steps":
            arguments, key = _steps_argument(config.model.init_args, value)
            arguments[key] = value
            if arguments.get("stages"):  # of a refinement that its model leaves out of predictions
                arguments.stages = [*arguments.stages, *({"predict"} - set(arguments.stages))]
        elif name in declared and declared[name].is_read:
            _check_target(name, name in config.data.init_args, modality.reader)
            config.data.init_args[name] = value
        elif name in _TO_WRITER:
            _check_target(name, writer is not None, _WRITER)
            writer[_TO_WRITER[name]] = value
    if written:
        _check_target(next(iter(written)), writer is not None, _WRITER)
        written = {name: list(value) if isinstance(value, tuple) else value for name, value in written.items()}
        writer.options = {**(writer.get("options") or {}), **written}


def _check_compression(values: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if ``--bits`` is no choice, or ``--table`` is passed without it."""
    if (bits := values.get("bits")) is None:
        if "table" in values:
            raise ValueError(f"--table is {values['table']}, but nothing is quantised without --bits: pass both.")
        return
    if bits == 24 and "audio" in values:
        raise ValueError("--bits is 24; for WAV files of 24 bits per sample, pass --wav_bits 24.")
    check_bits(bits, "--bits")


def _reason(name: str, modality: Modality, options: Sequence[tuple[Modality, Mapping[str, Option]]]) -> str:
    """Return why an option does not apply to a modality."""
    owners = [other.name for other, declared in options if name in declared]
    if modality.task and (name in _COMMON or modality.name in owners):
        return f"does not apply to {modality.task} models"
    return f"is an option for {owners[0]}, but the input is {modality.name}"


def _input_modality(values: Mapping[str, Any], data: Namespace) -> Modality:
    """Return the modality whose paths are set, otherwise that of the data module in the config."""
    stated = getattr(import_object(data.class_path), "modality", None)
    of_data = next((modality for modality in MODALITIES if type(modality) is type(stated)), MODALITIES[0])
    for modality in reversed(MODALITIES):
        if modality.name in values:
            return of_data if of_data.name == modality.name else modality
    return of_data


def _check_target(name: str, exists: bool, class_path: str | None) -> None:
    """Raise if a config replaces the class whose argument an option sets."""
    if not exists:
        raise ValueError(
            f"--{name} sets an argument of {class_path}, which this --config replaces: omit the config; the model is read "
            "from the checkpoint."
        )


def _steps_argument(model: Namespace, steps: int) -> tuple[Namespace, str]:
    """Return the arguments that contain the number of steps, added with their defaults if missing, and its name in them."""
    adapts = model.get("inner") is not None
    if adapts and steps < 1:
        raise ValueError(
            f"--steps is {steps}; for a model with an inner loop it is the number of inner steps, at least 1."
        )
    part, kind, name = (
        ("inner", "composers.GradientSteps", "test_steps")
        if adapts
        else ("refinement", "composers.Refinement", "steps")
    )
    if model.get(part) is None:
        model[part] = dict_to_namespace({"class_path": kind, "init_args": {name: None}})
    return model[part].init_args, name


def state_signal(model: Namespace, data: Namespace, path: str | None = None) -> None:
    """Fill arguments of a data module that depend on the model, where they are None.

    These are the signal shape, the near and far bounds of a scene, the sampling rate of audio, the domain of images, audio and
    shapes, the patch size of the network, and which points of a shape are observed. A model that takes any number of views
    takes as many as ``support`` names, at the size of the training data.

    Args:
        model: ``class_path`` and ``init_args`` of a composer.
        data: ``class_path`` and ``init_args`` of a data module; modified in place.
        path: Checkpoint, which may state the sampling rate, the domain and the other facts of the training data.
    """
    for name in ("signal_shape", "near", "far"):
        if name in data.init_args and data.init_args[name] is None:
            data.init_args[name] = stated_argument(model, name)
    if "patch_size" in data.init_args and data.init_args.patch_size is None:
        network = model.init_args.get("network")
        data.init_args.patch_size = network and (network.get("init_args") or {}).get("patch_size")
    shape = data.init_args.get("signal_shape")
    if shape is not None and "support" in data.init_args:
        stated = _fact(read(path), "signal_shape") if -1 in shape and path not in (None, "last") else None
        sizes = [size if size != -1 else trained for size, trained in zip(shape, stated or shape, strict=True)]
        number = stated_argument(model, "num_views") if shape[0] == -1 else shape[0] if encodes(model) else None
        data.init_args.signal_shape = [number or len(data.init_args.support), *sizes[1:]]
    if path in (None, "last"):
        return
    for name, stated in _FACTS.items():
        if name in data.init_args and data.init_args[name] is None:
            data.init_args[name] = stated(read(path))


def stated_model(args: Sequence[str] | None, default: str | None, option: str = "--ckpt_path") -> dict[str, Any] | None:
    """Return the model config in the checkpoint that the command line names; None if there is none.

    Args:
        args: Command-line arguments after the command.
        default: Checkpoint to read if the option is missing.
        option: Option that names the checkpoint.

    Raises:
        ValueError: If the checkpoint names classes of modules that were not named, or neither it nor an option states a model.
    """
    path = _stated_path(args, default, option)
    if path is None:
        return None
    checkpoint, options = read(path), {str(arg).partition("=")[0] for arg in args or ()}
    if not isinstance(checkpoint.get("composer"), dict) and options & {"-c", "--config", "--model"}:
        return None
    return stated_config(checkpoint, path)


def name_plugins(args: Sequence[str]) -> None:
    """Import the modules of ``--plugins``, and allow checkpoints to name classes that a ``--config`` names.

    Args:
        args: Command-line arguments. Configs that do not exist are left to the parser.

    Raises:
        ValueError: If a config cannot be read, or a module cannot be imported.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plugins", nargs="+", action="extend", default=[])
    parser.add_argument("-c", "--config", action="append", default=[])
    named = parser.parse_known_args([str(arg) for arg in args])[0]
    for path in named.config:
        if not Path(path).is_file():
            continue
        config = load_config(path)
        allow_classes_of(config)
        if isinstance(config.get("plugins"), list):
            named.plugins += map(str, config["plugins"])
    import_plugins(named.plugins)


def stated_facts(args: Sequence[str] | None, default: str | None) -> dict[str, Any]:
    """Return the facts of the training data in the checkpoint that the command line names; empty if there are none.

    Args:
        args: Command-line arguments after the command.
        default: Checkpoint to read without ``--ckpt_path``.
    """
    path = _stated_path(args, default, "--ckpt_path")
    facts = None if path is None else read(path).get("data")
    return facts if isinstance(facts, dict) else {}


def _stated_path(args: Sequence[str] | None, default: str | None, option: str) -> str | None:
    """Return the checkpoint that an option names, or the default; None without one, and for the newest of a config."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(option, dest="path", default=default)
    path: str | None = parser.parse_known_args(args)[0].path
    return None if path == "last" else path
