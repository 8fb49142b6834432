"""What a code file states about its code besides the latents, checked when the file is read."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from composers.latents import Latents, Layout
from datamodules.domain import Domain, Grid
from datamodules.storage.text import visible
from datamodules.tiles import Box, whole

MAX_SAMPLES = 1 << 27  # 134,217,728: an image of 11,585 x 11,585 pixels, or 2 h 20 min of audio at 16 kHz
_LARGEST = 1 << 53  # position of a sample; float64 represents integers exactly up to here
_FARTHEST = 1e9  # coordinate
_MAX_CELLS = 1 << 24  # of the grid spanned by the ends of all boxes
MAX_AXES = 8
_MODEL = re.compile(r"[0-9a-f]{16}")
_NUMBERS = {"sample_rate": 1, "samples": 1, "scale": 1, "offset": 3, "camera": 4}  # facts of a fixed count of numbers
_COUNTS = ("sample_rate", "samples")  # facts that are positive integers


class Header(NamedTuple):
    """What a code file states besides the latents; see `composers.codes.InstanceCode`."""

    shape: tuple[int, ...]
    boxes: list[Box]
    model: str
    name: str
    facts: dict[str, str]
    domain: Domain
    layout: Layout
    sample_rate: int | None

    @classmethod
    def of(cls, stated: Mapping[str, Any], max_samples: int = MAX_SAMPLES) -> Header:
        """Return the header in the entries of a file, which are plain data by key.

        Args:
            stated: The entries. ``boxes``, ``layout`` and ``sample_rate`` may be missing.
            max_samples: Maximum number of samples of the signal.

        Raises:
            ValueError: If an entry is missing or invalid; the message names its key.
        """
        if missing := [key for key in ("shape", "name", "facts", "domain") if key not in stated]:
            raise ValueError(f"{missing[0]} is missing")
        shape = _shape(stated["shape"], max_samples)
        boxes = _boxes(stated["boxes"], shape) if "boxes" in stated else [whole(shape)]
        if not isinstance(model := stated.get("model"), str) or not _MODEL.fullmatch(model):
            raise ValueError(f"model is {_short(model)}; it must be the fingerprint of a model, 16 hexadecimal digits")
        if not isinstance(stated["name"], str):
            raise ValueError(f"name is {_short(stated['name'])}; it must be a string")
        rate = stated.get("sample_rate")
        return cls(
            shape,
            boxes,
            model,
            visible(stated["name"]),
            _facts(stated["facts"], max_samples),
            _domain(stated["domain"], shape),
            _layout(stated.get("layout", {})),
            None if rate is None else _natural(rate, "sample_rate", 1 << 31),
        )


def check_latents(latents: Latents, tiles: int) -> Latents:
    """Return the latents of a file in float32, after checking their types, values and number of tiles.

    Raises:
        ValueError: If a latent holds other data, has another number of rows than tiles, or holds numbers that are not finite.
    """
    checked = {}
    for name, latent in latents.items():
        key = visible(name)
        if not latent.is_floating_point():
            raise ValueError(f"{key} holds numbers of type {latent.dtype}; latents are floating-point numbers")
        if not latent.shape or len(latent) != tiles or not latent.numel():
            raise ValueError(
                f"{key} has the shape {tuple(latent.shape)}; its first dimension must be the number of boxes, {tiles}"
            )
        checked[name] = latent.float()
        if not bool(checked[name].isfinite().all()):
            raise ValueError(f"{key} holds numbers that are not finite")
    return checked


def _shape(stated: Any, max_samples: int) -> tuple[int, ...]:
    """Return the shape of a signal; raise a `ValueError` if it is invalid or too large."""
    if not isinstance(stated, list) or not 0 < len(stated) <= MAX_AXES:
        raise ValueError(f"shape is {_short(stated)}; it must be a list of the sizes of all axes")
    shape = tuple(_natural(size, "shape") for size in stated)
    if (samples := math.prod(shape)) > max_samples:
        raise ValueError(
            f"shape is {' x '.join(f'{size:,}' for size in shape)}, {samples:,} samples, but at most {max_samples:,} are "
            "decoded unless max_samples (--max_samples) is higher"
        )
    return shape


def _boxes(stated: Any, shape: Sequence[int]) -> list[Box]:
    """Return the boxes of tiles; raise a `ValueError` if they are invalid or do not cover the signal."""
    if not isinstance(stated, list) or not stated:
        raise ValueError(f"boxes is {_short(stated)}; it must be a list of at least one box")
    boxes = [_box(box, shape) for box in stated]
    if not _cover(boxes, shape):
        raise ValueError("boxes do not cover the signal: parts of it would have no value")
    return boxes


def _box(stated: Any, shape: Sequence[int]) -> Box:
    """Return the box of a tile, which lies in the signal at least in part; raise a `ValueError` for anything else."""
    lists = isinstance(stated, list | tuple) and all(
        isinstance(span, list | tuple) and len(span) == 2 for span in stated
    )
    if not lists or len(stated) != len(shape):
        raise ValueError(f"boxes contains {_short(stated)}; a box has a start and a stop for each of {len(shape)} axes")
    for (start, stop), size in zip(stated, shape, strict=True):
        if not all(type(end) is int and -_LARGEST < end < _LARGEST for end in (start, stop)):
            raise ValueError(f"boxes contains {_short(stated)}; its ends must be integers")
        if start >= stop:
            raise ValueError(f"boxes contains {_short(stated)}; a box must start before it stops")
        if start >= size or stop <= 0:
            raise ValueError(
                f"boxes contains {_short(stated)}, which lies outside of the signal of shape {tuple(shape)}"
            )
    return tuple((start, stop) for start, stop in stated)


def _cover(boxes: Sequence[Box], shape: Sequence[int]) -> bool:
    """Return whether boxes cover a signal: every cell of the grid that their ends span."""
    if boxes[0] == whole(shape):
        return True
    spans = np.clip(np.array(boxes, np.int64), 0, np.array(shape, np.int64)[:, None])  # (boxes, axes, 2)
    cuts = [np.unique(np.append(spans[:, axis], (0, size))) for axis, size in enumerate(shape)]
    if math.prod(len(cut) - 1 for cut in cuts) > _MAX_CELLS:
        raise ValueError(f"boxes has {len(boxes):,} boxes, which do not form a grid")
    covered = np.zeros([len(cut) - 1 for cut in cuts], bool)
    indices = [np.searchsorted(cut, spans[:, axis]) for axis, cut in enumerate(cuts)]
    for box in range(len(boxes)):
        covered[tuple(slice(*index[box]) for index in indices)] = True
    return bool(covered.all())


def _domain(stated: Any, shape: Sequence[int]) -> Domain:
    """Return the domain of a tile; raise a `ValueError` if it is invalid or has another number of axes than the signal."""
    try:
        domain = Domain.from_config(stated)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"domain is not valid: {visible(str(error))[:300].rstrip('.')}") from error
    numbers = [number for number in _leaves(dataclasses.astuple(domain)) if number is not None]  # type: ignore[call-overload]
    if not all(type(number) in (int, float) and abs(number) <= _FARTHEST for number in numbers):
        raise ValueError(f"domain holds {_short(numbers)}; its numbers must lie in [-{_FARTHEST:g}, {_FARTHEST:g}]")
    if isinstance(domain, Grid) and min(high - low for low, high in domain.ranges) < 1 / _FARTHEST:
        raise ValueError(f"domain has the ranges {_short(domain.ranges)}, narrower than {1 / _FARTHEST:g}")
    if isinstance(domain, Grid) and len(domain.ranges) != len(shape):
        raise ValueError(f"domain has {len(domain.ranges)} axes, shape has {len(shape)}")
    return domain


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the elements of nested tuples."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _layout(stated: Any) -> Layout:
    """Return the layout of the latents of a tile; raise a `ValueError` if it is invalid."""
    if not isinstance(stated, Mapping) or not set(stated) <= set(Layout._fields):
        raise ValueError(f"layout is {_short(stated)}; it must state a grid and an extent, or nothing")
    parts = {}
    for name, sizes in stated.items():
        if not isinstance(sizes, list) or not 0 < len(sizes) <= MAX_AXES:
            raise ValueError(f"layout states the {name} {_short(sizes)}; it must be a list of sizes")
        parts[name] = tuple(_natural(size, f"layout ({name})", 1 << 31) for size in sizes)
    layout = Layout(**parts)
    if layout.grid is not None and layout.extent is not None and len(layout.grid) != len(layout.extent):
        raise ValueError(f"layout states a grid of {len(layout.grid)} axes and an extent of {len(layout.extent)}")
    return layout


def _facts(stated: Any, max_samples: int) -> dict[str, str]:
    """Return facts as printable strings; raise a `ValueError` if they are invalid."""
    if not isinstance(stated, Mapping) or not all(isinstance(fact, str | int | float) for fact in stated.values()):
        raise ValueError(f"facts is {_short(stated)}; it must be a mapping of strings")
    facts = {visible(str(name)): visible(str(fact)) for name, fact in stated.items()}
    for name in set(facts) & set(_NUMBERS):
        numbers = _finite(facts[name])
        is_count = name in _COUNTS
        if len(numbers) != _NUMBERS[name] or (is_count and not facts[name].isascii()):
            raise ValueError(
                f"facts states the {name} {_short(facts[name])}; it must be {_NUMBERS[name]} finite number(s)"
            )
        if is_count and not (facts[name].isdecimal() and 0 < int(facts[name]) < 1 << 31):
            raise ValueError(f"facts states the {name} {_short(facts[name])}; it must be a positive integer")
    if int(facts.get("samples", 0)) > max_samples:
        raise ValueError(
            f"facts states {int(facts['samples']):,} samples, but at most {max_samples:,} are decoded unless max_samples "
            "(--max_samples) is higher"
        )
    return facts


def _finite(text: str) -> list[float]:
    """Return the finite numbers in a string; an empty list if it holds anything else."""
    try:
        numbers = [float(part) for part in text[:200].split()]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _natural(stated: Any, key: str, limit: int = _LARGEST) -> int:
    """Return a positive integer below a limit; raise a `ValueError` for anything else."""
    if type(stated) is not int or not 0 < stated < limit:
        raise ValueError(
            f"{key} states the size {_short(stated)}; it must be an integer of at least 1, below {limit:,}"
        )
    return stated


def _short(stated: Any) -> str:
    """Return the beginning of a value as text."""
    if isinstance(stated, int) and abs(stated) >= _LARGEST:
        return "of too many digits"
    return visible(repr(stated))[:60]
