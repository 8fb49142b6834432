"""Losses of training and gradient steps, one value per instance."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from composers.metrics import instance_mse
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from datamodules.domain import exact


class Loss(nn.Module, ABC):
    """Base class of losses, which compare a reconstruction with measured values."""

    @abstractmethod
    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return ``(B,)`` for a reconstruction at the coordinates of the target; it may evaluate the field elsewhere."""


class MeanAbsoluteError(Loss):
    """Absolute error, averaged over the unmasked samples and the channels of an instance (LIIF and its descendants)."""

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the mean absolute error of every instance, in float32."""
        errors = (exact(reconstruction.values) - exact(target.measured)).abs().mean(-1)
        if target.mask is None:
            return errors.mean(-1)
        return (errors * target.mask).sum(-1) / target.mask.sum(-1).clamp(min=1)


class MeanSquaredError(Loss):
    """Squared error, averaged over the unmasked samples and the channels of an instance; used in all published settings."""

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the mean squared error of every instance, in float32."""
        return instance_mse(reconstruction.values, target)
