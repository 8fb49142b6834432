"""Colours of rays from a field of whole rays, one evaluation each: no depth, no integral, and nothing to see of the shape."""

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
    """Light fields: the field maps a line of space to its colour (Sitzmann et al. 2021, light field networks, section 3).

    Lines are given to it by their Pluecker coordinates, so that a colour cannot depend on where along its line a ray starts.

    Args:
        chunk_size: Rays evaluated at a time where no gradient is kept, which bounds memory; None for all at once.

    Raises:
        ValueError: If ``chunk_size`` is not positive.
    """

    def __init__(self, chunk_size: int | None = 65536) -> None:
        super().__init__()
        self.points = PointRenderer(chunk_size)

    def field_spec(self, spec: DataSpec) -> DataSpec:
        """Return the data's own: a line has six numbers too, and one colour.

        Raises:
            ValueError: If the data is no colours along rays.
        """
        self._check_spec(spec)
        return spec

    def rendered(self, field: Field, coords: Tensor) -> Rendered:
        """Return colours ``(B, N, 3)`` in [0, 1], in float32, without depth and opacity.

        Args:
            field: Of Pluecker coordinates, to numbers that a sigmoid makes colours.
            coords: ``(N, 6)`` or ``(B, N, 6)``, origins and directions; a draw, ``(..., 7)``, is not used.

        Raises:
            ValueError: If ``coords`` are no rays.
        """
        self._check(coords)

        def of_rays(rays: Tensor) -> Tensor:
            with torch.autocast(rays.device.type, enabled=False):
                lines = plucker(exact(rays))
            return field(lines)

        raw = exact(self.points(of_rays, coords[..., :6]))
        return Rendered(raw.sigmoid(), raw=raw)
