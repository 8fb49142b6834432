"""Losses of training and gradient steps, one value per instance."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from composers.metrics import instance_mse
from composers.rendering import Reconstruction
from datamodules.batch import Samples


class Loss(nn.Module, ABC):
    """Base class of losses, which compare a reconstruction with measured values."""

    @abstractmethod
    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return ``(B,)`` for a reconstruction at the coordinates of the target; it may evaluate the field elsewhere."""


class MeanSquaredError(Loss):
    """Squared error, averaged over the unmasked samples and the channels of an instance; used in all published settings."""

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the mean squared error of every instance, in float32."""
        return instance_mse(reconstruction.values, target)
