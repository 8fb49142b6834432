"""From a field and coordinates to measured values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from composers.networks import Field
from datamodules.spec import DataSpec


class Rendered(NamedTuple):
    """Output of a renderer at coordinates.

    Attributes:
        values: ``(B, N, C)``, the measured values.
        depth: ``(B, N)``, the expected depth in units of the ray direction; None where there is none.
        opacity: ``(B, N)``, 0 where a ray hits nothing and 1 where nothing behind is visible; None likewise.
        raw: ``(B, N, ...)``, the output of the field behind ``values``, before any final nonlinearity; None where a value is
            made of many points of the field.
    """

    values: Tensor
    depth: Tensor | None = None
    opacity: Tensor | None = None
    raw: Tensor | None = None


class Reconstruction(NamedTuple):
    """Reconstruction of a batch of instances at the query coordinates, for losses, metrics and writers.

    Attributes:
        field: The field of all instances, from coordinates ``(N, D)`` or ``(B, N, D)`` to ``(B, N, ...)``; differentiable.
        raw: As in `Rendered`.
        values: ``(B, N, C)`` at the query coordinates.
        render: Render at other coordinates ``(N, D)`` or ``(B, N, D)``.
        source: Facts of the source of the signals that writers need, such as a sampling rate.
    """

    field: Field
    raw: Tensor | None
    values: Tensor
    render: Callable[[Tensor], Rendered]
    source: Mapping[str, Any] = {}

    def gradients(self, coords: Tensor) -> Tensor:
        """Return the gradients of the field's values, summed over channels, with respect to coordinates.

        Losses can train through them where gradients are enabled; elsewhere, they are constants.

        Args:
            coords: ``(N, D)`` or ``(B, N, D)``.

        Returns:
            ``(B, N, D)``.

        Raises:
            ValueError: In inference mode, in which nothing can be differentiated.
        """
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "Gradients of a field cannot be computed in inference mode: set trainer.inference_mode to false."
            )
        is_training = torch.is_grad_enabled()
        with torch.enable_grad():
            points = coords.detach().expand(len(self.values), -1, -1).clone().requires_grad_()
            (gradients,) = torch.autograd.grad(self.field(points).sum(), points, create_graph=is_training)
        return gradients

    @classmethod
    def of_values(cls, values: Tensor) -> Self:
        """Return a reconstruction that is known at the query coordinates only, such as the mean of a training set."""

        def unknown(coords: Tensor) -> Any:
            raise ValueError("This reconstruction holds values at the query coordinates only, and no field.")

        return cls(unknown, None, values, unknown)


class Renderer(nn.Module, ABC):
    """Evaluates a field where the data was measured."""

    @property
    def points_per_coord(self) -> int:
        """Return the points of the field that one coordinate needs, from which chunk sizes follow."""
        return 1

    @property
    def depth_range(self) -> tuple[float, float] | None:
        """Return the nearest and farthest depth; None for a renderer without depth."""
        return None

    @abstractmethod
    def field_spec(self, spec: DataSpec) -> DataSpec:
        """Return the domain and the channels of the field behind this renderer.

        Args:
            spec: Of the data.

        Raises:
            ValueError: If the renderer cannot produce such data.
        """

    @abstractmethod
    def rendered(self, field: Field, coords: Tensor) -> Rendered:
        """Return everything computed at ``coords``, ``(N, D)`` or ``(B, N, D)``."""

    def forward(self, field: Field, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, ``(N, D)`` or ``(B, N, D)``."""
        return self.rendered(field, coords).values

    def pointwise(self, field: Field) -> Field:
        """Return the function from coordinates to values where a value is that of the field at its coordinate, for export.

        Unlike `forward`, it does not split the coordinates into chunks, so that it can be traced for any number of them.

        Raises:
            ValueError: If a value depends on more than the field at its coordinate.
        """
        raise ValueError(f"{type(self).__name__} does not render single points of the field: use PointRenderer.")

    def reconstruct(self, field: Field, coords: Tensor, source: Mapping[str, Any] | None = None) -> Reconstruction:
        """Return the reconstruction of a field at ``coords``, ``(N, D)`` or ``(B, N, D)``."""
        return self.reconstruction(field, self.rendered(field, coords), source)

    def reconstruction(
        self, field: Field, rendered: Rendered, source: Mapping[str, Any] | None = None
    ) -> Reconstruction:
        """Return the reconstruction of a field of which ``rendered`` is known."""

        def render(others: Tensor) -> Rendered:
            return self.rendered(field, others)

        return Reconstruction(field, rendered.raw, rendered.values, render, source or {})


class PointRenderer(Renderer):
    """Values are measured at points: pixels, audio samples. The field has the dimensions of the data.

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
        """Return the specification of the data."""
        return spec

    def pointwise(self, field: Field) -> Field:
        """Return the field."""
        return field

    def rendered(self, field: Field, coords: Tensor) -> Rendered:
        """Return the field at ``coords``, as values and raw."""
        if self.chunk_size is None or torch.is_grad_enabled() or coords.shape[-2] <= self.chunk_size:
            values = field(coords)
        else:
            values = torch.cat([field(chunk) for chunk in coords.split(self.chunk_size, dim=-2)], dim=-2)
        return Rendered(values, raw=values)
