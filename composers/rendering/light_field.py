"""Light field rendering: one evaluation of the field per ray, without an integral, depth or geometry."""

from __future__ import annotations

import torch
from torch import Tensor

from composers.networks import Field
from composers.rendering.rays import RayRenderer
from composers.rendering.renderer import PointRenderer, Rendered
from datamodules.cameras import plucker
from datamodules.domain import exact
from datamodules.spec import DataSpec


class LightFieldRenderer(RayRenderer):
    """Light fields: the field maps a line in space to a colour (Sitzmann et al. 2021, light field networks, section 3).

    Lines are parametrized by Pluecker coordinates, so that the colour does not depend on the position of the ray origin along
    the line.

    Args:
        chunk_size: Maximum number of rays per evaluation when gradients are disabled, to limit memory; None for all at once.

    Raises:
        ValueError: If ``chunk_size`` is not positive.
    """

    def __init__(self, chunk_size: int | None = 65536) -> None:
        super().__init__()
        self.points = PointRenderer(chunk_size)

    def field_spec(self, spec: DataSpec) -> DataSpec:
        """Return ``spec`` unchanged: a line has six Pluecker coordinates and one colour.

        Raises:
            ValueError: If the data does not consist of colours along rays.
        """
        self._check_spec(spec)
        return spec

    def rendered(self, field: Field, coords: Tensor) -> Rendered:
        """Return colours ``(B, N, 3)`` in [0, 1], in float32, without depth and opacity.

        Args:
            field: Field from Pluecker coordinates to colours before a sigmoid.
            coords: Ray origins and directions, ``(N, 6)`` or ``(B, N, 6)``; a draw, ``(..., 7)``, is ignored.

        Raises:
            ValueError: If ``coords`` are not rays.
        """
        self._check(coords)

        def of_rays(rays: Tensor) -> Tensor:
            with torch.autocast(rays.device.type, enabled=False):
                lines = plucker(exact(rays))
            return field(lines)

        raw = exact(self.points(of_rays, coords[..., :6]))
        return Rendered(raw.sigmoid(), raw=raw)
