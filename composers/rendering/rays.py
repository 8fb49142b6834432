"""Base class of renderers of rays, with the checks of their inputs."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from composers.networks import Field
from composers.rendering.renderer import Rendered, Renderer
from datamodules.domain import Rays
from datamodules.spec import DataSpec


class RayRenderer(Renderer):
    """Render colours along rays of posed views; subclasses define the spec of the field."""

    @abstractmethod
    def rendered(self, field: Field, coords: Tensor) -> Rendered:
        """Return the colours of rays, with depths and opacities if the renderer computes them.

        Args:
            field: Field that matches `field_spec`.
            coords: Ray origins and directions, ``(N, 6)`` or ``(B, N, 6)``; in training followed by a draw in
                [0, 1), ``(..., 7)``.

        Raises:
            ValueError: If ``coords`` are not rays.
        """

    def _check_spec(self, spec: DataSpec) -> None:
        """Raise an error if the data does not consist of colours along rays."""
        if not isinstance(spec.domain, Rays) or spec.value_dim != 3:
            raise ValueError(
                f"{type(self).__name__} renders colours along rays, (coord_dim, value_dim) = (6, 3); this data has "
                f"{(spec.domain.coord_dim, spec.value_dim)} on a {type(spec.domain).__name__}: choose data of posed views, or "
                "use PointRenderer."
            )

    def _check(self, coords: Tensor) -> None:
        """Raise an error if the coordinates are not rays."""
        if coords.dim() not in (2, 3) or coords.shape[-1] not in (6, 7):
            raise ValueError(
                f"coords have shape {tuple(coords.shape)}; {type(self).__name__} takes rays (N, 6) or (B, N, 6): origin and "
                "direction, in training followed by one draw in [0, 1)."
            )
