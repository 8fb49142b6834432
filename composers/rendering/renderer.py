"""From a field and coordinates to what is measured there."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from composers.networks import Field
from datamodules.spec import DataSpec


class Renderer(nn.Module, ABC):
    """Evaluates a field where the data was measured."""

    @abstractmethod
    def field_spec(self, spec: DataSpec) -> DataSpec:
        """Return what the network behind this renderer must be: the domain and the channels of its field.

        Args:
            spec: Of the data.

        Raises:
            ValueError: If the renderer cannot make such data.
        """

    @abstractmethod
    def forward(self, field: Field, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, ``(N, D)`` or ``(B, N, D)``."""


class PointRenderer(Renderer):
    """Values are measured at points: pixels, audio samples. The field has the data's own dimensions.

    Args:
        chunk_size: Coordinates evaluated at a time where no gradient is kept, which bounds memory; None for all at once.

    Raises:
        ValueError: If ``chunk_size`` is not positive.
    """

    def __init__(self, chunk_size: int | None = 65536) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, or null for all at once.")
        self.chunk_size = chunk_size

    def field_spec(self, spec: DataSpec) -> DataSpec:
        """Return the data's own: the field is measured as it is."""
        return spec

    def forward(self, field: Field, coords: Tensor) -> Tensor:
        """Return the field at ``coords``."""
        if self.chunk_size is None or torch.is_grad_enabled() or coords.shape[-2] <= self.chunk_size:
            return field(coords)
        return torch.cat([field(chunk) for chunk in coords.split(self.chunk_size, dim=-2)], dim=-2)
