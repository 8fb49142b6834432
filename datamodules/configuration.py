"""From YAML to objects: files laid over each other, and what a parser says of a fault."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, get_loader

T = TypeVar("T")
_plain_yaml = get_loader("yaml")


def load_layers(text: str) -> Any:
    """Load YAML in which ``_base_`` lists files, relative to this one, that this one is laid over.

    Mappings merge key by key; a mapping with another ``class_path`` replaces the whole; lists replace lists, except that
    those of a key ending in ``+`` are added to what lies below.

    Args:
        text: YAML; relative paths start at the working directory, which the parser sets to that of the file.

    Returns:
        What the YAML says, without ``_base_``.

    Raises:
        ValueError: If a file of ``_base_`` is missing or is no mapping.
    """
    loaded = _plain_yaml(text)
    return _lay_over_bases(loaded, Path.cwd()) if isinstance(loaded, dict) and "_base_" in loaded else loaded


def _lay_over_bases(top: dict[str, Any], folder: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a mapping laid over the files of its ``_base_``, the first lowest; ``above`` are those that lie over it."""
    bases = top.pop("_base_")
    merged: dict[str, Any] = {}
    for name in [bases] if isinstance(bases, str) else bases:
        path = (folder / name).resolve()
        if not path.is_file():
            raise ValueError(
                f"_base_ names {name}, but there is no file {path}: paths are relative to the file that names them."
            )
        if path in above:
            raise ValueError(f"{path} is laid over itself: _base_ leads back to it by way of {folder / name}.")
        try:
            base = _plain_yaml(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}, named by _base_, cannot be read as YAML: {error}") from error
        if not isinstance(base, dict):
            raise ValueError(f"{path}, named by _base_, holds no mapping but {type(base).__name__}.")
        merged = _merge(merged, _lay_over_bases(base, path.parent, (*above, path)) if "_base_" in base else base)
    return _merge(merged, top)


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``low`` with ``high`` laid over it."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        named = key.removesuffix("+")
        if key != named and isinstance(merged.get(named), list):
            merged[named] = merged[named] + value
        elif key != named and isinstance(below, list):
            merged[key] = below + value
        elif isinstance(below, Mapping) and isinstance(value, Mapping) and _same_class(below, value):
            merged[key] = _merge(below, value)
        else:
            merged.pop(f"{key}+", None)  # a list given anew
            merged[key] = value
    return merged


def _same_class(low: Mapping[str, Any], high: Mapping[str, Any]) -> bool:
    """Return whether the upper mapping goes on describing the class of the lower one."""
    return "class_path" not in high or high["class_path"] == low.get("class_path")


def instantiate(base: type[T], config: Mapping[str, Any]) -> T:
    """Return an object of a config: ``class_path``, of a class derived from ``base``, and ``init_args``.

    Raises:
        ValueError: If the config names no such class, or arguments that it does not take.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "object")
    try:
        parsed = parser.parse_object({"object": copy.deepcopy(dict(config))})  # it writes into what it is given
    except ArgumentError as error:
        raise ValueError(f"This config describes no {base.__name__} of this version: {readable(error)}") from error
    made: T = parser.instantiate(parsed)["object"]
    return made


def readable(error: Exception) -> str:
    """Return the message of the parser in one line, without the alternatives that it tried."""
    lines = (line.strip().removeprefix("- ").rpartition(_CALLABLE)[2] for line in str(error).splitlines())
    faults = [_REPEATED.split(line)[0] for line in lines if line and not line.startswith(_LISTING)]
    return _QUOTED.sub(r"\1", "; ".join(faults)).replace(":; ", ": ")


# Beginnings of lines that list types and repeat the given structure; of an unknown wording nothing is left out.
_LISTING = (
    "Does not validate against any of the Union subtypes",
    "Subtypes: ",
    "Errors:",
    "Given value type: ",
    *(f"Given value: {start}" for start in ("Namespace(", "NestedArg(", "{", "[")),
    "Expected a <class 'NoneType'>",
    "Expected a path but ",
    "Expected a dot import path string",
    "Subclass types expect one of",
    "a class path (str)",
    "a dict with",
)
_CALLABLE = " expects a function or a callable class: "
_QUOTED = re.compile(r"""(?:Parser key|Problem with given class_path|<class) ["']([^"']+)["']>?""")
_REPEATED = re.compile(r"\.? Got value: (?:Namespace|NestedArg)\(")
