"""What a model makes of rays, a part at a time, and images of colour and depth of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composers.base import Composer
from composers.networks import Modulations
from composers.rendering import RayRenderer, Rendered
from datamodules.batch import Views
from modalities.decoding import chunk_of_points
from modalities.images import to_image


class Seen(NamedTuple):
    """What a model makes of rays, on the CPU.

    Attributes:
        colours: ``(N, 3)``.
        depth: ``(N,)`` of what the ray meets, the expected one where it meets anything; None where the renderer knows none.
        opacity: ``(N,)`` in [0, 1], how much it meets; None likewise.
    """

    colours: Tensor
    depth: Tensor | None
    opacity: Tensor | None


def depth_range(composer: Composer) -> tuple[float, float] | None:
    """Return the nearest and the farthest depth that a model's renderer looks at; None if it knows no depth."""
    return composer.renderer.depth_range


@torch.no_grad()
def look(composer: Composer, modulations: Modulations, rays: Tensor, max_memory: float = 500.0) -> Seen:
    """Render rays, a part at a time.

    Args:
        composer: The model; its renderer takes rays.
        modulations: Of one instance, on the device of the model.
        rays: ``(N, 6)``.
        max_memory: MB that this may take above the model and the result.

    Raises:
        ValueError: If the renderer takes no rays, or one ray needs more memory.
    """
    renderer, field = composer.renderer, composer.network.bind(modulations)
    if not isinstance(renderer, RayRenderer):
        raise ValueError(
            f"{type(renderer).__name__} renders no views: scenes need VolumeRenderer or LightFieldRenderer."
        )
    chunks = rays.split(_rays_at_a_time(composer, max_memory))
    parts = [_seen(renderer.rendered(field, some.to(composer.device)), depth_range(composer)) for some in chunks]
    colours, depths, opacities = zip(*parts, strict=True)
    if depths[0] is None:
        return Seen(torch.cat(colours), None, None)
    return Seen(torch.cat(colours), torch.cat(depths), torch.cat(opacities))


def depth_ends(seen: Sequence[Seen]) -> tuple[float, float]:
    """Return the nearest and the farthest depth that is met, of images that shall have one scale.

    What is hardly there does not count, nor does the outermost hundredth; (0, 1) where nothing is met.

    Args:
        seen: With depth.
    """
    met = [one.depth[one.opacity > 0.5] for one in seen if one.depth is not None and one.opacity is not None]
    depths = torch.cat(met).numpy()
    if not len(depths):
        return 0.0, 1.0
    near, far = np.quantile(depths, (0.01, 0.99)).tolist()
    return near, max(far, near + 1e-3)


def depth_colours(seen: Seen, ends: tuple[float, float]) -> Tensor:
    """Return depth as colours ``(N, 3)``, from yellow, near, over green to violet, far; what meets nothing is white.

    Args:
        seen: With depth, of ``N`` rays.
        ends: The depths of the first and the last colour, as `depth_ends` finds them.
    """
    from matplotlib import colormaps  # here, because most commands draw nothing and need not wait for it

    assert seen.depth is not None
    assert seen.opacity is not None
    near, far = ends
    places = ((seen.depth - near) / (far - near)).clamp(0, 1).numpy()
    colours = torch.from_numpy(np.asarray(colormaps["viridis_r"](places), np.float32)[:, :3])
    opacity = seen.opacity.clamp(0, 1).unsqueeze(-1)
    return colours * opacity + 1 - opacity


def depth_image(seen: Seen, shape: Sequence[int], ends: tuple[float, float]) -> Image.Image:
    """Return depth in colours, as `depth_colours` does, as an image of ``shape``, ``(H, W)``."""
    return to_image(depth_colours(seen, ends), shape)


def depth_images(seen: Sequence[Seen], shape: Sequence[int]) -> list[Image.Image | None]:
    """Return the depths of views of ``(H, W)`` in colours of one scale; None where the renderer knows no depth."""
    if not seen or seen[0].depth is None:
        return [None] * len(seen)
    ends = depth_ends(seen)
    return [depth_image(one, shape, ends) for one in seen]


def view_images(values: Tensor, shape: Sequence[int]) -> list[Image.Image]:
    """Return values ``(Q * H * W, 3)`` as images of ``shape``, ``(Q, H, W)``, clipped."""
    return [to_image(view, shape[1:]) for view in values.unflatten(0, (shape[0], -1))]


def support_images(support: Views) -> list[Image.Image]:
    """Return the images that the model looked at, ``images (V, 3, H, W)``."""
    return [to_image(image.flatten(1).mT, image.shape[1:]) for image in support.images]


def _rays_at_a_time(composer: Composer, max_memory: float) -> int:
    """Return how many rays can be rendered at a time within a memory in MB."""
    samples = composer.renderer.points_per_coord
    rays = chunk_of_points(composer, max_memory) // samples
    if rays < 1:
        raise ValueError(f"max_memory is {max_memory:g} MB, too little for the {samples} points of a ray: raise it.")
    return rays


def _seen(found: Rendered, ends: tuple[float, float] | None) -> Seen:
    """Return what was rendered of one instance, the depth without the share of a ray that goes on to the far end."""
    values, depth, opacity = (None if part is None else part[0].float().cpu() for part in found[:3])
    assert values is not None
    if depth is None or opacity is None or ends is None:
        return Seen(values, None, None)
    return Seen(values, (depth - (1 - opacity) * ends[1]) / opacity.clamp(min=1e-6), opacity)
