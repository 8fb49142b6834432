"""Batches of signals and coordinates, as NamedTuples, which Lightning collates and moves between devices.

Shape letters, used in all files: ``B`` instances, ``N`` query coordinates, ``D`` coordinate dimensions, ``C`` channels,
``V`` views, ``S`` samples per ray, ``T`` tokens, ``E`` embedding, ``R`` rank, ``I``/``O`` inputs/outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from datamodules.domain import Domain


class Samples(NamedTuple):
    """Coordinates and the values measured there.

    Attributes:
        coords: ``(N, D)`` if all instances share them, else ``(B, N, D)``.
        values: ``(B, N, C)``, or None if there are no measurements.
        mask: ``(B, N)`` booleans, False for padding, which losses and metrics ignore; None if there is no padding.
        normals: ``(B, N, D)``, unit normals where a sample lies on a surface, zeros elsewhere; None if there are no surfaces.
    """

    coords: Tensor
    values: Tensor | None = None
    mask: Tensor | None = None
    normals: Tensor | None = None

    @property
    def measured(self) -> Tensor:
        """Return ``values``.

        Raises:
            ValueError: If there are no measurements.
        """
        if self.values is None:
            raise ValueError("The samples have no values to compare with: pass Samples(coords, values).")
        return self.values

    def of_instance(self, index: int) -> Samples:
        """Return the samples of an instance as a batch of one, on the CPU."""
        coords = self.coords if self.coords.dim() == 2 else self.coords[index : index + 1]
        others = (None if part is None else part[index : index + 1].cpu() for part in self[1:])
        return Samples(coords.cpu(), *others)


class Views(NamedTuple):
    """Posed images of scenes.

    Attributes:
        images: ``(B, V, 3, H, W)`` in [0, 1].
        poses: ``(B, V, 3, 4)`` camera-to-world: axes right, up, backwards in columns, then the position.
        intrinsics: ``(B, V, 4)`` focal lengths and principal point in pixels, ``fx, fy, cx, cy``.
    """

    images: Tensor
    poses: Tensor
    intrinsics: Tensor


class Observation(NamedTuple):
    """The input of a composer; unused parts are None.

    Attributes:
        signal: Input of encoders: ``(B, C, *shape)``, a point set ``(B, P, C)``, or `Views`.
        samples: Input of inner loops and refinement: the pixels of an image, or the rays of the support views.
        index: ``(B,)``, indices of the instances in the training set, for codes learned per instance; None outside training.
    """

    signal: Tensor | Views | None = None
    samples: Samples | None = None
    index: Tensor | None = None  # type: ignore[assignment]

    @property
    def reference(self) -> Tensor:
        """Return a tensor of the observation, for the number of instances, the device and the precision.

        Raises:
            ValueError: If nothing was observed.
        """
        if self.samples is not None and self.samples.values is not None:
            return self.samples.values
        if self.signal is not None:
            return self.signal if isinstance(self.signal, Tensor) else self.signal.images
        raise ValueError("The observation is empty: pass a signal, or samples with values.")

    @property
    def num_instances(self) -> int:
        """Return ``B``."""
        return len(self.reference)


class Piece(NamedTuple):
    """The position of an instance in a larger signal: a tile of it, or all of it at another resolution.

    Attributes:
        name: Name of the signal; its tiles are consecutive in the data.
        shape: Shape of the signal in samples.
        box: Start and stop of the instance along every axis.
    """

    name: str
    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]


class PosedImages(NamedTuple):
    """A raw item of a data set of scenes, or a collated batch of them: support views, then query views.

    Attributes:
        images: ``(V, 3, H, W)`` uint8, support and query together.
        poses: ``(V, 3, 4)`` camera-to-world: axes right, up, backwards in columns, then the position.
        intrinsics: ``(V, 4)`` focal lengths and principal point in pixels, ``fx, fy, cx, cy``.
        name: Name of the item in tables and files.
        seed: Seed of the random numbers of this item in this epoch; set by the loader.
        instance: Index of the item in the training set; set by the loader, -1 outside training.
    """

    images: Tensor
    poses: Tensor
    intrinsics: Tensor
    name: str
    seed: int = 0
    instance: int = -1


class CoordinateBatch(NamedTuple):
    """A batch: the input of a composer, and the samples to reconstruct.

    Attributes:
        observation: The input of the composer.
        query: The samples to reconstruct.
        shape: Shape of an image, recording or views that ``N`` unflattens to; None for a subset of the samples.
        names: Names of the instances in tables and files.
        pieces: Positions of the instances in larger signals; None if every instance is a complete signal.
    """

    observation: Observation
    query: Samples
    shape: tuple[int, ...] | None
    names: list[str]
    pieces: list[Piece] | None = None


class Signal(NamedTuple):
    """A raw item of a data set, or a collated batch of them.

    Attributes:
        values: ``(C, *shape)``, uint8 (0 to 255 represent [0, 1]) or floating point.
        name: Name of the item in tables and files.
        seed: Seed of the random numbers of this item in this epoch; set by the loader.
        length: Number of measured samples along the last axis; the rest is padding, which losses and metrics ignore. -1 if
            there is no padding.
        instance: Index of the item in the training set; set by the loader, -1 outside training.
    """

    values: Tensor
    name: str
    seed: int = 0
    length: int = -1
    instance: int = -1


class Instance(NamedTuple):
    """An instance and its reconstructions, on the CPU.

    Attributes:
        name: Name of the instance.
        signal: Input of the encoder: ``(C, *shape)``, `Views` of ``images (V, 3, H, W)``, or None.
        query: Samples to reconstruct: ``coords (N, D)``, ``values (N, C)`` or None, ``mask (N,)`` or None.
        shape: Shape that ``N`` unflattens to.
        domain: Domain of ``query``.
        values: Reconstructions ``(N, C)`` by number of refinement steps; 0 is the prediction.
    """

    name: str
    signal: Tensor | Views | None
    query: Samples
    shape: tuple[int, ...]
    domain: Domain
    values: Mapping[int, Tensor] = {}


class Cell(NamedTuple):
    """A labelled cell of a figure.

    Attributes:
        label: Title of the cell.
        values: ``(N, C)``.
        shape: Shape that ``N`` unflattens to.
        domain: Domain of the values.
    """

    label: str
    values: Tensor
    shape: tuple[int, ...]
    domain: Domain


def instance_of(batch: CoordinateBatch, index: int, domain: Domain, values: Mapping[int, Tensor]) -> Instance:
    """Return one instance of a batch of complete signals.

    Args:
        batch: The batch, on any device.
        index: Index of the instance in the batch.
        domain: Domain of the signals.
        values: Reconstructions of the batch, ``(B, N, C)`` by number of refinement steps.

    Raises:
        ValueError: If the batch contains subsets of the samples.
    """
    if batch.shape is None:
        raise ValueError(
            "The batch contains subsets of the samples, not complete signals: use a batch without coordinate_subset."
        )
    observation = observation_of(batch, [index])
    query = batch.query
    coords = query.coords if query.coords.dim() == 2 else query.coords[index]
    true, mask, normals = (
        None if part is None else part[index].cpu() for part in (query.values, query.mask, query.normals)
    )
    samples = Samples(coords.cpu(), None if true is None else true.float(), mask, normals)
    reconstructions = {step: batched[index].float().cpu() for step, batched in values.items()}
    return Instance(batch.names[index], _first(observation.signal), samples, batch.shape, domain, reconstructions)


def unpadded_shape(batch: CoordinateBatch, index: int) -> tuple[int, ...]:
    """Return the shape of an instance of a batch of complete signals without the padding at the end of its last axis.

    Padding is masked along all other axes; samples that are masked elsewhere belong to the instance.
    """
    assert batch.shape is not None
    if batch.query.mask is None:
        return batch.shape
    measured = batch.query.mask[index].view(-1, batch.shape[-1]).any(0).nonzero()
    return (*batch.shape[:-1], int(measured.max()) + 1 if len(measured) else 0)


def observation_of(batch: CoordinateBatch, indices: Sequence[int]) -> Observation:
    """Return the observation of some instances of a batch, on the device of the batch."""
    places, samples = list(indices), batch.observation.samples
    signal: Tensor | Views | None = batch.observation.signal
    if isinstance(signal, Tensor):
        signal = signal[places]
    elif signal is not None:
        signal = Views(*(part[places] for part in signal))
    index = None if batch.observation.index is None else batch.observation.index[places]
    if samples is None:
        return Observation(signal, index=index)
    coords = samples.coords if samples.coords.dim() == 2 else samples.coords[places]
    parts = (None if part is None else part[places] for part in (samples.values, samples.mask, samples.normals))
    return Observation(signal, Samples(coords, *parts), index)


def _first(signal: Tensor | Views | None) -> Tensor | Views | None:
    """Return the first instance of a signal without the batch dimension, on the CPU."""
    if signal is None:
        return None
    if isinstance(signal, Tensor):
        return signal[0].float().cpu()
    return Views(*(part[0].float().cpu() for part in signal))
