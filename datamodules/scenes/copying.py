"""Compare objects that share their cameras: the nearest training object of a test item, and copies of its views."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.scenes.draws import EvaluationViews, posed
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting
from datamodules.storage.views import Scene

_TOLERANCE = 1e-4  # of poses in world units, and of intrinsics relative to the size of the image
_IMAGE_BYTES = 200e6  # of the images of a chunk of objects
_WHITE = 255
_SMALLEST_ERROR = 1e-12  # limits the PSNR to 120 dB


class NotSharedError(ValueError):
    """Objects do not share their cameras, so their views cannot be compared."""


class CopiedItem(NamedTuple):
    """A test item, and the PSNR in dB of images that are not predicted, averaged over its query views.

    Attributes:
        name: Name of the item.
        nearest: Name of the training object that is nearest in the support views, by the mean squared error.
        copied: PSNR of the views of this object.
        best: PSNR of the views of the training object for which it is highest: an upper bound.
        white: PSNR of white images.
    """

    name: str
    nearest: str
    copied: float
    best: float
    white: float


def copied_items(
    training: Sequence[Scene], items: EvaluationViews, views: int, names: Container[str] | None = None
) -> list[CopiedItem]:
    """Return the nearest training object of every item, and how well copies of its views show the item.

    Images are read in chunks of objects, so that memory is bounded, and compared as 8-bit values.

    Args:
        training: Training objects, all with the same cameras.
        items: Test items, with the same cameras.
        views: Number of support views of an item.
        names: Names of the items to compare; the images and cameras of other objects are not read. All if None.

    Raises:
        NotSharedError: If objects have different cameras; the message names them.
    """
    drawn = _drawn(items, names)
    if not drawn:
        return []
    scenes, draws = [scene for scene, _ in drawn], [frames for _, frames in drawn]
    places = shared_frames(scenes, training)
    rows = []
    for chunk in _chunks(scenes, max(len(_union(frames.values())) for frames in draws)):
        used = _union(frames for index in chunk for frames in draws[index].values())
        errors = _errors([scenes[index] for index in chunk], training, used, places)
        columns = {frame: column for column, frame in enumerate(used)}
        for place, index in enumerate(chunk):
            for name, frames in draws[index].items():
                support, query = ([columns[frame] for frame in part] for part in (frames[:views], frames[views:]))
                copied = _psnr(errors.copied[place][:, query]).mean(1)
                nearest = int(errors.copied[place][:, support].mean(1).argmin())
                white = _psnr(errors.white[place, query]).mean()
                numbers = (float(value) for value in (copied[nearest], copied.max(), white))
                rows.append(CopiedItem(name, training[nearest].name, *numbers))
    return rows


def _drawn(items: EvaluationViews, names: Container[str] | None) -> list[tuple[Scene, dict[str, list[int]]]]:
    """Return the scenes that have items of these names, each with the frames of these items by name; all if None."""
    drawn = []
    for number, scene in enumerate(items.scenes):
        of_scene = {items.name_of(number, repetition): repetition for repetition in range(items.repetitions)}
        frames = {
            name: items.frames(scene, repetition)
            for name, repetition in of_scene.items()
            if names is None or name in names
        }
        if frames:
            drawn.append((scene, frames))
    return drawn


class _Errors(NamedTuple):
    """Mean squared errors of images in [0, 1].

    Attributes:
        copied: ``(T, K, F)``, of the views of ``K`` training objects as those of ``T`` test objects.
        white: ``(T, F)``, of white images.
    """

    copied: Tensor
    white: Tensor


def shared_frames(scenes: Sequence[Scene], others: Sequence[Scene] = ()) -> list[int]:
    """Return the frame of other objects that has the camera of each frame of objects with equal cameras.

    Args:
        scenes: Objects that must have equal cameras, frame by frame.
        others: Other objects, for which the same holds; ``scenes`` if empty.

    Raises:
        NotSharedError: If objects have different cameras, or the other objects lack a camera.
    """
    for group in (scenes, others):
        for scene in group[1:]:
            if not _equal(_cameras(scene), _cameras(group[0])):
                raise NotSharedError(f"{group[0].name} and {scene.name} have different cameras")
    scene, other = scenes[0], (others or scenes)[0]
    smallest, places = (_cameras(scene)[:, None] - _cameras(other)).abs().amax(-1).min(1)
    if len(missing := (smallest > _TOLERANCE).nonzero()):
        raise NotSharedError(f"{other.name} has no view from the camera of frame {int(missing[0])} of {scene.name}")
    result: list[int] = places.tolist()
    return result


def view_errors(images: Tensor, others: Tensor) -> Tensor:
    """Return the mean squared errors ``(A, B, F)`` of views, for images in [0, 1]; exact for equal images.

    Args:
        images: ``(A, F, 3, H, W)`` uint8.
        others: ``(B, F, 3, H, W)`` uint8.
    """
    errors = []
    for view in range(images.shape[1]):
        first, second = (part[:, view].flatten(1).double() for part in (images, others))  # sums of integers, so exact
        squares = first.square().sum(1)[:, None] + second.square().sum(1) - 2 * first @ second.mT
        errors.append(squares.float() / (255**2 * first.shape[1]))
    return torch.stack(errors, dim=-1)


def _errors(
    scenes: Sequence[Scene],
    training: Sequence[Scene],
    used: Sequence[int],
    places: Sequence[int],
) -> _Errors:
    """Return the errors of all training objects and of white images, for some test objects and frames."""

    def images_of(scene: Scene, frames: Sequence[int]) -> Tensor:
        return posed(scene, frames, scene.name).images

    images = torch.stack([images_of(scene, used) for scene in scenes])
    white = view_errors(images, torch.full_like(images[:1], _WHITE))[:, 0]
    frames, parts, done = [places[frame] for frame in used], [], 0
    with counting("reading training objects", len(training)) as show:
        for chunk in _chunks(training, len(used)):
            others = list(in_order(partial(images_of, frames=frames), [training[number] for number in chunk]))
            parts.append(view_errors(images, torch.stack(others)))
            show(done := done + len(others))
    return _Errors(torch.cat(parts, dim=1), white)


def _union(draws: Iterable[Sequence[int]]) -> list[int]:
    """Return the frames that occur in any draw, in ascending order."""
    return sorted({frame for frames in draws for frame in frames})


def _chunks(scenes: Sequence[Scene], frames: int) -> Iterator[range]:
    """Yield consecutive indices of objects, of which these many frames fit into memory."""
    size = max(1, int(_IMAGE_BYTES / (3 * math.prod(scenes[0].shape) * frames)))
    for start in range(0, len(scenes), size):
        yield range(start, min(start + size, len(scenes)))


def _cameras(scene: Scene) -> Tensor:
    """Return the poses, and the intrinsics relative to the size of the image, of all frames as rows."""
    return torch.cat((scene.poses.flatten(1), scene.intrinsics / max(scene.shape)), dim=1)


def _equal(cameras: Tensor, others: Tensor) -> bool:
    """Return whether cameras are equal, frame by frame."""
    return cameras.shape == others.shape and bool(((cameras - others).abs() <= _TOLERANCE).all())


def _psnr(errors: Tensor) -> Tensor:
    """Return the PSNR in dB of mean squared errors, for a peak of 1."""
    return -10 * errors.clamp(min=_SMALLEST_ERROR).log10()
