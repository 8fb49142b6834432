"""From a signal to tokens of raw numbers. Tokenizers own no parameter: embedding and positions are the transformer's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.batch import Views
from datamodules.spec import FromData, signal_shape


class Tokenizer(nn.Module, ABC):
    """Cuts a signal into tokens.

    Attributes:
        num_tokens: ``T``, how many tokens a signal gives.
        token_dim: Numbers in a token.
    """

    num_tokens: int
    token_dim: int

    @abstractmethod
    def forward(self, signal: Tensor | Views) -> Tensor:
        """Return tokens ``(B, T, token_dim)`` of a signal ``(B, C, *shape)``, or of posed views."""


class Patches(Tokenizer):
    """Non-overlapping patches of a signal with any number of axes, flattened channel by channel (paper section 3).

    Args:
        signal_shape: ``(C, *shape)`` of one signal; under the command line, the data module states it. If only the number
            of tokens is known, ``(C, -1, -1)`` with one -1 per axis, and ``num_tokens``.
        patch_size: Samples along every axis of a patch: pixels, or audio samples.
        padding: Zeros added at both ends of every axis.
        remainder: What happens to an axis that is no multiple of ``patch_size``: ``refuse`` it, or ``reflect`` its end.
        num_tokens: Only where ``signal_shape`` leaves the number open.

    Raises:
        ValueError: If sizes are missing or do not fit each other.
    """

    from_data: ClassVar[FromData] = {"signal_shape": signal_shape}

    def __init__(
        self,
        signal_shape: Sequence[int] | None = None,
        patch_size: int = 9,
        padding: int = 0,
        remainder: Literal["refuse", "reflect"] = "refuse",
        num_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if signal_shape is None or len(signal_shape) < 2:
            raise ValueError(
                f"signal_shape is {signal_shape}: under the command line the data module states it, "
                "in Python pass (channels, *shape), for a picture (3, height, width)."
            )
        if patch_size < 1 or padding < 0:
            raise ValueError(
                f"patch_size is {patch_size} and padding {padding}; they must be at least 1 and at least 0."
            )
        self.signal_shape = tuple(signal_shape)
        self.patch_size = patch_size
        self.padding = padding
        self.remainder = remainder
        self.token_dim = self.signal_shape[0] * patch_size ** (len(self.signal_shape) - 1)
        self.num_tokens = self._count(num_tokens)

    def _count(self, stated: int | None) -> int:
        """Return the number of tokens, from the shape or as stated."""
        shape = self.signal_shape[1:]
        if -1 in shape:
            if stated is None or stated < 1:
                raise ValueError(
                    f"num_tokens is {stated}, but signal_shape {self.signal_shape} leaves it open: state it, at least 1."
                )
            return stated
        count = math.prod(self._patches_along(size) for size in shape)
        if stated not in (None, count):
            raise ValueError(
                f"num_tokens is {stated}, but signal_shape {self.signal_shape} gives {count}: leave num_tokens out."
            )
        return count

    def _patches_along(self, size: int) -> int:
        """Return the number of patches along an axis of ``size`` samples."""
        padded = size + 2 * self.padding
        if padded % self.patch_size and self.remainder == "refuse":
            raise ValueError(
                f"patch_size {self.patch_size} with padding {self.padding} does not divide {size} samples "
                f"({padded} with padding) of signal_shape {self.signal_shape}: choose a patch_size that divides, a padding, "
                "or remainder: reflect."
            )
        if -padded % self.patch_size >= padded:
            raise ValueError(
                f"patch_size {self.patch_size} is at least twice the {padded} samples (with padding) of signal_shape "
                f"{self.signal_shape}, whose end is too short to mirror: choose a smaller patch_size."
            )
        return math.ceil(padded / self.patch_size)

    def forward(self, signal: Tensor | Views) -> Tensor:
        """Return patches ``(B, T, C * patch_size ** axes)`` of a signal ``(B, C, *shape)``, first axis slowest."""
        if isinstance(signal, Views):
            raise ValueError(
                "Patches cuts signals (B, C, *shape), and was given posed views: choose tokenizer ViewPatches."
            )
        sizes = signal.shape[2:]
        counts = [self._patches_along(size) for size in sizes]
        if (
            signal.dim() != len(self.signal_shape) + 1
            or any(stated not in (-1, size) for stated, size in zip(self.signal_shape, signal.shape[1:], strict=True))
            or math.prod(counts) != self.num_tokens
        ):
            raise ValueError(
                f"The signal has shape {tuple(signal.shape[1:])} and {math.prod(counts)} patches of {self.patch_size}; "
                f"this model takes {self.signal_shape} with {self.num_tokens}: resize or crop it."
            )
        padded = functional.pad(signal, [self.padding] * (2 * len(sizes)))
        ends = [count * self.patch_size - size for count, size in zip(counts, padded.shape[2:], strict=True)]
        if any(ends):
            padded = functional.pad(padded, [number for end in reversed(ends) for number in (0, end)], mode="reflect")
        return cut(padded, counts, self.patch_size)


def cut(signal: Tensor, counts: Sequence[int], patch_size: int) -> Tensor:
    """Cut ``(B, C, *shape)`` into ``(B, T, C * patch_size ** axes)``, ``counts`` patches along the axes."""
    split = [number for count in counts for number in (count, patch_size)]
    blocks = signal.reshape(*signal.shape[:2], *split)  # (B, C, n_1, p, n_2, p, ...)
    axes = range(len(counts))
    order = [0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes)]
    return torch.flatten(blocks.permute(order).flatten(1, len(counts)), 2)
