"""Posed images as rays: what data modules of scenes have in common, wherever their images come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, PosedImages, Samples, Views
from datamodules.cameras import orbit
from datamodules.domain import Rays
from datamodules.randomness import generator_at
from datamodules.spec import DataSpec
from modalities.views import PosedViews

_WHITE = 255  # of all channels, where a ray meets nothing
_OBJECT = 1.8  # radius around the origin beyond which no object is looked for


class SceneModule(CoordinateDataModule):
    """Posed images of scenes as rays: a few views are looked at, others are to be rendered.

    Items are `PosedImages` of equal size, support views first. A coordinate is a ray, origin and direction; in evaluation
    all rays of the query views are asked for. In training it is some of each, drawn for every instance, and a seventh number
    goes with every ray, drawn evenly from [0, 1): by it a renderer moves the samples along the ray.

    In the first epochs half of the training rays are drawn from the foreground, where the smallest channel is below white, the
    others from the whole image. Where the foreground has fewer pixels they come several times; where there is none, all rays
    are drawn from the whole image.

    Args:
        views: Support views of an instance, which are looked at.
        query_views: Views of an instance that are to be rendered.
        size: Pixels along each side of the images.
        near: Depth at which rendering starts, in world units from the plane of the camera.
        far: Depth at which it ends.
        rays_per_view: Rays of every query view in a training step; all, if it has fewer.
        foreground_epochs: Training epochs, from the first, in which half of the rays come from the foreground.
        kwargs: Arguments of `CoordinateDataModule`.

    Raises:
        ValueError: If a number is out of range.
    """

    modality = PosedViews()
    train_set: Dataset[Any]  # of posed images, or of what the augmentation makes such of
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
        **kwargs: Any,
    ) -> None:
        if views < 1 or query_views < 1 or size < 1:
            raise ValueError(f"views is {views}, query_views {query_views}, size {size}: each is at least 1.")
        if not (0 <= near < far and math.isfinite(far)):
            raise ValueError(f"near is {near}, far {far}: depths with 0 <= near < far, in world units.")
        if rays_per_view < 1 or foreground_epochs < 0:
            raise ValueError(
                f"rays_per_view is {rays_per_view}, foreground_epochs {foreground_epochs}: at least 1 ray, epochs may be 0."
            )
        super().__init__(coordinate_noise="none", coordinate_subset=None, **kwargs)
        self.views = views
        self.query_views = query_views
        self.size = size
        self.near = near
        self.far = far
        self.rays_per_view = rays_per_view
        self.foreground_epochs = foreground_epochs

    @property
    def spec(self) -> DataSpec:
        """Rays between the depths, of a colour each; the signal is that of the support views."""
        shape = (self.views, 3, self.size, self.size)
        return DataSpec(Rays(self.near, self.far), 3, shape, self.modality, self.num_instances)

    def check_depths(self, name: str, poses: Tensor) -> None:
        """Refuse depths between which no camera of a scene could see an object around the origin.

        Args:
            name: Of the scene.
            poses: ``(F, 3, 4)`` of its cameras.

        Raises:
            ValueError: If an object of radius 1.8 would lie wholly before ``near`` or beyond ``far``, for all cameras.
        """
        distances = poses[:, :, 3].norm(dim=-1)
        unseen = (self.far < distances - _OBJECT) | (self.near > distances + _OBJECT)
        if bool(unseen.all()):
            least, most = float(distances.min()), float(distances.max())
            raise ValueError(
                f"The cameras of {name} are {least:.3g} to {most:.3g} from the origin, and depths from near {self.near:g} to "
                f"far {self.far:g} are rendered: no object around the origin would be seen. Set --data.init_args.near and "
                f"--data.init_args.far around these distances, such as {max(0.0, least - 1):.3g} and {most + 1:.3g}."
            )

    def random_items(self, count: int) -> PosedImages:
        """Return collated images of random numbers, taken from around the origin.

        Args:
            count: Items.
        """
        total = self.views + self.query_views
        images = torch.randint(256, (count, total, 3, self.size, self.size), dtype=torch.uint8)
        poses = orbit(total, (self.near + self.far) / 2).expand(count, -1, -1, -1)
        names = [f"random-{index}" for index in range(count)]
        focals = torch.full((count, total, 2), float(self.size))
        return PosedImages(images, poses, focals, names, torch.arange(count))  # type: ignore[arg-type]

    def to_coordinates(self, batch: Any, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated `PosedImages`.

        Args:
            batch: ``images (B, V + Q, 3, H, W)`` uint8, of which the first ``V`` are support views, ``poses``, ``focals``,
                names and seeds.
            training: Whether some rays of the query views are drawn, or all are taken.
            step: Addresses draws that a whole batch shares; there are none.

        Returns:
            Rays of the support views, ``(B, V * H * W, 6)``, and of the query views: ``(B, Q * H * W, 6)``, or in training
            ``(B, Q * rays_per_view, 7)``, with colours in [0, 1].
        """
        support, query = (_part(batch, part) for part in (slice(self.views), slice(self.views, None)))
        rays, values = self._rays(query), _pixels(query.images)  # (B, Q, H W, 6), (B, Q, H W, 3)
        shape: tuple[int, ...] | None = (values.shape[1], *query.images.shape[-2:])
        if training:
            seeds = torch.as_tensor(batch.seed).tolist()
            chosen = self._drawn(query.images, seeds)[..., None]  # (B, Q, R, 1)
            rays, values, shape = rays.take_along_dim(chosen, 2), values.take_along_dim(chosen, 2), None
            rays = torch.cat((rays, _uniform(seeds, "jitter", rays.shape[1:3], rays.device)[..., None]), dim=-1)
        index = torch.as_tensor(batch.instance, device=rays.device) if training else None
        observed = Samples(self._rays(support).flatten(1, 2), _in_unit(_pixels(support.images)).flatten(1, 2))
        return CoordinateBatch(
            Observation(Views(_in_unit(support.images), support.poses, support.focals), observed, index),
            Samples(rays.flatten(1, 2), _in_unit(values).flatten(1, 2)),
            shape,
            list(batch.name),
        )

    def _rays(self, images: PosedImages) -> Tensor:
        """Return the rays of all pixels, ``(B, V, H * W, 6)``."""
        views, _, *size = images.images.shape[1:]
        rays = self.spec.domain.coords((views, *size), cameras=(images.poses, images.focals))
        return rays.view(*rays.shape[:-2], views, -1, 6)

    def _drawn(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return which pixels of views ``(B, Q, 3, H, W)`` are trained on, ``(B, Q, R)``."""
        pixels, device = images.shape[-2] * images.shape[-1], images.device
        places, count = (images.shape[1], pixels), min(self.rays_per_view, pixels)
        anywhere = _uniform(seeds, "rays", places, device).topk(count).indices  # without replacement
        epoch = self.trainer.current_epoch if self.trainer else 0
        if epoch >= self.foreground_epochs:
            return anywhere
        return torch.cat(
            (self._foreground(images, seeds, anywhere[..., : count // 2]), anywhere[..., count // 2 :]), -1
        )

    @staticmethod
    def _foreground(images: Tensor, seeds: Sequence[int], otherwise: Tensor) -> Tensor:
        """Return as many pixels of the foreground, drawn with replacement where it has fewer; of none, these."""
        places, device = (images.shape[1], images.shape[-2] * images.shape[-1]), images.device
        seen = images.amin(2).flatten(2) < _WHITE  # (B, Q, H W)
        count = seen.sum(-1, keepdim=True)
        order = _uniform(seeds, "foreground", places, device).masked_fill(~seen, -1).topk(otherwise.shape[-1]).indices
        again = (_uniform(seeds, "again", otherwise.shape[1:], device) * count).long()
        first = torch.arange(otherwise.shape[-1], device=device).expand_as(again)
        found = order.take_along_dim(torch.where(count < otherwise.shape[-1], again, first), -1)
        return torch.where(count == 0, otherwise, found)


def _part(batch: PosedImages, part: slice) -> PosedImages:
    """Return some views of all instances."""
    return batch._replace(images=batch.images[:, part], poses=batch.poses[:, part], focals=batch.focals[:, part])


def _pixels(images: Tensor) -> Tensor:
    """Return ``(B, V, H * W, 3)`` of ``(B, V, 3, H, W)``."""
    return images.flatten(3).mT


def _in_unit(levels: Tensor) -> Tensor:
    """Return uint8 as numbers in [0, 1]."""
    return levels.float().div_(255)


def _uniform(seeds: Sequence[int], purpose: str, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return numbers in [0, 1), ``(B, *shape)``, those of every instance drawn from its own seed."""
    drawn = [torch.rand(*shape, generator=generator_at(seed, purpose, device=device), device=device) for seed in seeds]
    return torch.stack(drawn)
