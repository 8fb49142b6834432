"""Patches of a signal as tokens of raw values; the readout adds the embedding and positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional

from composers.encoders.encoder import Encoder
from composers.latents import Layout
from composers.networks.patch_grid import cut
from datamodules.batch import Views
from datamodules.spec import agrees


class Patches(Encoder):
    """Non-overlapping patches of a signal with any number of axes, flattened channel by channel (paper section 3).

    Args:
        signal_shape: ``(C, *shape)`` of one signal; set from the data module on the command line. If only the number of
            tokens is known, pass ``(C, -1, -1)``, with one -1 per axis, and ``num_tokens``.
        patch_size: Number of samples (pixels or audio samples) along every axis of a patch; or one number per axis.
        padding: Number of zeros added at both ends of every axis; or one number per axis.
        remainder: How to handle an axis whose padded size is not a multiple of ``patch_size``: ``refuse`` raises an error,
            ``reflect`` extends the axis by reflection at its end.
        num_tokens: Number of tokens; required only if ``signal_shape`` does not determine it.

    Raises:
        ValueError: If sizes are missing or inconsistent.
    """

    def __init__(
        self,
        signal_shape: Sequence[int] | None = None,
        patch_size: int | Sequence[int] = 9,
        padding: int | Sequence[int] = 0,
        remainder: Literal["refuse", "reflect"] = "refuse",
        num_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if signal_shape is None or len(signal_shape) < 2:
            raise ValueError(
                f"signal_shape is {signal_shape}: the command line sets it from the data module; "
                "in Python pass (channels, *shape), for an image (3, height, width)."
            )
        self.signal_shape: tuple[int, ...] = tuple(signal_shape)
        self.patch_size = _per_axis("patch_size", patch_size, len(signal_shape) - 1)
        self.padding = _per_axis("padding", padding, len(signal_shape) - 1)
        if min(self.patch_size) < 1 or min(self.padding) < 0:
            raise ValueError(
                f"patch_size is {patch_size} and padding {padding}; they must be at least 1 and at least 0."
            )
        self.remainder = remainder
        self.embed_dim = self.signal_shape[0] * math.prod(self.patch_size)
        self.patch_values = self.embed_dim
        self.num_tokens: int = self._count(num_tokens)

    def _count(self, num_tokens: int | None) -> int:
        """Return the number of tokens from the signal shape, or ``num_tokens`` if the shape does not determine it."""
        shape = self.signal_shape[1:]
        if -1 in shape:
            if num_tokens is None or num_tokens < 1:
                raise ValueError(
                    f"num_tokens is {num_tokens}, but signal_shape {self.signal_shape} does not determine it: "
                    "pass num_tokens, at least 1."
                )
            return num_tokens
        count = math.prod(self._counts(shape))
        if num_tokens not in (None, count):
            raise ValueError(
                f"num_tokens is {num_tokens}, but signal_shape {self.signal_shape} gives {count}: omit num_tokens."
            )
        return count

    def _counts(self, shape: Sequence[int]) -> list[int]:
        """Return the number of patches along every axis."""
        axes = zip(shape, self.patch_size, self.padding, strict=True)
        return [self._patches_along(size, patch, padding) for size, patch, padding in axes]

    def _patches_along(self, size: int, patch: int, padding: int) -> int:
        """Return the number of patches along an axis of ``size`` samples."""
        padded = size + 2 * padding
        if padded % patch and self.remainder == "refuse":
            raise ValueError(
                f"patch_size {patch} with padding {padding} does not divide {size} samples "
                f"({padded} with padding) of signal_shape {self.signal_shape}: choose a patch_size or padding that fits, "
                "or set remainder to reflect."
            )
        if -padded % patch >= padded:
            raise ValueError(
                f"patch_size {patch} is at least twice the {padded} samples (with padding) of signal_shape "
                f"{self.signal_shape}, which is too short to reflect: choose a smaller patch_size."
            )
        return math.ceil(padded / patch)

    def layout(self, signal: Tensor | Views) -> Layout:
        """Return the number of patches and of samples along every axis of a signal ``(B, C, *shape)``."""
        if isinstance(signal, Views):
            return Layout()
        return Layout(tuple(self._counts(signal.shape[2:])), tuple(signal.shape[2:]))

    def tokens(self, signal: Tensor | Views) -> Tensor:
        """Return patches ``(B, T, embed_dim)`` of a signal ``(B, C, *shape)``, first axis slowest."""
        if isinstance(signal, Views):
            raise ValueError(
                "Patches takes signals (B, C, *shape) but received posed views: choose encoder ViewPatches."
            )
        shape = tuple(signal.shape[1:])
        if len(shape) != len(self.signal_shape):
            raise ValueError(f"The signal has shape {shape}; this model takes {self.signal_shape}: resize or crop it.")
        counts = self._counts(shape[1:])
        if not agrees(self.signal_shape, shape) or math.prod(counts) != self.num_tokens:
            raise ValueError(
                f"The signal has shape {shape} and {math.prod(counts)} patches of {_format_size(self.patch_size)}; "
                f"this model takes {self.signal_shape} with {self.num_tokens} patches: resize or crop it."
            )
        padded = functional.pad(signal, [number for side in reversed(self.padding) for number in (side, side)])
        axes = zip(counts, self.patch_size, padded.shape[2:], strict=True)
        ends = [count * patch - size for count, patch, size in axes]
        if any(ends):
            padded = functional.pad(padded, [number for end in reversed(ends) for number in (0, end)], mode="reflect")
        return cut(padded, self.patch_size).flatten(1, -2)


def _per_axis(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return one number per axis; an integer is repeated for all axes."""
    numbers = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(numbers) != axes:
        raise ValueError(
            f"{name} is {list(numbers)}, and the signal has {axes} axes: give one number, or one per axis."
        )
    return numbers


def _format_size(patch_size: Sequence[int]) -> str:
    """Format a patch size for an error message, as one number if all axes are equal."""
    return str(patch_size[0]) if len(set(patch_size)) == 1 else " x ".join(map(str, patch_size))
