"""One instance of a batch beside what a model makes of it, for whoever draws or writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from datamodules.batch import CoordinateBatch, Observation, Samples, Views
from datamodules.domain import Domain


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
    if samples is None:
        return Observation(signal)
    coords = samples.coords if samples.coords.dim() == 2 else samples.coords[places]
    true, mask = (None if part is None else part[places] for part in (samples.values, samples.mask))
    return Observation(signal, Samples(coords, true, mask))


def _first(signal: Tensor | Views | None) -> Tensor | Views | None:
    """Return the only instance of a signal, without its batch dimension, on the CPU."""
    if signal is None:
        return None
    if isinstance(signal, Tensor):
        return signal[0].float().cpu()
    return Views(*(part[0].float().cpu() for part in signal))
