"""Anybody's meshes rendered as scenes to train on: ``python -m datamodules.render_views MESHES... OUT``."""

from datamodules.render_views.folder import Rendered, RenderSettings, camera_poses, render_folder

__all__ = ["RenderSettings", "Rendered", "camera_poses", "render_folder"]
