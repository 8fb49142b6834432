"""Sizes of the instance codes of a test, and the metrics of linear codes of the same size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from composers.evaluation import Evaluation
from composers.metrics import InstanceMetric
from composers.rendering import Reconstruction
from datamodules.batch import CoordinateBatch, unpadded_shape
from datamodules.code_size import CodeSize
from datamodules.spec import DataSpec
from modalities.linear import LinearBaseline, signals_of


class CodeRow(NamedTuple):
    """Size of the code of an instance, and the metrics of a linear code of the same size.

    Attributes:
        size: Size of the code.
        linear: Label of the linear code; empty if the modality has none.
        metrics: Metrics of its reconstruction by key; empty if there is no linear code.
    """

    size: CodeSize
    linear: str = ""
    metrics: Mapping[str, float] = {}


def size_of_instance(spec: DataSpec | None, batch: CoordinateBatch, index: int, numbers: int) -> CodeSize:
    """Return the size of the code of an instance; without a rate if the batch has no complete signals.

    The rate is that of the observed signal, which has fewer samples than the query in super-resolution.

    Args:
        spec: Specification of the data; None if unknown.
        batch: Batch of the instance.
        index: Index of the instance in the batch.
        numbers: Number of latents.
    """
    if spec is None or batch.shape is None:
        return CodeSize(numbers)
    observed = observed_shape(batch)
    shape = unpadded_shape(batch, index) if observed is None or observed == batch.shape else observed
    return spec.modality.code_size(numbers, shape, spec.sample_rate)


def observed_shape(batch: CoordinateBatch) -> tuple[int, ...] | None:
    """Return the shape of the observed signals of a batch on a grid with as many axes as ``batch.shape``, else None.

    The samples of a grid are as many as the signal has, and those of a point set are as many as its points.
    """
    signal, samples = batch.observation.signal, batch.observation.samples
    if not isinstance(signal, Tensor) or batch.shape is None or signal.dim() - 2 != len(batch.shape):
        return None
    shape = tuple(signal.shape[2:])
    return shape if samples is None or samples.coords.shape[-2] == math.prod(shape) else None


def code_rows(
    evaluation: Evaluation,
    batch: CoordinateBatch,
    metrics: Mapping[str, InstanceMetric],
    spec: DataSpec | None = None,
    baseline: LinearBaseline | None = None,
) -> dict[str, CodeRow]:
    """Return the sizes of the codes of a batch, and the metrics of linear codes of the same size, by instance.

    Args:
        evaluation: Evaluation of the batch.
        batch: The batch.
        metrics: Metrics by key.
        spec: Specification of the data; None if unknown.
        baseline: Fits the linear codes; None if there are none.
    """
    numbers = sum(latent[0].numel() for latent in evaluation["latents"][0].values())
    rows = {name: CodeRow(size_of_instance(spec, batch, index, numbers)) for index, name in enumerate(batch.names)}
    if baseline is None or batch.shape is None or batch.query.values is None:
        return rows
    linear = [baseline.reconstruct(signal, numbers) for signal in signals_of(batch)]
    measured = _measured(batch, [signal for _, signal in linear], metrics)
    for index, (name, row) in enumerate(rows.items()):
        label, signal = linear[index]
        known = {} if signal is None else {key: values[index] for key, values in measured.items()}
        rows[name] = row._replace(linear=label, metrics=known)
    return rows


def _measured(
    batch: CoordinateBatch, signals: Sequence[Tensor | None], metrics: Mapping[str, InstanceMetric]
) -> dict[str, list[float]]:
    """Return the metrics of reconstructed signals ``(C, *shape)`` of a batch; those of None have no meaning."""
    if batch.shape is None or not any(signal is not None for signal in signals):
        return {}
    values = batch.query.measured.new_zeros(len(signals), *batch.shape, batch.query.measured.shape[-1])
    for place, signal in zip(values, signals, strict=True):
        if signal is not None:  # without the padding at the end of the last axis
            place[..., : signal.shape[-1], :] = signal.movedim(0, -1)
    reconstruction = Reconstruction.of_values(values.flatten(1, -2))
    with torch.autocast(values.device.type, enabled=False):
        return {
            key: metric.measure(reconstruction, batch.query, batch.shape).tolist() for key, metric in metrics.items()
        }
