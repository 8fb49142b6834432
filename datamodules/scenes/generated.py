"""Procedural objects to render, with the axes, the scale and, for a part of them, the grey of mesh files without colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from datamodules.randomness import seed_at
from datamodules.shapes.families import VERSION, Family, generate
from datamodules.shapes.parts import RADIUS as PARTS_RADIUS
from datamodules.storage.meshes import GREY, RADIUS, Mesh, UpAxis, z_up

_SHARE_PAINTED = 0.5


class GeneratedObject(NamedTuple):
    """An object of `generate`.

    Half of the objects, drawn at the address ``("paint", family, *address)``, are grey as meshes without colours are, so that
    colour alone does not separate generated objects from these.

    Attributes:
        name: Name of the object.
        family: Kind of object.
        address: Address of the shape and its colours in the family.
    """

    name: str
    family: Family
    address: tuple[int | str, ...]

    @property
    def is_painted(self) -> bool:
        """Whether the object is grey."""
        return seed_at("paint", self.family, *self.address) / 2**63 < _SHARE_PAINTED

    def facts(self) -> Mapping[str, Any]:
        """Return the address, and the version of the generators."""
        return {"generator": VERSION, "family": self.family, "address": list(self.address)}

    def triangles(self, up: UpAxis = "y") -> Mesh:
        """Return the triangles of the object, z up, with radius 1.4 around the origin.

        Args:
            up: Unused: generated objects are y up.
        """
        parts = generate(self.family, *self.address).parts
        triangles = [part.mesh().triangles for part in parts]
        corners = z_up(np.concatenate(triangles)) * (RADIUS / PARTS_RADIUS)
        paints = np.full((len(parts), 3), GREY) if self.is_painted else np.array([part.colour for part in parts])
        colours = np.repeat(paints.astype(np.float32), [3 * len(part) for part in triangles], axis=0)
        return Mesh(corners.astype(np.float32), colours.reshape(-1, 3, 3))
