"""Shapes on disk: one safetensors file per shape, with samples, surface points, normalisation and facts about their origin."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from datamodules.shapes.samples import StoredShape
from datamodules.storage.files import one_line, written_whole
from datamodules.storage.text import printable

ENDING = ".safetensors"
COLUMNS = {"samples": 4, "surface": 6}

_ENTRY = "shape"  # of the metadata
_FORMAT = "signed distances of a shape, version 1"
_AGAIN = "sample it again with python -m tools.sample_sdf MESHES OUT"


def write_shape(path: Path, shape: StoredShape, facts: Mapping[str, Any] | None = None) -> None:
    """Write a shape atomically.

    Args:
        path: The file.
        shape: The shape.
        facts: Further facts in JSON types, such as the source and the settings.

    Raises:
        ValueError: If an array has another shape than documented or non-finite numbers.
    """
    arrays = {
        "samples": np.ascontiguousarray(shape.samples, dtype=np.float32),
        "surface": np.ascontiguousarray(shape.surface, dtype=np.float32),
    }
    for name, array in arrays.items():
        _check_array(path, name, str(array.dtype), array.shape)
        _check_finite(path, name, array)
    entries = {
        "format": _FORMAT,
        "name": printable(shape.name),
        "uniform": int(shape.uniform),
        "offset": [float(value) for value in shape.offset],
        "scale": float(shape.scale),
        "facts": dict(facts or {}),
    }
    metadata = {
        _ENTRY: json.dumps(entries, sort_keys=True)
    }  # one entry, because safetensors writes several in any order
    with written_whole(path) as part:
        part.write_bytes(save(arrays, metadata))


def read_shape(path: Path) -> StoredShape:
    """Read a shape.

    Raises:
        ValueError: If the file is missing, damaged, or of another format; the message names the file and the key.

    Example:
        ``read_shape(Path("data/shapes/chair.safetensors")).samples.shape``
    """
    entries = _checked(path)
    try:
        with safe_open(path, "numpy") as file:
            arrays: dict[str, NDArray[np.float32]] = {name: file.get_tensor(name) for name in COLUMNS}
    except (OSError, SafetensorError) as error:
        raise ValueError(_unreadable(path, error)) from error
    for name, array in arrays.items():
        _check_finite(path, name, array)
    x, y, z = map(float, entries["offset"])
    scale = float(entries["scale"])
    return StoredShape(arrays["samples"], arrays["surface"], entries["name"], entries["uniform"], (x, y, z), scale)


def read_facts(path: Path) -> dict[str, Any]:
    """Read the facts of a shape, with its ``offset`` and ``scale``, without its points.

    Raises:
        ValueError: If the file is missing, or its header is damaged or of another format; the message names it.
    """
    entries = _checked(path)
    facts: dict[str, Any] = entries["facts"]
    return facts | {"offset": entries["offset"], "scale": entries["scale"]}


def problem_of(path: Path) -> str | None:
    """Return why the header of a file is not that of a shape, None if it is."""
    try:
        _checked(path)
    except ValueError as error:
        return str(error)
    return None


def normalisation_of(path: Path) -> tuple[tuple[float, float, float], float]:
    """Return the offset and the scale in a file: ``normalised = (p + offset) * scale``."""
    facts = read_facts(path)
    x, y, z = facts["offset"]
    return (x, y, z), facts["scale"]


def _checked(path: Path) -> dict[str, Any]:
    """Return the metadata of a file after checking them, and the types and shapes of the arrays."""
    if not path.is_file():
        raise ValueError(f"There is no shape file {path}: {_AGAIN}.")
    try:
        with safe_open(path, "numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            keys = list(file.keys())
            slices = {name: file.get_slice(name) for name in COLUMNS if name in keys}
            layouts = {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(_unreadable(path, error)) from error
    for name in COLUMNS:
        if name not in layouts:
            raise ValueError(
                f"The shape file {path} has no array {name}, only {', '.join(sorted(keys)) or 'none'}: {_AGAIN}."
            )
        _check_array(path, name, {"F32": "float32"}.get(layouts[name][0], layouts[name][0]), layouts[name][1])
    return _checked_entries(path, metadata.get(_ENTRY, ""), layouts["samples"][1][0])


def _checked_entries(path: Path, text: str, num_samples: int) -> dict[str, Any]:
    """Return the metadata in a text after checking that none is missing or out of range."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and math.isfinite(value)

    accepted: dict[str, Callable[[Any], bool]] = {
        "format": lambda value: value == _FORMAT,
        "name": lambda value: isinstance(value, str) and bool(value),
        "uniform": lambda value: isinstance(value, int) and 0 <= value <= num_samples,
        "offset": lambda value: isinstance(value, list) and len(value) == 3 and all(map(number, value)),
        "scale": lambda value: number(value) and value > 0,
        "facts": lambda value: isinstance(value, dict),
    }
    try:
        entries = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"The shape file {path} has no metadata of a shape: {_AGAIN}.") from error
    for name, is_valid in accepted.items():
        if not is_valid(entries.get(name)):
            raise ValueError(
                f"The shape file {path} has {entries.get(name)!r} as its {name}, which is not valid: {_AGAIN}."
            )
    return entries


def _check_array(path: Path, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Raise a ``ValueError`` if an array is not ``(N, columns)`` in float32."""
    if dtype != "float32" or len(shape) != 2 or shape[1] != COLUMNS[name]:
        raise ValueError(
            f"The shape file {path} has an array {name} of {dtype} {shape}; expected float32 (N, {COLUMNS[name]}): {_AGAIN}."
        )


def _check_finite(path: Path, name: str, array: NDArray[np.float32]) -> None:
    """Raise a ``ValueError`` if an array has numbers that are not finite."""
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"The shape file {path} has non-finite numbers in {(~finite).sum():,} of {len(array):,} rows of {name}: {_AGAIN}."
        )


def _unreadable(path: Path, error: Exception) -> str:
    """Return the message for a file that cannot be opened as safetensors."""
    return f"The shape file {path} cannot be read ({one_line(error)}): {_AGAIN}."
