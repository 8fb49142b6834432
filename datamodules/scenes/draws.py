"""Which views of a scene are read when: in training drawn anew in every epoch, in evaluation always the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batch import PosedImages
from datamodules.randomness import generator_at
from datamodules.storage.views import Scene, read_view

QUERIES_OF_FIRST = 25  # frames after the first, which published code renders

Protocol = Literal["draws", "halves", "first"]


class SceneReferences(Dataset[Scene]):
    """Scenes that are not read: the augmentation of training reads a few views of each, which it draws.

    Args:
        scenes: The scenes.
        repeats: Times that each comes in an epoch.
    """

    def __init__(self, scenes: Sequence[Scene], repeats: int = 1) -> None:
        self.scenes = list(scenes)
        self.repeats = repeats

    def __len__(self) -> int:
        """Return the items of an epoch."""
        return len(self.scenes) * self.repeats

    def __getitem__(self, index: int) -> Scene:
        """Return scene ``index``, counted round and round."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in an epoch of {len(self)} items")  # which also ends iteration
        return self.scenes[index % len(self.scenes)]


class ViewDraw:
    """Reads distinct views of a scene, drawn from its first frames.

    Args:
        views: How many, support and query together.
        frames: Of the scene that are drawn from, from the first.
        read: Reads an image as ``(3, H, W)`` uint8.
    """

    def __init__(self, views: int, frames: int, read: Callable[[Path], Tensor] = read_view) -> None:
        self.views = views
        self.frames = frames
        self.read = read

    def __call__(self, scene: Scene, generator: torch.Generator) -> PosedImages:
        """Return the views, or raise a ``ValueError`` that names the image which cannot be read."""
        order = torch.randperm(min(len(scene.images), self.frames), generator=generator)[: self.views]
        return posed(scene, order.tolist(), scene.name, self.read)


class EvaluationViews(Dataset[PosedImages]):
    """Views of scenes for evaluation, the same in every run: each scene several times, with other views.

    Args:
        scenes: The scenes.
        frames: Returns which frames of a scene are read in which repetition, support first.
        repetitions: How often every scene comes.
        read: Reads an image as ``(3, H, W)`` uint8.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        frames: Callable[[Scene, int], list[int]],
        repetitions: int = 1,
        read: Callable[[Path], Tensor] = read_view,
    ) -> None:
        self.scenes = list(scenes)
        self.frames = frames
        self.repetitions = repetitions
        self.read = read

    def __len__(self) -> int:
        """Return the number of scenes times that of repetitions."""
        return len(self.scenes) * self.repetitions

    def __getitem__(self, index: int) -> PosedImages:
        """Return repetition ``index % repetitions`` of scene ``index // repetitions``."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in {len(self)} items")  # which also ends iteration
        scene, repetition = self.scenes[index // self.repetitions], index % self.repetitions
        name = scene.name if self.repetitions == 1 else f"{scene.name}.{repetition:03d}"
        return posed(scene, self.frames(scene, repetition), name, self.read)


def posed(scene: Scene, frames: Sequence[int], name: str, read: Callable[[Path], Tensor] = read_view) -> PosedImages:
    """Return some frames of a scene, read.

    Args:
        scene: The scene.
        frames: Which of its images, in this order.
        name: Of the item.
        read: Reads an image as ``(3, H, W)`` uint8.

    Raises:
        ValueError: If an image cannot be read, or has another size than its header said; the message names it.
    """
    images = [read(scene.images[frame]) for frame in frames]
    for frame, image in zip(frames, images, strict=True):
        if tuple(image.shape[1:]) != scene.shape:
            raise ValueError(
                f"{scene.images[frame]} has {image.shape[1]} x {image.shape[2]} pixels, when its scene was first read it had "
                f"{scene.shape[0]} x {scene.shape[1]}: take it from its source again."
            )
    return PosedImages(torch.stack(images), scene.poses[list(frames)], scene.focals[list(frames)], name)


def drawn_frames(
    scene: Scene, repetition: int, *, views: int, query_views: int, train_frames: int, protocol: Protocol
) -> list[int]:
    """Return which frames of a scene are seen in a repetition, support first; a function of its name and these numbers.

    The query views do not depend on how many support views there are, and fewer support views are the first of more.

    Args:
        scene: The scene.
        repetition: Which draw, from 0.
        views: Support views.
        query_views: Query views.
        train_frames: Where ``halves`` are cut.
        protocol: As for `SceneSet`.
    """
    total = len(scene.images)
    if protocol == "first":
        return list(range(1 + QUERIES_OF_FIRST))
    generator = generator_at("views", scene.name, repetition)
    if protocol == "draws":
        order = torch.randperm(total, generator=generator).tolist()
        return order[query_views : query_views + views] + order[:query_views]
    queries = train_frames + torch.randperm(total - train_frames, generator=generator)
    support = torch.randperm(train_frames, generator=generator)
    return support[:views].tolist() + queries[:query_views].tolist()
