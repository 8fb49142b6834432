"""What the writers of predictions have in common: what they get, what they return, how they say what they wrote."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from composers.base import Composer
from composers.codes import InstanceCode
from composers.metrics import instance_mse, psnr_of_mse
from datamodules.batch import Instance, Samples

Row = dict[str, str]


class Prediction(NamedTuple):
    """A signal and what a model makes of it.

    Attributes:
        composer: The model.
        code: Of all tiles of the signal, with the facts of refinement and headline metric.
        instance: The signal as the model saw it and its reconstructions; None where it was cut into tiles.
        original: ``(C, *shape)``, the signal itself where the model saw it in tiles or at another size; else None.
        source: Facts of the file: of audio, the sampling rate ``sample_rate``.
    """

    composer: Composer
    code: InstanceCode
    instance: Instance | None = None
    original: Tensor | None = None
    source: Mapping[str, Any] = {}


class Writer(ABC):
    """Writes what a model makes of one signal. The fields of a subclass, a frozen dataclass, are options of prediction.

    Attributes:
        results: What is written, in words.
        measure: What the printed table holds, in words.
        size_heading: Heading of the size of a signal in the printed table.
        counted: The column of the table that counts what a signal has.
        numbers: Columns of measured numbers, NaN where there was nothing to measure, and their headings.
    """

    results: ClassVar[str]
    measure: ClassVar[str] = "PSNR in dB"
    size_heading: ClassVar[str]
    counted: ClassVar[str] = "tiles"
    numbers: ClassVar[Mapping[str, str]]

    @abstractmethod
    def write(self, reconstruction: Prediction, path: Path) -> Row:
        """Write the files of one signal.

        Args:
            reconstruction: What a model makes of it.
            path: Of the files, without their endings.

        Returns:
            Its row of the table, the same columns for all.
        """

    @abstractmethod
    def size_of(self, row: Row) -> str:
        """Return the size of a signal, for its row of the printed table."""

    def check(self, composer: Composer) -> list[str]:
        """Refuse a model that options do not fit, before any work, and return lines that the user should read.

        Raises:
            ValueError: If they do not.
        """
        return []

    def decode(
        self, composer: Composer, codes: Sequence[InstanceCode], path: Path | None, stem: Path
    ) -> tuple[Path, str]:
        """Write the signals of codes, without anything else to know of them, and return where and what.

        Args:
            composer: The model of the codes.
            codes: One, written to ``path``; or the frames of a walk, written into the folder ``path``.
            path: Where to; for one code ``stem`` with an ending if None.
            stem: Of the default path.

        Raises:
            ValueError: If such codes cannot be decoded alone, or are of another model.
        """
        raise ValueError(f"{type(self).__name__} decodes no codes.")

    def errors(self, values: Tensor, query: Samples) -> list[float]:
        """Return the error of every tile ``(B, N, C)``, such that `score` can be taken of their mean; NaN without truth."""
        return [math.nan] * len(values) if query.values is None else instance_mse(values, query).tolist()

    def score(self, errors: Sequence[float]) -> float:
        """Return the headline metric of a signal, of the errors of all its tiles."""
        return psnr_of_mse(torch.tensor(errors).mean()).item()
