"""Renderers: a field and coordinates to measured values."""

from composers.rendering.light_field import LightFieldRenderer
from composers.rendering.rays import RayRenderer, Rendered
from composers.rendering.renderer import PointRenderer, Renderer
from composers.rendering.volume import VolumeRenderer

__all__ = ["LightFieldRenderer", "PointRenderer", "RayRenderer", "Rendered", "Renderer", "VolumeRenderer"]
