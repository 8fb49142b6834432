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
_MAX_VALUES = 100_000  # of a YAML with its aliases written out; the largest shipped config has about 400
_MAX_DEPTH = 100  # of nested lists and mappings
_Events = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_layers(text: str) -> Any:
    """Load YAML and merge it over the files that its key ``_base_`` lists.

    Mappings are merged key by key, unless they have a different ``class_path``. Lists replace lists, except that a list under a
    key ending in ``+`` is appended to the list of the lower layer.

    Args:
        text: YAML. Paths in ``_base_`` are relative to the working directory, which the parser sets to the folder of the file.

    Returns:
        The merged content without ``_base_``.

    Raises:
        yaml.YAMLError: If the text is not valid YAML, repeats a key, or has aliases that refer to themselves or stand for more
            than 100,000 values.
        ValueError: If a file in ``_base_`` is missing or not a mapping; the message names it.
    """
    loaded = load_yaml(text)
    return _merge_bases(loaded, Path.cwd()) if isinstance(loaded, dict) and "_base_" in loaded else loaded


def load_config(path: str | Path) -> dict[str, Any]:
    """Load a YAML file merged over the files that its key ``_base_`` lists; see `load_layers`.

    Raises:
        ValueError: If the file cannot be read, is not valid or not a mapping; the message names the file.
    """
    path = Path(path)
    loaded = _read_mapping(path, f"The config {path}")
    for key, value in loaded.items():  # the parser also reads these files, but its errors do not name them
        if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (path.parent / value).is_file():
            _read_mapping(path.parent / value, f"{path.parent / value}, which is {key} of {path},")
    return _merge_bases(loaded, path.absolute().parent, (path.resolve(),)) if "_base_" in loaded else loaded


def load_yaml(text: str) -> Any:
    """Load YAML after checking that its aliases are finite and few, and that no mapping repeats a key.

    Raises:
        yaml.YAMLError: If the text is not valid.
    """
    try:
        _check_size(text)
        return _plain_yaml(text)
    except (ValueError, OverflowError, RecursionError, TypeError) as error:  # for numbers and dates that Python rejects
        reason = str(error).partition(";")[0]  # without a hint to programmers
        raise yaml.YAMLError(" ".join(reason.split()) or type(error).__name__) from error


def _check_size(text: str) -> None:
    """Raise if aliases refer to themselves or stand for too many values, nesting is too deep, or a key is repeated."""
    sizes: dict[str | None, int | None] = {}  # by anchor; None while its value is not complete
    parents: list[_Collection] = []
    for event in yaml.parse(text, Loader=_Events):
        size, anchor, key = 0, getattr(event, "anchor", None), None
        if isinstance(event, yaml.CollectionStartEvent):
            if len(parents) == _MAX_DEPTH:
                raise _problem(event, f"more than {_MAX_DEPTH} nested values")
            parents.append(_Collection(anchor, isinstance(event, yaml.MappingStartEvent)))
            sizes[anchor] = None
        elif isinstance(event, yaml.CollectionEndEvent):
            complete = parents.pop()
            size = sizes[complete.anchor] = complete.size
        elif isinstance(event, yaml.ScalarEvent):
            size, key = 1, event.value
            sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            stated = sizes.get(anchor, 0)
            if stated is None:
                raise _problem(event, f"the alias *{anchor} refers to itself")
            size = stated
        if size and parents:
            parents[-1].add(size, key, event)


def _problem(event: yaml.Event, message: str) -> yaml.MarkedYAMLError:
    """Return the error for a problem at an event."""
    return yaml.MarkedYAMLError(None, None, message, event.start_mark)  # type: ignore[arg-type]


class _Collection:
    """A list or mapping that is being parsed.

    Args:
        anchor: Its anchor, if any.
        is_mapping: Whether it is a mapping, whose keys and values alternate.
    """

    def __init__(self, anchor: str | None, is_mapping: bool) -> None:
        self.anchor, self.is_mapping = anchor, is_mapping
        self.size = 1
        self._count = 0
        self._keys: set[str] = set()

    def add(self, size: int, key: str | None, event: yaml.Event) -> None:
        """Add an item with its size; ``key`` is its text if it may be a key."""
        self.size += size
        if self.size > _MAX_VALUES:
            raise _problem(event, f"more than {_MAX_VALUES:,} values, with aliases")
        if self.is_mapping and self._count % 2 == 0 and key is not None:
            if key in self._keys and key != "<<":
                raise _problem(event, f"the key {key!r:.60} is repeated")
            self._keys.add(key)
        self._count += 1


def _read_mapping(path: Path, subject: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, without merging; ``subject`` names the file in error messages."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{subject} is not a file: pass the path of a YAML file.")
        content = load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{subject} is not text in UTF-8 ({error.reason}, byte {error.start}): save it as such."
        ) from error
    except OSError as error:
        raise ValueError(f"{subject} cannot be read: {error.strerror}. Pass the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{subject} is not valid YAML: {_explained(error)}") from error
    if not isinstance(content, dict):
        held = "is empty" if content is None or content == "" else f"contains a {type(content).__name__}"
        raise ValueError(f"{subject} {held}; it must contain a mapping, such as `trainer: {{max_epochs: 1}}`.")
    if not all(isinstance(key, str) for key in content):
        key = next(key for key in content if not isinstance(key, str))
        raise ValueError(f"{subject} has the key {key!r:.60}, which is not text: quote it, or remove it.")
    return content


def _explained(error: yaml.YAMLError) -> str:
    """Return the message of an error of YAML on one line, with the place of the error where it is known."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split()).replace(' in "<unicode string>",', ",")
    return f"{getattr(error, 'problem', None)} (line {mark.line + 1}, column {mark.column + 1})"


def _merge_bases(top: dict[str, Any], folder: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Merge a mapping over the files in its ``_base_``, the first one lowest; ``above`` are the files that include it."""
    bases = top.pop("_base_")
    where = above[-1] if above else f"A config in {folder}"
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) and "\0" not in name for name in names):
        raise ValueError(f"{where} has {bases!r:.60} as its _base_: it must be a path or a list of paths.")
    merged: dict[str, Any] = {}
    for name in names:
        path = (folder / name).resolve()
        if not path.is_file():
            raise ValueError(
                f"_base_ names {name}, but there is no file {path}: paths are relative to the file that contains _base_."
            )
        if path in above:
            raise ValueError(f"{path} includes itself through _base_ ({folder / name}): remove the cycle.")
        base = _read_mapping(path, f"{path}, listed in _base_,")
        base = _merge_bases(base, path.parent, (*above, path)) if "_base_" in base else base
        merged = _merge(merged, base, str(path))
    return _merge(merged, top, str(where))


def _merge(low: Mapping[Any, Any], high: Mapping[Any, Any], source: str) -> dict[Any, Any]:
    """Return ``high``, which ``source`` contains, merged over ``low``."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        name = key.removesuffix("+") if isinstance(key, str) else key
        lists = [merged[text] for text in (name, key) if key != name and isinstance(merged.get(text), list)]
        if lists and not isinstance(value, list):
            raise ValueError(f"{source}: {key} appends to a list, but is {value!r:.60}: write a list.")
        if lists and isinstance(merged.get(name), list):
            merged[name] = merged[name] + value
        elif lists:
            merged[key] = below + value
        elif (
            isinstance(below, Mapping)
            and isinstance(value, Mapping)
            and value.get("class_path") in (None, below.get("class_path", value.get("class_path")))
        ):
            merged[key] = _merge(below, value, source)
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
