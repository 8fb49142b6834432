"""What travels from data to composers, as NamedTuples that Lightning moves between devices untouched.

Shape letters, here and everywhere: ``B`` instances, ``N`` query coordinates, ``D`` coordinate dimensions, ``C`` channels,
``V`` views, ``S`` samples per ray, ``T`` tokens, ``E`` embedding, ``R`` rank, ``I``/``O`` inputs/outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from datamodules.domain import Domain


class Samples(NamedTuple):
    """Places and what was measured there.

    Attributes:
        coords: ``(N, D)`` when all instances share them, else ``(B, N, D)``.
        values: ``(B, N, C)``, or None where nothing was measured.
        mask: ``(B, N)`` booleans, False where a sample is padding and counts nowhere; None if all count.
    """

    coords: Tensor
    values: Tensor | None = None
    mask: Tensor | None = None


class Views(NamedTuple):
    """Posed images of scenes.

    Attributes:
        images: ``(B, V, 3, H, W)`` in [0, 1].
        poses: ``(B, V, 3, 4)`` camera-to-world: axes right, up, backwards in columns, then the position.
        focals: ``(B, V, 2)`` focal lengths in pixels.
    """

    images: Tensor
    poses: Tensor
    focals: Tensor


class Observation(NamedTuple):
    """All that a composer may look at; either part may be None.

    Attributes:
        signal: For tokenizers: ``(B, C, *shape)``, a point set ``(B, P, C)``, or `Views`.
        samples: For inner loops and refinement: the pixels of the instance, the rays of the support views.
        index: ``(B,)``, the training instance, for codes learned per instance; None outside training.
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
    """Where an instance lies in a larger signal, of which it is one tile, or the whole in another size.

    Attributes:
        name: Of the signal; its tiles follow one another in the order of the data.
        shape: Extents of the signal, in its own samples.
        box: Start and stop of the instance along every axis.
    """

    name: str
    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]


class PosedImages(NamedTuple):
    """One raw item of a data set of scenes, or a collated batch of them: support views first, query views after them.

    Attributes:
        images: ``(V, 3, H, W)`` uint8, support and query together.
        poses: ``(V, 3, 4)`` camera-to-world: axes right, up, backwards in columns, then the position.
        focals: ``(V, 2)`` focal lengths in pixels, along columns and rows.
        name: Names the item in tables and files.
        seed: Where the random draws of this item in this epoch come from; set by the loader.
        instance: Index of the item in the training set; set by the loader, -1 outside training.
    """

    images: Tensor
    poses: Tensor
    focals: Tensor
    name: str
    seed: int = 0
    instance: int = -1


class CoordinateBatch(NamedTuple):
    """One batch: what may be looked at, and where the loss is taken.

    Attributes:
        observation: All that a composer may look at.
        query: The samples whose values are to be reproduced.
        shape: How ``N`` unflattens into an image, recording or views; None when subsampled.
        names: One string per instance, for tables, files and seeded draws.
        pieces: Of which signal an instance is which part; None where each is a signal of its own.
    """

    observation: Observation
    query: Samples
    shape: tuple[int, ...] | None
    names: list[str]
    pieces: list[Piece] | None = None


class Signal(NamedTuple):
    """One raw item of a data set, or a collated batch of them, before coordinates are made.

    Attributes:
        values: ``(C, *shape)``: uint8 stands for [0, 1] in 255 steps, floating point for itself.
        name: Names the item in tables and files.
        seed: Where the random draws of this item in this epoch come from; set by the loader.
        length: Samples along the last axis that were measured, from its start; what follows is padding and counts nowhere.
            -1 for all.
        instance: Index of the item in the training set; set by the loader, -1 outside training.
    """

    values: Tensor
    name: str
    seed: int = 0
    length: int = -1
    instance: int = -1


class Instance(NamedTuple):
    """One instance, on the CPU, and its reconstructions.

    Attributes:
        name: Of the instance.
        signal: What an encoder saw: ``(C, *shape)``, `Views` of ``images (V, 3, H, W)``, or None.
        query: What is to be reproduced: ``coords (N, D)``, ``values (N, C)`` or None, ``mask (N,)`` or None.
        shape: How ``N`` unflattens.
        domain: Where the samples of ``query`` lie.
        values: Reconstructions ``(N, C)`` by number of refinement steps; 0 is the prediction.
    """

    name: str
    signal: Tensor | Views | None
    query: Samples
    shape: tuple[int, ...]
    domain: Domain
    values: Mapping[int, Tensor] = {}


class Cell(NamedTuple):
    """One labelled cell of a figure.

    Attributes:
        label: What stands above it.
        values: ``(N, C)``.
        shape: How ``N`` unflattens.
        domain: Where the samples lie.
    """

    label: str
    values: Tensor
    shape: tuple[int, ...]
    domain: Domain


def instance_of(batch: CoordinateBatch, index: int, domain: Domain, values: Mapping[int, Tensor]) -> Instance:
    """Return one instance of a batch of whole signals.

    Args:
        batch: On any device.
        index: Of the instance.
        domain: Of the signals.
        values: Reconstructions of the batch, ``(B, N, C)`` by number of refinement steps.

    Raises:
        ValueError: If the batch holds no whole signals.
    """
    if batch.shape is None:
        raise ValueError("This batch holds some samples of every signal: an instance needs whole signals.")
    observation = observation_of(batch, [index])
    query = batch.query
    coords = query.coords if query.coords.dim() == 2 else query.coords[index]
    true, mask = (None if part is None else part[index] for part in (query.values, query.mask))
    samples = Samples(coords.cpu(), None if true is None else true.float().cpu(), None if mask is None else mask.cpu())
    reconstructions = {step: batched[index].float().cpu() for step, batched in values.items()}
    return Instance(batch.names[index], _first(observation.signal), samples, batch.shape, domain, reconstructions)


def observation_of(batch: CoordinateBatch, indices: Sequence[int]) -> Observation:
    """Return what may be looked at of some instances of a batch, where the batch lies."""
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
    true, mask = (None if part is None else part[places] for part in (samples.values, samples.mask))
    return Observation(signal, Samples(coords, true, mask), index)


def _first(signal: Tensor | Views | None) -> Tensor | Views | None:
    """Return the only instance of a signal, without its batch dimension, on the CPU."""
    if signal is None:
        return None
    if isinstance(signal, Tensor):
        return signal[0].float().cpu()
    return Views(*(part[0].float().cpu() for part in signal))
