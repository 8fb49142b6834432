"""Losses of training and gradient steps: one number per instance, so that instances never mix."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from composers.metrics import instance_mse
from composers.rendering import Reconstruction
from datamodules.batch import Samples


class Loss(nn.Module, ABC):
    """Compares a reconstruction with measured values."""

    @abstractmethod
    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return ``(B,)`` for a reconstruction at the coordinates of the target; it may evaluate the field elsewhere."""


class MeanSquaredError(Loss):
    """Mean over an instance's unmasked samples and channels of the squared error, the loss of all published settings."""

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the mean squared error of every instance, in float32."""
        return instance_mse(reconstruction.values, target)
