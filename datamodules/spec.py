"""What a data module states once, and what a kind of signal has to know of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from datamodules.batch import Cell, Instance
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


class Modality:
    """A kind of signal: how it is read, written, drawn and measured. The classes are in `modalities`.

    This one stands for signals of no particular kind: they are trained on and measured by the PSNR, but not drawn or written.
    A subclass says what differs; figures, predictions, W&B media and ``tools.codes`` ask these methods and nothing else.

    Attributes:
        name: Of the option of ``cli.py predict`` that reads such signals.
        noun: What one signal is called in messages and tables.
        headline: The metric that stands for all.
        reader: Class path of the data module that reads files for prediction.
        reading: Arguments of ``reader`` that are options of ``cli.py predict``, besides the paths themselves.
        writer: What writes a prediction: a frozen dataclass derived from `modalities.writing.Writer`, whose fields are options
            of ``cli.py predict``; None if such signals are not written.
        decoding: Fields of ``writer`` that are options of ``python -m tools.codes``; empty if a code cannot be decoded alone.
    """

    name: ClassVar[str] = "signals"
    noun: ClassVar[str] = "signal"
    headline: ClassVar[Headline] = Headline("psnr", "max", "dB")
    reader: ClassVar[str | None] = None
    reading: ClassVar[tuple[str, ...]] = ()
    writer: ClassVar[type[Any] | None] = None
    decoding: ClassVar[tuple[str, ...]] = ()

    def metrics(self) -> Mapping[str, Any]:
        """Return the metrics by name, each a `composers.metrics.InstanceMetric`; the headline is one of them."""
        return {}

    def read(self, path: str | Path) -> tuple[Any, dict[str, Any]]:
        """Return the signal in a file or folder, and facts that a writer needs.

        Raises:
            ValueError: If it cannot be read; the message names the file.
        """
        raise ValueError(f"{path} cannot be read: {type(self).__name__} reads no files.")

    def write(self, reconstruction: Any, path: str | Path, **options: Any) -> dict[str, str]:
        """Write what a model makes of a signal.

        Args:
            reconstruction: A `modalities.writing.Reconstruction`.
            path: Of the files, without their endings.
            options: Fields of ``writer``.

        Returns:
            The row of the table of predictions.

        Raises:
            ValueError: If an option is out of range, or such signals are not written.
        """
        if self.writer is None:
            raise ValueError(f"{path} cannot be written: {type(self).__name__} writes no files.")
        row: dict[str, str] = self.writer(**options).write(reconstruction, Path(path))
        return row

    def input_shape(self, composer: Any) -> tuple[int, ...] | None:
        """Return the shape of the signals that a model takes; None if it does not say.

        Raises:
            ValueError: If it takes signals of another kind.
        """
        return None

    def shown(self, instance: Instance) -> Instance | None:
        """Return what of an instance a figure shows; None if such signals are not drawn."""
        return None

    def panel(self, values: Tensor, shape: Sequence[int]) -> Any:
        """Return values ``(N, C)`` as a PIL image; ``N`` unflattens as ``shape``."""
        raise ValueError(f"{type(self).__name__} draws nothing.")

    def figure(self, rows: Sequence[Sequence[Cell]], compact: bool = False) -> Any:
        """Return cells in rows and columns as one PIL image, as many in every row; smaller ones if ``compact``."""
        raise ValueError(f"{type(self).__name__} draws nothing.")

    def context(self, instance: Instance) -> list[Cell]:
        """Return the cells of a row before the instance itself: what a model looked at, where that is something else."""
        return []

    def extras(self, composer: Any, modulations: Any, shown: Instance, max_memory: float = 500.0) -> list[Cell]:
        """Return further cells of a row: what else a model makes of an instance.

        Args:
            composer: The model.
            modulations: Of one instance, on the device of the model.
            shown: What `shown` returned of the instance.
            max_memory: MB that rendering may take above the model and the result.
        """
        return []

    def save_media(
        self, composer: Any, modulations: Any, instance: Instance, stem: Path, max_memory: float = 500.0
    ) -> bool:
        """Write what a figure cannot show: sound, or a turntable video.

        Args:
            composer: The model.
            modulations: Of one instance, on the device of the model.
            instance: With its reconstructions.
            stem: Of the files, without their endings.
            max_memory: MB that rendering may take above the model and the result.

        Returns:
            Whether anything was written.
        """
        return False

    def values_at(self, composer: Any, modulations: Any, coords: Tensor, max_memory: float = 500.0) -> Tensor:
        """Return values ``(N, C)`` of one instance at ``coords (N, D)``, on the CPU, rendered a part at a time."""
        raise ValueError(f"{type(self).__name__} draws nothing.")

    def medium(self, cell: Cell) -> Any:
        """Return a cell as loggers show it: a PIL image, or one of the media of `modalities.drawing`."""
        return self.panel(cell.values, cell.shape)

    def media(self, instance: Instance) -> dict[str, Any]:
        """Return what loggers show of an instance and its reconstructions, by column of a table."""
        return {}

    def animation(self, composer: Any, modulations: Any, instance: Instance, frames: int) -> Any:
        """Return a small `modalities.drawing.Animation` of an instance for loggers; None where nothing moves."""
        return None

    def decodes(self, code: Any) -> bool:
        """Return whether a `composers.codes.InstanceCode` stands for such a signal."""
        return False


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
            "modality": self.modality.name,
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
