"""Resample signals on regular grids, with cell centres as in `datamodules.domain.Grid`.

The bicubic filter is that of Pillow (Keys 1981, a = -0.5; widened for downscaling, to avoid aliasing); the sinc filter is
windowed as in Lanczos resampling. At borders, weights are divided by their sum, also as in Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

Interpolation = Literal["bicubic", "sinc"]


class Kernel(NamedTuple):
    """An interpolation kernel.

    Attributes:
        weights: Function of distances in samples.
        support: Distance beyond which the weights are 0.
    """

    weights: Callable[[Tensor], Tensor]
    support: int


def downscaled(signal: Tensor, factor: int, interpolation: Interpolation) -> Tensor:
    """Return a signal with fewer samples along every axis, without aliasing.

    Args:
        signal: ``(B, C, *shape)``; every axis is a multiple of the factor.
        factor: Samples of the signal per sample of the result.
        interpolation: The filter.

    Returns:
        ``(B, C, *shape / factor)``, neither rounded nor clipped.

    Raises:
        ValueError: If an axis is not a multiple of the factor.

    Example:
        >>> downscaled(torch.ones(1, 1, 8, 4), 4, "bicubic").shape
        torch.Size([1, 1, 2, 1])
    """
    if any(size % factor for size in signal.shape[2:]):
        raise ValueError(
            f"A signal of shape {tuple(signal.shape[2:])} cannot be downscaled by {factor}: crop it to multiples of {factor}."
        )
    kernel = _KERNELS[interpolation]
    centre = (factor - 1) / 2  # of the samples that one sample of the result covers
    first = math.ceil(centre - kernel.support * factor)
    distances = torch.arange(first, factor - first, dtype=torch.float64) - centre
    weights = kernel.weights(distances / factor)
    return _along_all_axes(signal, weights[None], (-first, -first), factor)


def upscaled(signal: Tensor, factor: int, interpolation: Interpolation) -> Tensor:
    """Return a signal interpolated to more samples along every axis.

    Args:
        signal: ``(B, C, *shape)``.
        factor: Samples of the result per sample of the signal.
        interpolation: The filter.

    Returns:
        ``(B, C, *shape * factor)``, neither rounded nor clipped.

    Example:
        >>> upscaled(torch.ones(1, 1, 2), 3, "sinc").round(decimals=4).tolist()
        [[[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]]
    """
    return interpolated(signal, [factor * size for size in signal.shape[2:]], interpolation)


def interpolated(signal: Tensor, shape: Sequence[int], interpolation: Interpolation) -> Tensor:
    """Return a signal interpolated to another number of samples along every axis.

    The first and last cell of the result begin and end where those of the signal do, so that factors may be fractions, and
    differ between axes.

    Args:
        signal: ``(B, C, *shape)``.
        shape: Samples of the result along every axis, at least those of the signal.
        interpolation: The filter.

    Returns:
        ``(B, C, *shape)``, neither rounded nor clipped.

    Raises:
        ValueError: If the result has fewer samples along an axis, which requires `downscaled`.

    Example:
        >>> interpolated(torch.ones(1, 1, 2, 3), (3, 7), "bicubic").shape
        torch.Size([1, 1, 3, 7])
    """
    if len(shape) != signal.dim() - 2 or any(new < old for new, old in zip(shape, signal.shape[2:], strict=True)):
        raise ValueError(
            f"A signal of shape {tuple(signal.shape[2:])} cannot be interpolated to shape {tuple(shape)}: pass as many axes, "
            "with at least as many samples."
        )
    kernel = _KERNELS[interpolation]
    for axis, size in enumerate(shape, 2):
        signal = _interpolated_along(signal, axis, size, kernel)
    return signal


def _interpolated_along(signal: Tensor, axis: int, size: int, kernel: Kernel) -> Tensor:
    """Interpolate a signal to ``size`` samples along one axis; each is a weighted sum of the samples within the support."""
    old, device = signal.shape[axis], signal.device
    places = (torch.arange(size, dtype=torch.float64, device=device) + 0.5) * (old / size) - 0.5  # sample 0 at 0
    first = (places - kernel.support).ceil().long()
    sources = first[:, None] + torch.arange(2 * kernel.support, device=device)  # (size, K)
    weights = kernel.weights(sources - places[:, None]) * ((sources >= 0) & (sources < old))
    weights = (weights / weights.sum(1, keepdim=True)).to(signal.dtype)
    sources, along = sources.clamp(0, old - 1), (-1, *[1] * (signal.dim() - 1 - axis))
    result = signal.new_zeros([*signal.shape[:axis], size, *signal.shape[axis + 1 :]])
    for source, weight in zip(sources.mT, weights.mT, strict=True):
        result.addcmul_(signal.index_select(axis, source), weight.view(along))
    return result


def _along_all_axes(signal: Tensor, weights: Tensor, padding: tuple[int, int], stride: int) -> Tensor:
    """Filter a signal ``(B, C, *shape)`` along every axis with weights ``(P, K)``, which return ``P`` samples per stride."""
    for axis in range(2, signal.dim()):
        moved = signal.movedim(axis, -1)
        rows = pad(moved.reshape(-1, 1, moved.shape[-1]), padding)
        inside = pad(rows.new_ones(1, 1, moved.shape[-1]), padding)
        filters = weights.to(rows)[:, None]
        filtered = conv1d(rows, filters, stride=stride) / conv1d(inside, filters, stride=stride)  # (M, P, n)
        signal = filtered.mT.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
    return signal


def _cubic(distances: Tensor) -> Tensor:
    """Return the weights of Keys' cubic convolution with a = -0.5."""
    x = distances.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _windowed_sinc(distances: Tensor) -> Tensor:
    """Return the weights of a sinc filter with a Lanczos window of 16 samples."""
    return torch.where(distances.abs() < 16, torch.sinc(distances) * torch.sinc(distances / 16), 0.0)


_KERNELS: dict[str, Kernel] = {"bicubic": Kernel(_cubic, 2), "sinc": Kernel(_windowed_sinc, 16)}
