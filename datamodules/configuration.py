"""Layered YAML configs: merging of files, instantiation, and readable error messages of the parser."""

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
    """Load YAML and merge it over the files that its key ``_base_`` lists.

    Mappings are merged key by key, unless they have a different ``class_path``. Lists replace lists, except that a list under a
    key ending in ``+`` is appended to the list of the lower layer.

    Args:
        text: YAML. Paths in ``_base_`` are relative to the working directory, which the parser sets to the folder of the file.

    Returns:
        The merged content without ``_base_``.

    Raises:
        ValueError: If a file in ``_base_`` is missing or not a mapping.
    """
    loaded = _plain_yaml(text)
    return _merge_bases(loaded, Path.cwd()) if isinstance(loaded, dict) and "_base_" in loaded else loaded


def _merge_bases(top: dict[str, Any], folder: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Merge a mapping over the files in its ``_base_``, the first one lowest; ``above`` are the files that include it."""
    bases = top.pop("_base_")
    merged: dict[str, Any] = {}
    for name in [bases] if isinstance(bases, str) else bases:
        path = (folder / name).resolve()
        if not path.is_file():
            raise ValueError(
                f"_base_ names {name}, but there is no file {path}: paths are relative to the file that contains _base_."
            )
        if path in above:
            raise ValueError(f"{path} includes itself through _base_ ({folder / name}): remove the cycle.")
        try:
            base = _plain_yaml(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}, listed in _base_, is not valid YAML: {error}") from error
        if not isinstance(base, dict):
            raise ValueError(f"{path}, listed in _base_, must contain a mapping, not {type(base).__name__}.")
        merged = _merge(merged, _merge_bases(base, path.parent, (*above, path)) if "_base_" in base else base)
    return _merge(merged, top)


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``high`` merged over ``low``."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        name = key.removesuffix("+")
        if key != name and isinstance(merged.get(name), list):
            merged[name] = merged[name] + value
        elif key != name and isinstance(below, list):
            merged[key] = below + value
        elif (
            isinstance(below, Mapping)
            and isinstance(value, Mapping)
            and value.get("class_path") in (None, below.get("class_path", value.get("class_path")))
        ):
            merged[key] = _merge(below, value)
        else:
            merged.pop(f"{key}+", None)  # the list is replaced, so nothing is appended to the earlier one
            merged[key] = value
    return merged


def instantiate(base: type[T], config: Mapping[str, Any]) -> T:
    """Instantiate a config of ``class_path`` and ``init_args``.

    Args:
        base: Base class of the object.
        config: The config, which is not changed.

    Raises:
        ValueError: If the class is not derived from ``base``, or does not accept the arguments.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "object")
    try:
        parsed = parser.parse_object({"object": copy.deepcopy(dict(config))})  # which changes its argument
    except ArgumentError as error:
        raise ValueError(f"The config is not a valid {base.__name__} in this version: {readable(error)}") from error
    instance: T = parser.instantiate(parsed)["object"]
    return instance


def readable(error: Exception) -> str:
    """Return an error message of the parser on one line, without the list of alternatives that it tried."""
    lines = (line.strip().removeprefix("- ").rpartition(_CALLABLE)[2] for line in str(error).splitlines())
    problems = [_REPEATED.split(line)[0] for line in lines if line and not line.startswith(_LISTING)]
    return _QUOTED.sub(r"\1", "; ".join(problems)).replace(":; ", ": ")


# Beginnings of lines that list types or repeat the value; lines with any other wording are kept.
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
