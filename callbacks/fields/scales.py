"""Test items as measures of fields use them: as a model observes them, and at a finer scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from composers.base import Composer
from composers.metrics import instance_mse, psnr_of_mse
from composers.rendering import Reconstruction
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.domain import Domain
from modalities.decoding import values_at
from modalities.resampling import Interpolation, downscaled


class NotMeasurableError(Exception):
    """A measure does not apply to an item; the message says why."""


class FieldItem(NamedTuple):
    """A test item on a regular grid, outside of inference mode.

    Attributes:
        name: Name of the item.
        observed: ``(1, C, *shape)``, what the model observes.
        observed_mask: ``(N,)`` booleans, False where ``observed`` is padding; None without padding.
        target: ``(1, C, *shape)``, what is to be reconstructed. The same as ``observed``, except in super-resolution.
        mask: The same as ``observed_mask``, of ``target``.
    """

    name: str
    observed: Tensor
    observed_mask: Tensor | None
    target: Tensor
    mask: Tensor | None


class ScalePair(NamedTuple):
    """A signal at two scales.

    Attributes:
        signal: ``(1, C, *shape)``, input of the model.
        original: ``(1, C, *shape)``, the same signal with ``factor`` times as many samples along every axis.
        signal_mask: ``(N,)`` booleans, False where ``signal`` is padding; None without padding.
        mask: The same of ``original``.
    """

    signal: Tensor
    original: Tensor
    signal_mask: Tensor | None = None
    mask: Tensor | None = None

    @property
    def factor(self) -> int:
        """Samples of the original per sample of the signal, along every axis.

        Raises:
            NotMeasurableError: If it is not the same integer along all axes.
        """
        signal, original = self.signal.shape[2:], self.original.shape[2:]
        factor = original[0] // signal[0]
        if any(size != factor * number for size, number in zip(original, signal, strict=True)):
            raise NotMeasurableError(
                f"its {sizes_of(original)} samples are no multiple of the {sizes_of(signal)} that the model observes"
            )
        return factor


def item_of(batch: CoordinateBatch, index: int) -> FieldItem:
    """Return an item of a test batch; call it outside of inference mode.

    Raises:
        NotMeasurableError: If the item is not complete, or has no signal on a grid.
    """
    signal, query, samples = batch.observation.signal, batch.query, batch.observation.samples
    if batch.shape is None or not isinstance(signal, Tensor):
        raise NotMeasurableError("it is no complete signal on a regular grid")
    target = query.measured[index].mT.unflatten(-1, batch.shape)[None]
    observed_mask, mask = (
        None if some is None or some.mask is None else some.mask[index].clone() for some in (samples, query)
    )
    return FieldItem(batch.names[index], signal[index : index + 1].clone(), observed_mask, target.clone(), mask)


def scale_pair(
    composer: Composer,
    data: CoordinateDataModule,
    item: FieldItem,
    factor: int,
    multiple: int,
    interpolation: Interpolation,
) -> ScalePair:
    """Return an original, and the signal downscaled from it as input of a model.

    A model of any size gets the source of the item (`CoordinateDataModule.source_signal`) or, without one, the item itself
    without its padding, cropped in the middle to multiples of ``factor * multiple`` samples. A model of one size gets a signal
    of this size, so the original has ``factor`` times as many samples: it is resized from the source, which must have as many.

    Args:
        composer: The model.
        data: Data module of the item.
        item: The item.
        factor: Samples of the original per sample of the input, along every axis.
        multiple: Factor of the sizes of inputs for models of any size, such as the patch size.
        interpolation: Filter for downscaling.

    Raises:
        NotMeasurableError: If there is no original of the required size.
    """
    sizes = _input_sizes(composer)
    if sizes is None:
        source = data.source_signal(item.name)
        original = _cropped(_unpadded(item) if source is None else _batched(source, item.target), factor * multiple)
        return ScalePair(downscaled(original, factor, interpolation), original)
    required = tuple(factor * size for size in sizes)
    source, mask = data.source_signal(item.name, required), None
    if source is not None:
        original = _batched(source, item.target)
    elif tuple(item.target.shape[2:]) == required:
        original, mask = item.target, item.mask
    else:
        raise NotMeasurableError(
            f"the model takes {sizes_of(sizes)} samples, so the original must have {sizes_of(required)}, and "
            f"{type(data).__name__} has fewer"
        )
    return ScalePair(downscaled(original, factor, interpolation), original, mask=mask)


def reconstruct(
    composer: Composer, signal: Tensor, domain: Domain, mask: Tensor | None = None, steps: int = 0
) -> Reconstruction:
    """Encode a signal ``(1, C, *shape)`` and return its reconstruction, whose values are empty.

    Args:
        composer: The model.
        signal: The signal, on the device of the model.
        domain: Domain of the signal, whatever its size.
        mask: ``(N,)`` booleans, False for padding.
        steps: Number of refinement steps.
    """
    observation = Observation(signal, samples_of(signal, domain, mask))
    latents, layout = composer.encode(observation), composer.layout(observation)
    if steps:
        assert observation.samples is not None
        refinement = composer.refinement.with_steps(steps)
        latents = composer.refine(latents, observation.samples, refinement, layout)[steps]
    return composer.reconstruction(latents, layout)


def samples_of(signal: Tensor, domain: Domain, mask: Tensor | None = None) -> Samples:
    """Return the samples of a signal ``(1, C, *shape)`` on the grid of a domain."""
    coords = domain.coords(signal.shape[2:], device=signal.device).to(signal.dtype)
    return Samples(coords, signal.flatten(2).mT, None if mask is None else mask[None])


def rendered_grid(
    composer: Composer, reconstruction: Reconstruction, domain: Domain, shape: Sequence[int], max_memory: float
) -> Tensor:
    """Return the values ``(1, C, *shape)`` of a reconstruction of one instance on a grid, on the CPU."""
    coords = domain.coords(shape).to(reconstruction.values.dtype)
    values: Tensor = values_at(composer, reconstruction, coords, max_memory).mT.unflatten(-1, tuple(shape))
    return values[None]


def psnr(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Return the PSNR in dB, at peak 1, of values ``(1, C, *shape)``, over the samples of a mask ``(N,)``."""
    values, true = (signal.flatten(2).mT.float().cpu() for signal in (prediction, target))
    samples = Samples(values.new_empty(0), true, None if mask is None else mask[None].cpu())
    return psnr_of_mse(instance_mse(values, samples)).item()


def sizes_of(shape: Sequence[int]) -> str:
    """Return sizes as text.

    Example:
        >>> sizes_of((400, 600))
        '400 x 600'
    """
    return " x ".join(f"{size:,}" for size in shape)


def _input_sizes(composer: Composer) -> tuple[int, ...] | None:
    """Return the sizes that the encoder of a model takes; None if it takes any, or if the model reads no signal."""
    stated = composer.start.signal_shape
    if composer.start.encoder is None or stated is None or -1 in stated:
        return None
    return stated[1:]


def _batched(source: Tensor, like: Tensor) -> Tensor:
    """Return a signal ``(C, *shape)`` as a batch of one on the device of another; uint8 levels are divided by 255."""
    values: Tensor = source.to(like)[None]
    if source.dtype == torch.uint8:
        values /= 255
    return values


def _unpadded(item: FieldItem) -> Tensor:
    """Return the target of an item without the padding at the end of its last axis."""
    if item.mask is None:
        return item.target
    measured = item.mask.view(-1, item.target.shape[-1]).any(0)
    return item.target[..., : int(measured.sum())]


def _cropped(signal: Tensor, multiple: int) -> Tensor:
    """Return the middle of a signal ``(1, C, *shape)`` whose sizes are the largest multiples of a number."""
    for axis, size in enumerate(signal.shape[2:], start=2):
        if size < multiple:
            raise NotMeasurableError(
                f"its original has {sizes_of(signal.shape[2:])} samples, fewer than {multiple} along an axis"
            )
        length = size - size % multiple
        signal = signal.narrow(axis, (size - length) // 2, length)
    return signal
