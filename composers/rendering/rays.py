"""Renderers of rays: what they take, refuse and return."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from composers.networks import Field
from composers.rendering.renderer import Rendered, Renderer
from datamodules.domain import Rays
from datamodules.spec import DataSpec


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
