"""What a data module states once, and what a kind of signal has to know of itself."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

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
    """What a data module states of its signals.

    Attributes:
        domain: Where they are defined, the maker of their coordinates.
        value_dim: ``C``, channels of a value.
        signal_shape: Of the signal that an encoder takes: ``(C, *shape)`` on a grid, ``(V, 3, H, W)`` of views.
        modality: What kind of signal they are, for whoever reads, writes, draws or measures them.
        num_instances: Training instances; None where they cannot be counted.
    """

    domain: Domain
    value_dim: int
    signal_shape: tuple[int, ...]
    modality: Modality
    num_instances: int | None = None
