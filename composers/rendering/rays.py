"""Renderers of rays: what they take, refuse and return."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from composers.networks import Field
from composers.rendering.renderer import Renderer
from datamodules.domain import Rays
from datamodules.spec import DataSpec


class Rendered(NamedTuple):
    """What is seen along rays, and for people how far away it is and how solid.

    Attributes:
        values: ``(B, N, 3)``, what `Renderer.forward` returns.
        depth: ``(B, N)``, the expected depth, in units of a ray's direction; None where a renderer knows none.
        opacity: ``(B, N)``, 0 where a ray meets nothing, 1 where nothing behind is seen; None likewise.
    """

    values: Tensor
    depth: Tensor | None = None
    opacity: Tensor | None = None


class RayRenderer(Renderer):
    """Colours along rays: the data is posed views, and what the field must be is the renderer's."""

    @abstractmethod
    def rendered(self, field: Field, coords: Tensor) -> Rendered:
        """Return colours, and depths and opacities where they are known, of rays.

        Args:
            field: What `field_spec` says.
            coords: ``(N, 6)`` or ``(B, N, 6)``, origins and directions; in training a draw in [0, 1) follows, ``(..., 7)``.

        Raises:
            ValueError: If ``coords`` are no rays.
        """

    def forward(self, field: Field, coords: Tensor) -> Tensor:
        """Return the colours ``(B, N, 3)`` of rays, as `rendered` does."""
        return self.rendered(field, coords).values

    def _check_spec(self, spec: DataSpec) -> None:
        """Refuse data that is no colours along rays."""
        if not isinstance(spec.domain, Rays) or spec.value_dim != 3:
            raise ValueError(
                f"{type(self).__name__} renders colours along rays, coord_dim, value_dim (6, 3); this data has "
                f"{(spec.domain.coord_dim, spec.value_dim)} on a {type(spec.domain).__name__}: choose data of posed views, or "
                "renderer PointRenderer."
            )

    def _check(self, coords: Tensor) -> None:
        """Refuse coordinates that are no rays."""
        if coords.dim() not in (2, 3) or coords.shape[-1] not in (6, 7):
            raise ValueError(
                f"coords have shape {tuple(coords.shape)}; {type(self).__name__} takes rays (N, 6) or (B, N, 6), origin and "
                "direction, in training followed by one draw in [0, 1)."
            )
