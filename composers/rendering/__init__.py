"""Renderers: a field and coordinates to measured values."""

from composers.rendering.renderer import PointRenderer, Renderer

__all__ = ["PointRenderer", "Renderer"]
