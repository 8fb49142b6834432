"""Base class of encoders, which turn a signal into features: tokens with an optional grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

from torch import Tensor, nn

from composers.latents import Layout
from datamodules.batch import Views
from datamodules.spec import FromData, signal_shape


class Features(NamedTuple):
    """Features of a batch of signals.

    Attributes:
        tokens: ``(B, T, E)``.
        grid: Number of tokens along every axis of the signal, whose product is ``T``; None where tokens have no such order.
        signal: The signal ``(B, C, *shape)`` or posed views, for readouts that pass it on; None if they have none.
    """

    tokens: Tensor
    grid: tuple[int, ...] | None = None
    signal: Tensor | Views | None = None


class Encoder(nn.Module, ABC):
    """From a signal to features.

    Args:
        signal_shape: ``(C, *shape)`` of the signals it takes; the command line sets it from the data module.

    Attributes:
        embed_dim: ``E``, numbers of a token.
        num_tokens: ``T``, tokens of a signal; None where it depends on the signal.
        ordered: Whether a token has the same place in the signal for every signal, so that readouts may learn its position.
        signal_shape: ``(C, *shape)`` of the signals it takes, -1 for an axis of any size; None if unknown.
        context: Samples along each axis on either side of a token that it depends on; None if it depends on the whole signal.
        patch_values: Leading numbers of a token that are the values of its patch, flattened channel by channel; 0 where tokens
            do not hold them.
    """

    from_data: ClassVar[FromData] = {"signal_shape": signal_shape}
    embed_dim: int
    num_tokens: int | None = None
    ordered: ClassVar[bool] = True
    context: int | None = None
    patch_values: int = 0
    signal_shape: tuple[int, ...] | None
    frozen: bool = False

    def __init__(self, signal_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.signal_shape = None if signal_shape is None else tuple(signal_shape)

    @abstractmethod
    def tokens(self, signal: Tensor | Views) -> Tensor:
        """Return tokens ``(B, T, E)`` of a signal ``(B, C, *shape)``, or of posed views."""

    def layout(self, signal: Tensor | Views) -> Layout:
        """Return the grid of the tokens of a signal, from its shape alone; an empty layout if tokens have no grid."""
        return Layout()

    def forward(self, signal: Tensor | Views) -> Features:
        """Return the features of a signal ``(B, C, *shape)``, or of posed views."""
        return Features(self.tokens(signal), self.layout(signal).grid, signal)

    def freeze(self) -> Self:
        """Exclude all parameters from training, and keep dropout and running statistics in evaluation mode."""
        self.requires_grad_(False)
        self.frozen = True
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Enter training mode, or leave it; a frozen encoder stays in evaluation mode."""
        return super().train(mode and not self.frozen)
