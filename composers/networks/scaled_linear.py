"""Linear layers that adaptive optimizers change slowly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ScaledLinear(nn.Module):
    """A Linear whose weight and bias are stored ``factor`` times as large as they act.

    A step of Adam changes every stored number by about the learning rate, whatever the size of its gradient. Stored larger, a
    layer that starts from a good solution changes ``factor`` times less per step than the layers around it.

    Args:
        in_features: Numbers of an input.
        out_features: Numbers of an output.
        factor: Stored over acting weights, at least 1.
    """

    def __init__(self, in_features: int, out_features: int, factor: float = 20.0) -> None:
        super().__init__()
        self.factor = factor
        linear = nn.Linear(in_features, out_features)
        self.weight = nn.Parameter(linear.weight.detach() * factor)
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``inputs (..., I) @ W.T + b``."""
        weight, bias = self.weight / self.factor, self.bias / self.factor
        return functional.linear(inputs, weight.to(inputs.dtype), bias.to(inputs.dtype))

    @torch.no_grad()
    def assign(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Set the acting ``weight (O, I)`` and ``bias (O,)``, zero if None."""
        self.weight.copy_(weight * self.factor)
        self.bias.zero_() if bias is None else self.bias.copy_(bias * self.factor)
