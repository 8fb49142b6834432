"""Render rays in chunks of bounded memory, and convert the results to colour and depth images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composers.base import Composer
from composers.rendering import RayRenderer, Reconstruction, Rendered
from datamodules.batch import Views
from modalities.decoding import chunk_of_points
from modalities.images import to_image


class RenderedRays(NamedTuple):
    """Rendered rays, on the CPU.

    Attributes:
        colours: ``(N, 3)``.
        depth: ``(N,)``, expected depth of the hits; None if the renderer has no depth.
        opacity: ``(N,)`` in [0, 1], probability of a hit; None if the renderer has no depth.
    """

    colours: Tensor
    depth: Tensor | None
    opacity: Tensor | None


def depth_range(composer: Composer) -> tuple[float, float] | None:
    """Return the near and far depths of a model's renderer, or None if it has no depth."""
    return composer.renderer.depth_range


@torch.no_grad()
def render_rays(
    composer: Composer, reconstruction: Reconstruction, rays: Tensor, max_memory: float = 500.0
) -> RenderedRays:
    """Render rays in chunks.

    Args:
        composer: The model; its renderer must render rays.
        reconstruction: Reconstruction of one instance.
        rays: ``(N, 6)``.
        max_memory: Memory in MB for rendering, in addition to the model and the result.

    Raises:
        ValueError: If the renderer does not render rays, or if ``max_memory`` is too small for a single ray.
    """
    if not isinstance(composer.renderer, RayRenderer):
        raise ValueError(
            f"{type(composer.renderer).__name__} does not render views: scenes need VolumeRenderer or LightFieldRenderer."
        )
    ends = depth_range(composer)
    chunks = rays.split(_rays_at_a_time(composer, max_memory))
    parts = [_remove_background(reconstruction.render(chunk.to(composer.device)), ends) for chunk in chunks]
    colours, depths, opacities = zip(*parts, strict=True)
    if depths[0] is None:
        return RenderedRays(torch.cat(colours), None, None)
    return RenderedRays(torch.cat(colours), torch.cat(depths), torch.cat(opacities))


def depth_ends(rendered: Sequence[RenderedRays]) -> tuple[float, float]:
    """Return the depth range of images that share a colour scale: the 1st and 99th percentile of the depths of hits.

    A hit has an opacity above 0.5. The range is (0, 1) if there is none.

    Args:
        rendered: Rays of the images, with depth.
    """
    hits = [rays.depth[rays.opacity > 0.5] for rays in rendered if rays.depth is not None and rays.opacity is not None]
    depths = torch.cat(hits).numpy()
    if not len(depths):
        return 0.0, 1.0
    near, far = np.quantile(depths, (0.01, 0.99)).tolist()
    return near, max(far, near + 1e-3)


def depth_colours(rendered: RenderedRays, ends: tuple[float, float]) -> Tensor:
    """Return depth as colours ``(N, 3)``, from yellow (near) through green to violet (far), blended with white by opacity.

    Args:
        rendered: ``N`` rays with depth.
        ends: Depths of the first and the last colour, see `depth_ends`.
    """
    from matplotlib import colormaps  # imported here because it is slow, and most commands draw nothing

    assert rendered.depth is not None
    assert rendered.opacity is not None
    near, far = ends
    scaled = ((rendered.depth - near) / (far - near)).clamp(0, 1).numpy()
    colours = torch.from_numpy(np.asarray(colormaps["viridis_r"](scaled), np.float32)[:, :3])
    opacity = rendered.opacity.clamp(0, 1).unsqueeze(-1)
    return colours * opacity + 1 - opacity


def depth_image(rendered: RenderedRays, shape: Sequence[int], ends: tuple[float, float]) -> Image.Image:
    """Return the colours of `depth_colours` as an image of ``shape``, ``(H, W)``."""
    return to_image(depth_colours(rendered, ends), shape)


def depth_images(rendered: Sequence[RenderedRays], shape: Sequence[int]) -> list[Image.Image | None]:
    """Return the depths of views of ``shape``, ``(H, W)``, on one colour scale; None if the renderer has no depth."""
    if not rendered or rendered[0].depth is None:
        return [None] * len(rendered)
    ends = depth_ends(rendered)
    return [depth_image(rays, shape, ends) for rays in rendered]


def view_images(values: Tensor, shape: Sequence[int]) -> list[Image.Image]:
    """Return values ``(Q * H * W, 3)`` as clipped images of ``shape``, ``(Q, H, W)``."""
    return [to_image(view, shape[1:]) for view in values.unflatten(0, (shape[0], -1))]


def support_images(support: Views) -> list[Image.Image]:
    """Return the support views, ``images (V, 3, H, W)``, as images."""
    return [to_image(image.flatten(1).mT, image.shape[1:]) for image in support.images]


def _rays_at_a_time(composer: Composer, max_memory: float) -> int:
    """Return the number of rays that can be rendered at once within ``max_memory`` MB."""
    samples = composer.renderer.points_per_coord
    rays = chunk_of_points(composer, max_memory) // samples
    if rays < 1:
        raise ValueError(f"max_memory is {max_memory:g} MB, too little for the {samples} points of a ray: raise it.")
    return rays


def _remove_background(rendered: Rendered, ends: tuple[float, float] | None) -> RenderedRays:
    """Return the rays of one instance on the CPU; their depth excludes the transmitted light, which ends at the far depth."""
    values, depth, opacity = (None if part is None else part[0].float().cpu() for part in rendered[:3])
    assert values is not None
    if depth is None or opacity is None or ends is None:
        return RenderedRays(values, None, None)
    return RenderedRays(values, (depth - (1 - opacity) * ends[1]) / opacity.clamp(min=1e-6), opacity)
