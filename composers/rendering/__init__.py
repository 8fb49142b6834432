"""Renderers: compute measured values from a field and coordinates."""

from composers.rendering.light_field import LightFieldRenderer
from composers.rendering.occupancy import Occupancy
from composers.rendering.rays import RayRenderer
from composers.rendering.renderer import PointRenderer, Reconstruction, Rendered, Renderer
from composers.rendering.signed_distance import SignedDistance
from composers.rendering.volume import VolumeRenderer

__all__ = [
    "LightFieldRenderer",
    "Occupancy",
    "PointRenderer",
    "RayRenderer",
    "Reconstruction",
    "Rendered",
    "Renderer",
    "SignedDistance",
    "VolumeRenderer",
]
