"""Specification of the data: `DataSpec`, and the base class of modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from datamodules.batch import Cell, Instance
from datamodules.code_size import CodeSize
from datamodules.domain import Domain


class Headline(NamedTuple):
    """The main metric: shown in the progress bar, monitored by checkpoints, first in tables.

    Attributes:
        metric: Name of the metric, as in ``metrics`` of a composer.
        direction: Whether larger (``max``) or smaller (``min``) values are better.
        unit: Unit that is printed after the value; empty if there is none.
    """

    metric: str
    direction: Literal["max", "min"]
    unit: str


class LinearPatch(NamedTuple):
    """Patches of the linear code that instance codes of the same size are compared with.

    Attributes:
        method: Name of the linear code in tables.
        shape: Shape of a patch, with the axes of the signal; a patch contains all channels.
        unit: What ``shape`` counts: pixels or samples.
    """

    method: str
    shape: tuple[int, ...]
    unit: str


class Modality:
    """Base class of modalities: how signals of one kind are read, written, drawn and measured. See `modalities`.

    This class itself is the default for other signals: it supports training and the PSNR, but no drawing or writing. Figures,
    predictions, W&B media and ``tools.codes`` call only the methods of this interface.

    Attributes:
        name: Name of the option of ``cli.py predict`` for such signals. Modalities of the same name are told apart by `takes`.
        noun: Noun for a signal in messages and tables.
        task: Name of the task in messages, where several modalities have the same ``name``; empty otherwise.
        headline: The main metric.
        reader: Class path of the data module that reads files for prediction.
        reading: Arguments of ``reader`` that are options of ``cli.py predict``, in addition to the paths.
        writer: Class that writes predictions: a frozen dataclass derived from `modalities.writing.Writer`, whose fields are
            options of ``cli.py predict``; None if such signals cannot be written.
        decoding: Fields of ``writer`` that are options of ``python -m tools.codes``; empty if codes cannot be decoded on their
            own.
        weights: Name of the bundled weights that ``cli.py predict`` uses without ``--ckpt_path``; None if it is required.
        interpolation: Filter of `modalities.resampling` that resamples such signals; None if they are on no regular grid.
        linear: Patches of the linear code that a test compares instance codes with; None if there is no comparison.
    """

    name: ClassVar[str] = "signals"
    noun: ClassVar[str] = "signal"
    task: ClassVar[str] = ""
    headline: ClassVar[Headline] = Headline("psnr", "max", "dB")
    reader: ClassVar[str | None] = None
    reading: ClassVar[tuple[str, ...]] = ()
    writer: ClassVar[type[Any] | None] = None
    decoding: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[str | None] = None
    interpolation: ClassVar[Literal["bicubic", "sinc"] | None] = None
    linear: ClassVar[LinearPatch | None] = None

    def takes(self, facts: Mapping[str, Any]) -> bool:
        """Return whether this modality is that of a model, where several have the same ``name``.

        Args:
            facts: Facts of the training data in its checkpoint, as `DataSpec.facts`; empty if it states none.
        """
        return True

    def code_size(self, numbers: int, shape: Sequence[int], sample_rate: int | None = None) -> CodeSize:
        """Return the size of an instance code; this class knows no rate.

        Args:
            numbers: Number of latents.
            shape: Shape of the signal without padding and channels.
            sample_rate: Samples per second of ``shape``, for audio.
        """
        return CodeSize(numbers)

    def size_of_code(self, code: Any) -> CodeSize:
        """Return the size of a `composers.codes.InstanceCode`, of all tiles together."""
        return self.code_size(code.numel, code.shape)

    def metrics(self) -> Mapping[str, Any]:
        """Return the metrics by name, each a `composers.metrics.InstanceMetric`, including the headline."""
        return {}

    def read(self, path: str | Path) -> tuple[Any, dict[str, Any]]:
        """Return the signal in a file or folder, and the properties of the file that a writer needs.

        Raises:
            ValueError: If the file cannot be read; the message contains its path.
        """
        raise ValueError(f"{path} cannot be read: {type(self).__name__} reads no files.")

    def write(self, prediction: Any, path: str | Path, **options: Any) -> dict[str, str]:
        """Write a prediction.

        Args:
            prediction: A `modalities.writing.Prediction`.
            path: Path of the files without suffixes.
            options: Fields of ``writer``.

        Returns:
            The row of the table of predictions.

        Raises:
            ValueError: If an option is out of range, or such signals cannot be written.
        """
        if self.writer is None:
            raise ValueError(f"{path} cannot be written: {type(self).__name__} writes no files.")
        row: dict[str, str] = self.writer(**options).write(prediction, Path(path))
        return row

    def input_shape(self, composer: Any) -> tuple[int, ...] | None:
        """Return the shape of the input signals of a model, None if unknown.

        Raises:
            ValueError: If the model is for signals of another kind.
        """
        return None

    def shown(self, instance: Instance) -> Instance | None:
        """Return the part of an instance that a figure shows; None if such signals cannot be drawn."""
        return None

    def panel(self, values: Tensor, shape: Sequence[int]) -> Any:
        """Return values ``(N, C)`` as a PIL image; ``N`` unflattens to ``shape``."""
        raise ValueError(f"{type(self).__name__} draws nothing.")

    def figure(self, rows: Sequence[Sequence[Cell]], compact: bool = False) -> Any:
        """Return a PIL image of rows of equally many cells, drawn smaller if ``compact``."""
        raise ValueError(f"{type(self).__name__} draws nothing.")

    def original(self, shown: Instance) -> Cell:
        """Return the target of an instance as a cell without a label; ``shown`` is the result of `shown`."""
        assert shown.query.values is not None, "the query has no values to show"
        return Cell("", shown.query.values, shown.shape, shown.domain)

    def reconstructed(
        self, composer: Any, reconstruction: Any, shown: Instance, values: Tensor, max_memory: float = 500.0
    ) -> Cell:
        """Return a reconstruction as a cell without a label.

        Args:
            composer: The model.
            reconstruction: Reconstruction of one instance.
            shown: Result of `shown` for the instance.
            values: Reconstructed values ``(N, C)`` of ``shown``.
            max_memory: Memory for rendering in MB, in addition to the model and the result.
        """
        return Cell("", values, shown.shape, shown.domain)

    def context(self, instance: Instance) -> list[Cell]:
        """Return the cells that precede an instance in a row: the input of the model, if it differs from the target."""
        return []

    def extras(self, composer: Any, reconstruction: Any, shown: Instance, max_memory: float = 500.0) -> list[Cell]:
        """Return additional cells of a row, such as the depth of a view.

        Args:
            composer: The model.
            reconstruction: Reconstruction of one instance.
            shown: Result of `shown` for the instance.
            max_memory: Memory for rendering in MB, in addition to the model and the result.
        """
        return []

    def reduced(self, cell: Cell) -> Cell:
        """Return a cell with as many samples as `figure` draws, at most; figures keep all their cells until they are drawn."""
        return cell

    def save_media(
        self, composer: Any, reconstruction: Any, instance: Instance, stem: Path, max_memory: float = 500.0
    ) -> bool:
        """Write files that complement a figure: audio, or a turntable video.

        Args:
            composer: The model.
            reconstruction: Reconstruction of one instance.
            instance: The instance with its reconstructions.
            stem: Path of the files without suffixes.
            max_memory: Memory for rendering in MB, in addition to the model and the result.

        Returns:
            Whether files were written.
        """
        return False

    def values_at(self, composer: Any, reconstruction: Any, coords: Tensor, max_memory: float = 500.0) -> Tensor:
        """Return the values ``(N, C)`` of one instance at ``coords (N, D)``, rendered in chunks, on the CPU."""
        raise ValueError(f"{type(self).__name__} draws nothing.")

    def medium(self, cell: Cell) -> Any:
        """Return a cell for loggers: a PIL image, or one of the media of `modalities.drawing`."""
        return self.panel(cell.values, cell.shape)

    def media(self, composer: Any, reconstruction: Any, instance: Instance) -> dict[str, Any]:
        """Return media of an instance and its reconstructions for loggers, by column of a table.

        Args:
            composer: The model.
            reconstruction: Reconstruction of the instance after the last reported step.
            instance: The instance with its reconstructions.
        """
        return {}

    def animation(self, composer: Any, reconstruction: Any, instance: Instance, frames: int) -> Any:
        """Return a small `modalities.drawing.Animation` of an instance for loggers; None if there is none."""
        return None

    def decodes(self, code: Any) -> bool:
        """Return whether a `composers.codes.InstanceCode` represents such a signal."""
        return False


class DataSpec(NamedTuple):
    """Specification of the signals of a data module.

    Attributes:
        domain: Domain of the signals, which creates their coordinates.
        value_dim: ``C``, channels of a value.
        signal_shape: Shape of the input of an encoder: ``(C, *shape)`` on a grid, ``(V, 3, H, W)`` for views, ``(P, K)`` for
            point sets.
        modality: Modality of the signals, which reads, writes, draws and measures them.
        num_instances: Number of training instances; None if unknown, for example before `setup`.
        sample_rate: Sampling rate of audio in Hz; None for other signals.
        scales: Smallest and largest scale of super-resolution in training, query samples per observed sample along each axis;
            None for other tasks.
        normal_offset: Distance along the normals of surface points at which gradient steps observe two further samples; None
            for other signals than shapes.
        inside: Fraction of the observed samples of a shape that are inside; None if it is not fixed.
        uniform: Fraction of the samples of a shape that are uniform in the domain; the others are near the surface. None if it
            is unknown.
    """

    domain: Domain
    value_dim: int
    signal_shape: tuple[int, ...]
    modality: Modality
    num_instances: int | None = None
    sample_rate: int | None = None
    scales: tuple[float, float] | None = None
    normal_offset: float | None = None
    inside: float | None = None
    uniform: float | None = None

    def facts(self) -> dict[str, Any]:
        """Return the specification as plain data for checkpoints, with the name of the modality."""
        return self._asdict() | {
            "domain": self.domain.config(),
            "signal_shape": list(self.signal_shape),
            "scales": None if self.scales is None else list(self.scales),
            "modality": self.modality.name,
        }


FromData = Mapping[str, Callable[[DataSpec], Any]]
"""Arguments that a part of a model takes from the data: functions of the `DataSpec` by the name of the argument.

A part declares them as the class attribute ``from_data`` and stores each value in the attribute of the same name. If a config
sets such an argument to None, the command line fills it in; other values are compared with the data at set-up, except for
arguments in the class attribute ``recorded``, which only record the data of training.
"""


def declared(part: Any) -> FromData:
    """Return ``from_data`` of a part or its class, empty if there is none."""
    found: FromData = getattr(part, "from_data", None) or {}
    return found


def checked(part: Any) -> FromData:
    """Return the entries of `declared` that are compared with the data at set-up."""
    recorded = getattr(part, "recorded", ())
    return {name: value for name, value in declared(part).items() if name not in recorded}


def coord_dim(spec: DataSpec) -> int:
    """Return the number of coordinate dimensions, for ``from_data``."""
    return spec.domain.coord_dim


def value_dim(spec: DataSpec) -> int:
    """Return the number of channels of a value, for ``from_data``."""
    return spec.value_dim


def training_instances(spec: DataSpec) -> int | None:
    """Return the number of training instances, for ``from_data``."""
    return spec.num_instances


def sample_rate(spec: DataSpec) -> int | None:
    """Return the samples per second of audio, for ``from_data``; None for other signals."""
    return spec.sample_rate


def signal_shape(spec: DataSpec) -> tuple[int, ...]:
    """Return the shape of the signal, for ``from_data``."""
    return spec.signal_shape


def open_signal_shape(spec: DataSpec) -> tuple[int, ...]:
    """Return the channels of the signal and -1 for every axis, for ``from_data`` of parts that take signals of any size."""
    return spec.signal_shape[0], *(-1,) * (len(spec.signal_shape) - 1)


def open_views(spec: DataSpec) -> tuple[int, ...]:
    """Return ``(-1, 3, -1, -1)`` for ``from_data`` of parts that take any number of posed views of any size."""
    return -1, spec.signal_shape[1], -1, -1


def views(spec: DataSpec) -> int:
    """Return the number of support views, for ``from_data``."""
    return spec.signal_shape[0]


def open_point_set(spec: DataSpec) -> tuple[int, ...]:
    """Return -1 and the numbers per point of a point set, for ``from_data`` of parts that take any number of points."""
    return -1, *spec.signal_shape[1:]


def largest_scale(spec: DataSpec) -> float | None:
    """Return the largest scale of super-resolution in training, for ``from_data``; None for other tasks."""
    return None if spec.scales is None else spec.scales[1]


def ranges(spec: DataSpec) -> tuple[tuple[float, float], ...] | None:
    """Return the lower and upper bound of every coordinate of a grid, for ``from_data``; None for other domains."""
    return getattr(spec.domain, "ranges", None)


def agrees(given: Any, stated: Any) -> bool:
    """Return whether an argument is compatible with the data; an axis of -1 and None are compatible with everything.

    Example:
        >>> agrees((3, -1, 8), (3, 16, 8)), agrees((3, 16), (3, 16, 8)), agrees(2.0, 2), agrees(2, None)
        (True, False, True, True)
    """
    if given is None or stated is None:
        return True
    if not isinstance(stated, Sequence):
        return bool(given == stated)
    return len(given) == len(stated) and all(own in (-1, size) for own, size in zip(given, stated, strict=True))
