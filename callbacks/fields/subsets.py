"""Reconstruction from a random subset of the samples of a signal, against interpolation of the subset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from callbacks.fields.scales import FieldItem, NotMeasurableError, psnr, rendered_grid, samples_of
from composers.base import Composer
from composers.inference.gradient_steps import subset_of
from datamodules.batch import Observation, Samples
from datamodules.domain import Domain, subset
from datamodules.randomness import generator_at, global_seed

Fill = Literal["linear", "nearest", "mean"]


def subset_measures(
    composer: Composer,
    item: FieldItem,
    domain: Domain,
    fraction: float,
    fill: Fill = "linear",
    max_memory: float = 500.0,
) -> dict[str, float]:
    """Reconstruct what a model observes of an item from a random subset of its samples.

    Missing samples are filled, because encoders need a grid. The latents predicted from this signal are then refined on the
    subset alone, with the refinement of the model. An inner loop sees the subset only. The subset depends on the seed of the
    run, the name of the item and the fraction.

    Args:
        composer: The model, with an inner loop or refinement steps.
        item: The item.
        domain: Domain of the item.
        fraction: Part of the samples that is known.
        fill: How missing samples are filled.
        max_memory: Memory in MB for rendering, besides the model and the result.

    Returns:
        The PSNR in dB over all samples, and over those outside the subset (``..._unseen``), of ``field``, after refinement;
        ``start``, before it; and of ``linear`` and ``nearest``, interpolation of the subset.

    Raises:
        NotMeasurableError: If no sample is outside the subset, or gradient steps minimise a loss of whole signals.
    """
    for steps in (composer.inner, composer.refinement):
        if steps is not None and steps.steps and (ordered := (steps.loss or composer.loss).needs_order):
            raise NotMeasurableError(f"{', '.join(ordered)} compares whole signals: give refinement a loss of its own")
    signal, shape = item.observed, tuple(item.observed.shape[2:])
    measured = torch.ones(signal[0, 0].numel(), dtype=torch.bool) if item.observed_mask is None else item.observed_mask
    known = known_samples(item.name, measured.cpu(), fraction)
    unseen = measured.cpu().clone()
    unseen[known] = False
    if not unseen.any():
        raise NotMeasurableError(f"all of its samples are among {fraction:.0%} of them")
    estimates = {method: interpolated(signal, known, method) for method in ("linear", "nearest", "mean")}
    filled = torch.where(measured.to(signal.device).view(shape), estimates[fill].to(signal), signal)
    subset_samples = subset_of(samples_of(signal, domain), known.to(signal.device))
    reconstructions = _reconstructions(composer, filled, subset_samples, domain, max_memory)
    compared = reconstructions | {method: estimates[method] for method in ("linear", "nearest")}
    row: dict[str, float] = {}
    for name, values in compared.items():
        row[name] = psnr(values, signal, item.observed_mask)
        row[f"{name}_unseen"] = psnr(values, signal, unseen)
    return row


def _reconstructions(
    composer: Composer, filled: Tensor, samples: Samples, domain: Domain, max_memory: float
) -> dict[str, Tensor]:
    """Return the values ``(1, C, *shape)`` of the refined and of the predicted latents."""
    observation = Observation(filled, samples)
    layout = composer.layout(observation)
    latents = composer.refine(composer.encode(observation), samples, layout=layout)
    return {
        name: rendered_grid(
            composer, composer.reconstruction(latents[step], layout), domain, filled.shape[2:], max_memory
        )
        for name, step in (("field", composer.refinement.steps), ("start", 0))
    }


def known_samples(name: str, measured: Tensor, fraction: float) -> Tensor:
    """Return the indices of a random subset of the measured samples ``(N,)`` of an item, at least one.

    Example:
        >>> known_samples("a", torch.tensor([True, False, True, True]), 1.0).tolist()
        [0, 2, 3]
    """
    places = measured.nonzero().flatten()
    generator = generator_at(global_seed(), "known samples", name, repr(float(fraction)))
    return places[subset(len(places), float(fraction), generator)]


def interpolated(signal: Tensor, known: Tensor, method: Fill) -> Tensor:
    """Return a signal interpolated from some of its samples.

    Args:
        signal: ``(1, C, *shape)``, of which only the known samples are read.
        known: ``(K,)`` indices of known samples.
        method: ``linear`` on a triangulation of the known samples, outside of which the nearest one is taken; ``nearest``; or
            ``mean``, the mean of the known samples.

    Returns:
        ``(1, C, *shape)`` float32 on the CPU, equal to the signal at known samples.
    """
    shape = tuple(signal.shape[2:])
    values = signal[0].flatten(1).mT.float().cpu()[known]  # (K, C)
    if method == "mean":
        estimate = values.mean(0).expand(*shape, -1).clone()
    else:
        points = np.stack(np.unravel_index(known.numpy(), shape), axis=-1)
        estimate = torch.from_numpy(_from_scattered(points, values.numpy(), shape, method)).float()
    estimate.view(-1, values.shape[1])[known] = values
    return estimate.movedim(-1, 0)[None]


def _from_scattered(
    points: np.ndarray, values: np.ndarray, shape: Sequence[int], method: Literal["linear", "nearest"]
) -> np.ndarray:
    """Return values ``(*shape, C)`` on a grid from values ``(K, C)`` at points ``(K, axes)``."""
    from scipy.interpolate import griddata  # here, because it takes half a second to import
    from scipy.spatial import QhullError

    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    nearest: np.ndarray = griddata(points, values, grid, method="nearest")
    if method == "nearest" or len(points) <= len(shape):  # a simplex has more points than axes
        return nearest.reshape(*shape, -1)
    try:
        linear = griddata(points, values, grid, method="linear")
    except QhullError:  # all points are on a line
        return nearest.reshape(*shape, -1)
    return np.where(np.isnan(linear), nearest, linear).reshape(*shape, -1)
