"""Linear codes of patches (PCA of images, KLT of audio), with which instance codes of the same size are compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple, Self

import torch
from torch import Tensor

from composers.evaluation import TRAINING_DATA_ERRORS
from composers.latents.linear_start import principal_components
from composers.networks.patch_grid import crop, cut, extend, grid_shape, join
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, unpadded_shape
from datamodules.spec import LinearPatch

AS_LARGE = ">= signal"  # for a code with at least as many numbers as its signal has values
UNAVAILABLE = "not available"
_MAX_ITEMS = 1024  # training items
_MAX_VALUES = 1 << 24  # values of all training items together
_MAX_PRODUCTS = 1 << 32  # of a covariance matrix
_MIN_PATCHES = 1024  # for large patches


class LinearCode(NamedTuple):
    """Principal components of patches, in float64.

    The shared mean and components are part of the model, not of a code, whose size is the number of components times the
    number of patches.

    Attributes:
        patch: Shape of a patch, with the axes of a signal.
        mean: Mean patch ``(P,)``, with ``P`` values in all channels.
        components: Orthonormal columns ``(P, K)`` in the order of decreasing variance.
    """

    patch: tuple[int, ...]
    mean: Tensor
    components: Tensor

    @classmethod
    def fit(cls, signals: Iterable[Tensor], patch: Sequence[int], components: int | None = None) -> Self:
        """Compute the principal components of the patches of training signals.

        Args:
            signals: Training signals ``(C, *shape)``, at least one. Incomplete patches at their ends are left out where a
                signal has complete ones.
            patch: Shape of a patch.
            components: Maximum number of components; as many as have a variance if None.
        """
        patches = torch.cat([to_patches(crop(signal.unsqueeze(0), patch)[0], patch) for signal in signals])
        limit = max(_MIN_PATCHES, _MAX_PRODUCTS // patches.shape[1] ** 2)
        if len(patches) > limit:
            patches = patches[torch.linspace(0, len(patches) - 1, limit).long()]
        principal = principal_components(patches)
        return cls(tuple(patch), principal.mean, principal.directions[:, :components])

    def reconstruct(self, signal: Tensor, components: int | None = None) -> Tensor:
        """Return a signal ``(C, *shape)`` in float64 from the projection of its patches onto the first components.

        A signal whose size is no multiple of the patch is extended by its last values, and the result is cropped.

        Args:
            signal: The signal.
            components: Number of components; all if None.
        """
        basis = self.components[:, :components]
        patches = to_patches(signal, self.patch).double() - self.mean
        return from_patches(patches @ basis @ basis.mT + self.mean, self.patch, signal.shape)


class LinearReconstruction(NamedTuple):
    """Reconstruction of a signal from a linear code of a given size.

    Attributes:
        label: Description of the code, or the reason why there is none, `AS_LARGE` or `UNAVAILABLE`.
        values: Signal ``(C, *shape)`` in float64; None if there is no code.
    """

    label: str
    values: Tensor | None


class LinearBaseline:
    """Linear codes with as many numbers as instance codes, fitted on training items when first needed.

    The training items are the same on every process. If there are none, `failure` is the reason.

    Args:
        data: Data module of the signals.
        patch: Patches of its modality.

    Attributes:
        failure: Reason why no linear code could be fitted; empty otherwise.
    """

    def __init__(self, data: CoordinateDataModule, patch: LinearPatch) -> None:
        self.data = data
        self.patch = patch
        self.failure = ""
        self._signals: list[Tensor] = []
        self._codes: dict[tuple[int, ...], LinearCode] = {}

    def reconstruct(self, signal: Tensor, numbers: int) -> LinearReconstruction:
        """Return the reconstruction of a signal from a linear code.

        The number of components is ``numbers`` over the number of patches, rounded down. If it is 0, the sides of the patch
        are doubled until it is not.

        Args:
            signal: Signal ``(C, *shape)`` without padding.
            numbers: Size of the code, at least 1.
        """
        if numbers >= signal.numel():
            return LinearReconstruction(AS_LARGE, None)
        shape = self.patch.shape
        while 0 < numbers < num_patches(signal.shape[1:], shape):
            shape = tuple(2 * side for side in shape)
        code = self._fitted(shape)
        if code is None:
            return LinearReconstruction(UNAVAILABLE, None)
        components = min(numbers // num_patches(signal.shape[1:], shape), code.components.shape[1])
        size = " x ".join(map(str, shape))
        label = f"{self.patch.method}, {components:,} per {size} {self.patch.unit}"
        return LinearReconstruction(label, code.reconstruct(signal, components))

    def _fitted(self, shape: tuple[int, ...]) -> LinearCode | None:
        """Return the linear code of patches of a shape; None if there are no training items."""
        if shape not in self._codes and not self.failure:
            try:
                self._signals = self._signals or training_signals(self.data)
                self._codes[shape] = LinearCode.fit(self._signals, shape)
            except TRAINING_DATA_ERRORS as error:
                self.failure = " ".join(str(error).split())
        return self._codes.get(shape)


def training_signals(data: CoordinateDataModule) -> list[Tensor]:
    """Return the first training signals ``(C, *shape)`` of a data module, shuffled and augmented, without padding.

    Raises:
        ValueError: If there are no training signals.
    """
    signals, values = list[Tensor](), 0
    for signal in chain.from_iterable(map(signals_of, data.training_batches(_MAX_ITEMS))):
        if signal.numel():
            signals.append(signal)
            values += signal.numel()
        if values >= _MAX_VALUES:
            break
    if not signals:
        raise ValueError(f"{type(data).__name__} has no training items.")
    return signals


def signals_of(batch: CoordinateBatch) -> list[Tensor]:
    """Return the signals ``(C, *shape)`` of a batch of complete signals without padding, on the CPU."""
    assert batch.shape is not None
    values = batch.query.measured.mT.unflatten(-1, batch.shape).cpu()
    return [signal[..., : unpadded_shape(batch, index)[-1]] for index, signal in enumerate(values)]


def num_patches(shape: Sequence[int], patch: Sequence[int]) -> int:
    """Return the number of patches that cover a signal.

    Example:
        >>> num_patches((64, 60), (8, 8)), num_patches((201,), (200,))
        (64, 2)
    """
    return math.prod(grid_shape(shape, patch))


def to_patches(signal: Tensor, patch: Sequence[int]) -> Tensor:
    """Return the patches ``(T, P)`` of a signal ``(C, *shape)``, extended by its last values to complete patches."""
    return cut(extend(signal.unsqueeze(0), patch), patch).flatten(0, -2)


def from_patches(patches: Tensor, patch: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the signal of a shape ``(C, *shape)`` that `to_patches` cut into patches ``(T, P)``."""
    sizes = shape[1:]
    cells = patches.unflatten(0, (1, *grid_shape(sizes, patch)))
    signal = join(cells, patch)[0]
    for axis, size in enumerate(sizes, start=1):
        signal = signal.narrow(axis, 0, size)
    return signal
