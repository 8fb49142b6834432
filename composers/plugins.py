"""Classes that checkpoints may name: those of this software and of optimizers, and those of modules that the user names.

A checkpoint holds the config of its model, and so the import paths of classes. Importing a module runs its code, and a module
of that name may lie in the working directory. `check_classes` therefore refuses all other paths before anything is imported.
The allowlist of jsonargparse is not used, because it applies to the whole process, including the configs of the user.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from datamodules.storage.text import visible

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("composers", "datamodules", "modalities")  # whose classes are parts of models
_TORCH = ("torch.optim",)
_MAX_VALUES = 100_000  # of a config; the largest in configs/ has about 500
_MAX_DEPTH = 60
_LARGEST = 1 << 26  # integer, such as the number of layers
_MAX_LENGTH = 1000  # of a text
_MAX_FILE = 1 << 16  # bytes of a file that is read to find out whether it is a config
_named: set[str] = set()  # modules, and paths of classes, that the user has named in this process


def import_plugins(modules: Iterable[str | ModuleType]) -> None:
    """Import modules, and allow checkpoints and codes that this process reads to name the classes defined in them.

    Args:
        modules: Modules, or their names. A package includes its submodules.

    Raises:
        ValueError: If a module cannot be imported.

    Example:
        ``import_plugins(["attention"])``
    """
    for module in modules:
        if isinstance(module, str):
            try:
                importlib.import_module(module)
            except (ImportError, ValueError, TypeError, SyntaxError) as error:
                raise ValueError(
                    f"--plugins names {module!r}, which cannot be imported ({error}): pass the name of a module, as in an "
                    "import statement, and add its folder to PYTHONPATH."
                ) from error
        _named.add(module if isinstance(module, str) else module.__name__)


def add_plugins_option(parser: Any) -> None:
    """Add the option ``--plugins`` to a parser of argparse or jsonargparse; pass its value, if any, to `import_plugins`."""
    parser.add_argument(
        "--plugins",
        type=str,
        nargs="+",
        metavar="MODULE",
        help="Modules to import before checkpoints and codes are read, which may then name the classes of these modules. "
        "Checkpoints may only name classes of this software, of --plugins and of --config; others are refused.",
    )


def allow_classes_of(config: Any) -> None:
    """Allow checkpoints to name the classes in a config of the user, and other classes of their modules; import nothing."""
    for key, path in _texts(config, "The config"):
        if key == "class_path" and _is_path(path):
            _named.update((path, path.rpartition(".")[0]))


def check_classes(config: Any, source: str | Path) -> None:
    """Check that a config from a file names no class of other modules, in any of its values.

    Args:
        config: The config: nested mappings and lists of plain values.
        source: The file for messages.

    Raises:
        ValueError: If it names a class of another module or a function, or is no config.
    """
    for key, text in _texts(config, source):
        if len(text) > _MAX_LENGTH:
            raise ValueError(
                f"{source} is not a checkpoint of this software: {key} in its config has {len(text):,} characters."
            )
        if _is_path(text):
            _check_path(text, key, source)
        elif key == "class_path":
            if not text.isidentifier():
                raise ValueError(
                    f"{source} has an invalid config: class_path is {text[:80]!r}, not the path of a class."
                )
        elif _is_config(text):
            raise ValueError(
                f"{source} has an invalid config: {key} is {text[:80]!r}, which would be read as a config; a checkpoint holds "
                "its config as plain values."
            )


def _check_path(path: str, key: str, source: str | Path) -> None:
    """Raise a `ValueError` if the path of a class is not allowed."""
    if any(_within(path, (package,)) for package in _PACKAGES):
        _check_location(path.partition(".")[0], source)
    elif not _within(path, (*_TORCH, *_named)):
        raise _refusal(source, key, path, path.rpartition(".")[0])
    if path in _named:
        return
    try:
        value = pkgutil.resolve_name(path)
    except Exception:  # raised by the import of an allowed module; the parser reports it
        return
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    if isinstance(module, str) and not _within(module, (*_PACKAGES, *_TORCH, *_named)):
        raise _refusal(source, key, path, module)
    if not isinstance(value, type) and not _within(path, _named):
        raise ValueError(
            f"{source} names {path} ({key} in its config), which is not a class: a checkpoint may only name classes."
        )


def _check_location(package: str, source: str | Path) -> None:
    """Raise a `ValueError` if a package of this software would be imported from another folder that precedes it in the path."""
    module = sys.modules.get(package)
    spec = importlib.util.find_spec(package) if module is None else module.__spec__
    folders = None if spec is None else spec.submodule_search_locations
    actual = "nowhere" if spec is None else str(spec.origin) if folders is None else next(iter(folders), "nowhere")
    if Path(actual).resolve() != _ROOT / package:
        raise ValueError(
            f"{source} names a class of {package}, which Python imports from {actual} rather than {_ROOT / package}: remove or "
            "rename that file, or run the command in another folder."
        )


def _refusal(source: str | Path, key: str, path: str, module: str) -> ValueError:
    """Return the error for a class of a module that was not named."""
    text = f"{source} names {path} ({key} in its config), which is not a class of this software: its module is not imported. "
    return ValueError(
        f"{text}If you trust the file, name the module: `--plugins {module}`, or "
        f'`composers.load(path, plugins=["{module}"])` in Python.'
    )


def _texts(config: Any, source: str | Path) -> Iterator[tuple[str, str]]:
    """Yield the texts of a config with their keys; raise a `ValueError` if it is too large or too deep to be one."""
    remaining, count = [("config", config, 0)], 0
    while remaining:
        key, value, depth = remaining.pop()
        count += 1
        if count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ValueError(
                f"{source} has an invalid config: it is nested too deeply, or has more than {_MAX_VALUES:,} values."
            )
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(
                f"{source} has an invalid config: {key} is an integer above {_LARGEST:,}, the largest allowed."
            )
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, Mapping):
            remaining += [(visible(str(name)[:80]), item, depth + 1) for name, item in value.items()]
        elif isinstance(value, list | tuple | set | frozenset):
            remaining += [(key, item, depth + 1) for item in value]


def _is_config(text: str) -> bool:
    """Return whether the parser may read a string, not a class path, as a config: as YAML, or as the name of a file."""
    contents = [text] if any(sign in text for sign in "{[:\n") else []
    try:
        if Path(text).is_file():
            if Path(text).stat().st_size > _MAX_FILE:
                return True
            contents.append(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass  # not the name of a file, or not a text file
    return any(_holds_classes(content) for content in contents)


def _holds_classes(content: str) -> bool:
    """Return whether YAML holds mappings or paths of classes."""
    try:
        value = yaml.safe_load(content)
    except yaml.YAMLError:
        return False
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, Mapping | list) or (isinstance(item, str) and _is_path(item)) for item in items)


def _is_path(text: str) -> bool:
    """Return whether a text has the form of the import path of a class."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def _within(path: str, modules: Iterable[str]) -> bool:
    """Return whether a path is that of one of the modules, or of something in it."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)
