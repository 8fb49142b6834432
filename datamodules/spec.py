"""What a data module states once, and what a kind of signal has to know of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from datamodules.domain import Domain


class Headline(NamedTuple):
    """The metric that stands for all: shown while training, monitored by checkpoints, first in tables.

    Attributes:
        metric: Its name, as in ``metrics`` of a composer.
        direction: Whether more or less of it is better.
        unit: Printed after it; empty if it has none.
    """

    metric: str
    direction: Literal["max", "min"]
    unit: str


class Modality(Protocol):
    """A kind of signal: images, audio, views. The classes are in `modalities`.

    Attributes:
        name: Of the option of ``cli.py predict`` that reads such signals.
        headline: The metric that stands for all.
    """

    name: str
    headline: Headline


class DataSpec(NamedTuple):
    """What a data module states of its signals, once.

    Attributes:
        domain: Where they are defined, the maker of their coordinates.
        value_dim: ``C``, channels of a value.
        signal_shape: Of the signal that an encoder takes: ``(C, *shape)`` on a grid, ``(V, 3, H, W)`` of views.
        modality: What kind of signal they are, for whoever reads, writes, draws or measures them.
        num_instances: Training instances; None where they cannot be counted, as before set-up.
        sample_rate: Samples per second of audio; None of signals that are not sampled in time.
    """

    domain: Domain
    value_dim: int
    signal_shape: tuple[int, ...]
    modality: Modality
    num_instances: int | None = None
    sample_rate: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain data, for checkpoints; the modality by its name."""
        return self._asdict() | {
            "domain": self.domain.config(),
            "signal_shape": list(self.signal_shape),
            "modality": None if self.modality is None else self.modality.name,
        }


FromData = Mapping[str, Callable[[DataSpec], Any]]
"""What a part of a model takes from the data: a function of the `DataSpec` by the name of the constructor's argument.

A part declares it as the class attribute ``from_data`` and keeps the value under the name of the argument. Where a config
leaves such an argument None, the command line fills it in; where it was given, it is compared at set-up.
"""


def declared(part: Any) -> FromData:
    """Return what a part, or its class, declares to take from the data; nothing if it declares nothing."""
    found: FromData = getattr(part, "from_data", None) or {}
    return found


def coord_dim(spec: DataSpec) -> int:
    """Return the dimensions of a coordinate, for ``from_data``."""
    return spec.domain.coord_dim


def value_dim(spec: DataSpec) -> int:
    """Return the channels of a value, for ``from_data``."""
    return spec.value_dim


def signal_shape(spec: DataSpec) -> tuple[int, ...]:
    """Return the shape of the signal, for ``from_data``."""
    return spec.signal_shape


def agrees(given: Any, stated: Any) -> bool:
    """Return whether an argument that was given fits what the data states; an axis of -1 is open, and None is no statement.

    Example:
        >>> agrees((3, -1, 8), (3, 16, 8)), agrees((3, 16), (3, 16, 8)), agrees(2.0, 2), agrees(2, None)
        (True, False, True, True)
    """
    if given is None or stated is None:
        return True
    if not isinstance(stated, Sequence):
        return bool(given == stated)
    return len(given) == len(stated) and all(own in (-1, size) for own, size in zip(given, stated, strict=True))
