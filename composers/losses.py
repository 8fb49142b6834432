"""What training and refinement minimise: one number per instance, so that instances never mix."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from composers.metrics import instance_mse
from datamodules.batch import Samples


class Loss(nn.Module, ABC):
    """Compares a prediction with what was measured."""

    @abstractmethod
    def forward(self, prediction: Tensor, target: Samples) -> Tensor:
        """Return ``(B,)`` for a prediction ``(B, N, C)`` at the target's places."""


class MeanSquaredError(Loss):
    """Mean over an instance's unmasked samples and channels of the squared error, the loss of all published settings."""

    def forward(self, prediction: Tensor, target: Samples) -> Tensor:
        """Return the mean squared error of every instance, in float32."""
        return instance_mse(prediction, target)
