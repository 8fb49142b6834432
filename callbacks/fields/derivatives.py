"""Derivatives of a field, against differences of values on a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from callbacks.fields.scales import NotMeasurableError, ScalePair, rendered_grid, sizes_of
from composers.base import Composer
from composers.metrics import psnr_of_mse
from composers.rendering import Reconstruction
from datamodules.domain import Domain
from modalities.decoding import gradients_at
from modalities.resampling import Interpolation, upscaled


def derivative_measures(
    composer: Composer,
    pair: ScalePair,
    reconstruction: Reconstruction,
    domain: Domain,
    interpolation: Interpolation,
    max_memory: float = 500.0,
) -> dict[str, float]:
    """Compare the gradient of a field with central differences of the original, at its samples and summed over channels.

    Samples at borders, and those beside padding, are left out: they have no central difference.

    Args:
        composer: The model.
        pair: The signal and its original.
        reconstruction: Reconstruction of the signal, made outside of inference mode.
        domain: Domain of the signal.
        interpolation: Filter of the interpolation.
        max_memory: Memory in MB for rendering, besides the model and the result.

    Returns:
        ``field``, the signal-to-noise ratio in dB of the gradient by automatic differentiation: the energy of the true gradient
        over that of the error; named after the filter, the same for central differences of the reconstruction at the signal's
        samples, interpolated to those of the original; and ``correlation`` of the field's gradient with the true one.

    Raises:
        NotMeasurableError: If no sample has a central difference, or the original is constant.
    """
    shape = tuple(pair.original.shape[2:])
    if min(shape) < 3:
        raise NotMeasurableError(f"its {sizes_of(shape)} samples have no central differences")
    cell = torch.tensor(domain.cell(shape))
    moving = cell > 0  # positions, not sizes of cells
    inner = domain.coords(shape, [(1, size - 1) for size in shape]).to(reconstruction.values.dtype)
    gradients = gradients_at(composer, reconstruction, inner, max_memory).mT[moving]  # (axes, N)
    values = rendered_grid(composer, reconstruction, domain, pair.signal.shape[2:], max_memory)
    of_grid = central_differences(upscaled(values, pair.factor, interpolation), cell[moving]).flatten(1)
    true = central_differences(pair.original.float().cpu(), cell[moving]).flatten(1)
    known = _has_differences(pair.mask, shape)
    gradients, of_grid, true = (part[:, known] for part in (gradients, of_grid, true))
    if not true.any():
        raise NotMeasurableError("its original has no gradient")
    return {
        "field": gradient_snr(gradients, true),
        interpolation: gradient_snr(of_grid, true),
        "correlation": correlation(gradients, true),
    }


def central_differences(signal: Tensor, cell: Tensor) -> Tensor:
    """Return the central differences of a signal, summed over channels, without its borders.

    Args:
        signal: ``(1, C, *shape)``.
        cell: ``(axes,)``, distance of two samples along every axis.

    Returns:
        ``(axes, *inner)``, with two samples fewer along every axis than ``shape``.

    Example:
        >>> central_differences(torch.tensor([[[0.0, 1.0, 4.0, 9.0]]]), torch.tensor([0.5])).tolist()
        [[4.0, 8.0]]
    """
    below, above = _neighbours(signal.sum(1)[0])
    return (above - below) / (2 * cell.view(-1, *[1] * (signal.dim() - 2)))


def gradient_snr(actual: Tensor, true: Tensor) -> float:
    """Return the energy of a gradient over that of the error of another, in dB, at most 120.

    Example:
        >>> gradient_snr(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 0.3])) > 20
        True
    """
    actual, true = actual.double(), true.double()
    return psnr_of_mse((actual - true).square().sum() / true.square().sum()).item()


def correlation(first: Tensor, second: Tensor) -> float:
    """Return the Pearson correlation of two tensors over all elements; 0 if one is constant."""
    first, second = (part.double().flatten() - part.double().mean() for part in (first, second))
    norms = first.norm() * second.norm()
    return (first @ second / norms).item() if norms else 0.0


def _neighbours(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values before and after every inner sample along every axis, ``(axes, *inner)`` each."""
    sides = []
    for start in (0, 2):
        shifted = []
        for axis in range(values.dim()):
            part = values
            for other, size in enumerate(values.shape):
                part = part.narrow(other, start if other == axis else 1, size - 2)
            shifted.append(part)
        sides.append(torch.stack(shifted))
    return sides[0], sides[1]


def _has_differences(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Return for which inner samples, flattened, the sample and all neighbours are measured."""
    measured = torch.ones(shape, dtype=torch.bool) if mask is None else mask.cpu().view(shape)
    below, above = _neighbours(measured)
    inner = measured[tuple(slice(1, size - 1) for size in shape)]
    return (inner & below.all(0) & above.all(0)).flatten()
