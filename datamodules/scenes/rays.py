"""Base class of the data modules of scenes: posed images as rays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, PosedImages, Samples, Views
from datamodules.cameras import centred_intrinsics, orbit
from datamodules.domain import Rays
from datamodules.randomness import generator_at, global_seed
from datamodules.spec import DataSpec
from modalities.views import PosedViews

_WHITE = 255  # background, in all channels
MILLIMETRE = 1e-3  # of a metre
_OBJECT_RADIUS = 1.8  # upper bound of the radius of objects around the origin


class SceneModule(CoordinateDataModule):
    """Posed images of scenes as rays: support views are observed, query views are rendered.

    Items are `PosedImages` of equal size, support views first. A coordinate is a ray: its origin and direction. Evaluation
    uses all rays of the query views. Training draws a subset per query view and instance, and appends to every ray a seventh
    number, drawn uniformly from [0, 1), by which the renderer jitters the samples along the ray.

    In the first epochs, half of the training rays are drawn from the foreground (pixels with a channel below white) and the
    others from the whole image. If the foreground has too few pixels, they are drawn with replacement; if there is none, all
    rays are drawn from the whole image. In all epochs, a share of the rays, ``object_rays``, can be drawn from the foreground
    and its surroundings instead, and the rule above applies to the others.

    Args:
        views: Number of support views per instance.
        min_views: Minimum number of support views of a training batch, for encoders that take any number: every batch draws a
            number between ``min_views`` and ``views``. Always ``views`` if None, as encoders of a fixed number require.
        query_views: Number of query views per instance.
        size: Height and width of the images in pixels.
        near: Depth at which rendering starts, in world units from the camera plane.
        far: Depth at which rendering ends.
        rays_per_view: Rays per query view in a training step; all rays if a view has fewer.
        foreground_epochs: Number of initial training epochs in which half of the rays come from the foreground.
        object_rays: Share of the training rays that are drawn in all epochs from the foreground and the pixels around it, in
            [0, 1]. The others are drawn from the whole image; keep a few of them, so that the background is learned.
        object_margin: Largest distance of these pixels from the foreground, along rows and columns, in pixels.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    modality = PosedViews()
    train_set: Dataset[Any]  # posed images, or items that the augmentation turns into posed images
    val_set: Dataset[Any]
    test_set: Dataset[Any]
    augmentation: Callable[[Any, torch.Generator], Any] | None = None

    def __init__(
        self,
        views: int = 1,
        query_views: int = 1,
        size: int = 128,
        near: float = 2.0,
        far: float = 6.0,
        rays_per_view: int = 128,
        foreground_epochs: int = 2,
        *,
        min_views: int | None = None,
        object_rays: float = 0.0,
        object_margin: int = 4,
        **kwargs: Any,
    ) -> None:
        if views < 1 or query_views < 1 or size < 1:
            raise ValueError(f"views is {views}, query_views {query_views}, size {size}: each must be at least 1.")
        if min_views is not None and not 1 <= min_views <= views:
            raise ValueError(f"min_views is {min_views}: expected a number from 1 to views, {views}.")
        if not (0 <= near < far and math.isfinite(far)):
            raise ValueError(f"near is {near}, far {far}: expected finite depths with 0 <= near < far, in world units.")
        if rays_per_view < 1 or foreground_epochs < 0:
            raise ValueError(
                f"rays_per_view is {rays_per_view}, foreground_epochs {foreground_epochs}: rays_per_view must be at least 1 "
                "and foreground_epochs at least 0."
            )
        if not 0 <= object_rays <= 1 or object_margin < 0:
            raise ValueError(
                f"object_rays is {object_rays}, object_margin {object_margin}: object_rays must be a share in [0, 1] and "
                "object_margin at least 0 pixels."
            )
        super().__init__(coordinate_noise="none", coordinate_subset=None, **kwargs)
        self.views = views
        self.min_views = min_views
        self.query_views = query_views
        self.size = size
        self.near = near
        self.far = far
        self.rays_per_view = rays_per_view
        self.foreground_epochs = foreground_epochs
        self.object_rays = object_rays
        self.object_margin = object_margin

    @property
    def spec(self) -> DataSpec:
        """Rays between the depths, with one colour each; the signal is the support views."""
        shape = (self.views, 3, self.size, self.size)
        return DataSpec(Rays(self.near, self.far), 3, shape, self.modality, self.num_instances)

    def check_depths(self, name: str, poses: Tensor) -> None:
        """Raise an error if no camera of a scene can see an object around the origin between ``near`` and ``far``.

        Args:
            name: Name of the scene.
            poses: ``(F, 3, 4)``, its cameras.

        Raises:
            ValueError: If an object of radius 1.8 is entirely before ``near`` or beyond ``far`` for all cameras.
        """
        distances = poses[:, :, 3].norm(dim=-1)
        invisible = (self.far < distances - _OBJECT_RADIUS) | (self.near > distances + _OBJECT_RADIUS)
        if bool(invisible.all()):
            nearest, farthest = float(distances.min()), float(distances.max())
            scale = self.suggested_scale(poses)
            units = "is in millimetres" if scale == MILLIMETRE else "has other units"
            hint = f" Or, if the scene {units}, set --data.init_args.scale {scale:g}." if scale != 1 else ""
            raise ValueError(
                f"The cameras of {name} are {nearest:,.5g} to {farthest:,.5g} from the origin, so no object around the origin "
                f"is visible between near {self.near:g} and far {self.far:g}: set --data.init_args.near and "
                f"--data.init_args.far around these distances, for example to {max(0.0, nearest - 1):.3g} and "
                f"{farthest + 1:.3g}.{hint}"
            )

    def suggested_scale(self, poses: Tensor) -> float:
        """Return a factor of positions that brings cameras between the depths: 1, or a power of ten for other units.

        Args:
            poses: ``(F, 3, 4)``, the cameras of a scene.
        """
        distance = float(poses[:, :, 3].norm(dim=-1).mean())
        return 10.0 ** round(math.log10((self.near + self.far) / 2 / distance)) if distance > 0 else 1.0

    def random_items(self, count: int) -> PosedImages:
        """Return collated images of random pixels, with cameras around the origin.

        Args:
            count: Number of items.
        """
        total = self.views + self.query_views
        images = torch.randint(256, (count, total, 3, self.size, self.size), dtype=torch.uint8)
        poses = orbit(total, (self.near + self.far) / 2).expand(count, -1, -1, -1)
        names = [f"random-{index}" for index in range(count)]
        intrinsics = centred_intrinsics(torch.full((count, total, 2), float(self.size)), (self.size, self.size))
        return PosedImages(images, poses, intrinsics, names, torch.arange(count))  # type: ignore[arg-type]

    def to_coordinates(self, batch: Any, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated `PosedImages`.

        Args:
            batch: ``images (B, V + Q, 3, H, W)`` uint8, of which the first ``V`` are support views, ``poses``,
                ``intrinsics``, names and seeds.
            training: Whether to draw a subset of the rays of the query views instead of using all.
            step: Number of the training step, from which the number of support views is drawn.

        Returns:
            Rays of the support views ``(B, V * H * W, 6)``, and of the query views ``(B, Q * H * W, 6)``, or in training
            ``(B, Q * rays_per_view, 7)``, with colours in [0, 1].
        """
        number = self._number_of_views(step) if training else self.views
        support, query = (_select(batch, part) for part in (slice(number), slice(self.views, None)))
        rays, values = self._rays(query), _pixels(query.images)  # (B, Q, H W, 6), (B, Q, H W, 3)
        shape: tuple[int, ...] | None = (values.shape[1], *query.images.shape[-2:])
        if training:
            seeds = torch.as_tensor(batch.seed).tolist()
            indices = self._draw_pixels(query.images, seeds)[..., None]  # (B, Q, R, 1)
            rays, values, shape = rays.take_along_dim(indices, 2), values.take_along_dim(indices, 2), None
            rays = torch.cat((rays, _uniform(seeds, "jitter", rays.shape[1:3], rays.device)[..., None]), dim=-1)
        index = torch.as_tensor(batch.instance, device=rays.device) if training else None
        observed = Samples(self._rays(support).flatten(1, 2), _in_unit(_pixels(support.images)).flatten(1, 2))
        return CoordinateBatch(
            Observation(Views(_in_unit(support.images), support.poses, support.intrinsics), observed, index),
            Samples(rays.flatten(1, 2), _in_unit(values).flatten(1, 2)),
            shape,
            list(batch.name),
        )

    def _number_of_views(self, step: int) -> int:
        """Return the number of support views of a training batch."""
        if self.min_views is None:
            return self.views
        generator = generator_at("number of views", global_seed(), step)
        return int(torch.randint(self.min_views, self.views + 1, (), generator=generator))

    def _rays(self, images: PosedImages) -> Tensor:
        """Return the rays of all pixels, ``(B, V, H * W, 6)``."""
        views, _, *size = images.images.shape[1:]
        rays = self.spec.domain.coords((views, *size), cameras=(images.poses, images.intrinsics))
        return rays.view(*rays.shape[:-2], views, -1, 6)

    def _draw_pixels(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Draw training pixels of views ``(B, Q, 3, H, W)``; return their indices ``(B, Q, R)``."""
        pixels, device = images.shape[-2] * images.shape[-1], images.device
        shape, count = (images.shape[1], pixels), min(self.rays_per_view, pixels)
        anywhere = _uniform(seeds, "rays", shape, device).topk(count).indices  # without replacement
        near = round(self.object_rays * count)
        epoch = self.trainer.current_epoch if self.trainer else 0
        half = near + (count - near) // 2 if epoch < self.foreground_epochs else near
        parts = [anywhere[..., half:]]
        if half > near:
            parts.insert(0, _draw_from(_foreground(images), seeds, "foreground", "again", anywhere[..., near:half]))
        if near:
            surroundings = _dilated(_foreground(images), self.object_margin)
            parts.insert(0, _draw_from(surroundings, seeds, "object", "object again", anywhere[..., :near]))
        return torch.cat(parts, -1)


def _foreground(images: Tensor) -> Tensor:
    """Return the pixels of views ``(B, Q, 3, H, W)`` that have a channel below white, ``(B, Q, H, W)``."""
    return images.amin(2) < _WHITE


def _dilated(mask: Tensor, margin: int) -> Tensor:
    """Return the pixels of ``mask (B, Q, H, W)`` and those at most ``margin`` rows and columns away."""
    size = 2 * margin + 1
    return torch.nn.functional.max_pool2d(mask.float(), size, stride=1, padding=margin) > 0


def _draw_from(mask: Tensor, seeds: Sequence[int], purpose: str, again: str, fallback: Tensor) -> Tensor:
    """Draw as many pixels of ``mask`` as in ``fallback``, with replacement if needed, or return it if there are none.

    Args:
        mask: ``(B, Q, H, W)``, the pixels to draw from.
        seeds: Of the instances.
        purpose: Address of the draws without replacement.
        again: Address of the draws with replacement.
        fallback: ``(B, Q, R)``, indices of pixels.
    """
    allowed = mask.flatten(2)
    device, count = mask.device, allowed.sum(-1, keepdim=True)
    draws = _uniform(seeds, purpose, allowed.shape[1:], device).masked_fill(~allowed, -1)
    distinct = draws.topk(fallback.shape[-1]).indices
    repeated = (_uniform(seeds, again, fallback.shape[1:], device) * count).long()
    first = torch.arange(fallback.shape[-1], device=device).expand_as(repeated)
    indices = distinct.take_along_dim(torch.where(count < fallback.shape[-1], repeated, first), -1)
    return torch.where(count == 0, fallback, indices)


def _select(batch: PosedImages, part: slice) -> PosedImages:
    """Return the given views of all instances."""
    return batch._replace(
        images=batch.images[:, part], poses=batch.poses[:, part], intrinsics=batch.intrinsics[:, part]
    )


def _pixels(images: Tensor) -> Tensor:
    """Return images ``(B, V, 3, H, W)`` as pixels ``(B, V, H * W, 3)``."""
    return images.flatten(3).mT


def _in_unit(levels: Tensor) -> Tensor:
    """Return uint8 levels as floats in [0, 1]."""
    return levels.float().div_(255)


def _uniform(seeds: Sequence[int], purpose: str, shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw numbers ``(B, *shape)`` in [0, 1), for every instance from its own seed."""
    return torch.stack(
        [torch.rand(*shape, generator=generator_at(seed, purpose, device=device), device=device) for seed in seeds]
    )
