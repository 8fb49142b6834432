"""Select the views of a scene: a new draw in every training epoch, the same views in every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch.utils.data import Dataset

from datamodules.batch import PosedImages
from datamodules.cameras import scaled_intrinsics
from datamodules.randomness import generator_at
from datamodules.storage.folders import Split
from datamodules.storage.images import resize_image
from datamodules.storage.views import Scene

QUERIES_OF_FIRST = 25  # query frames after the first frame, as in the published code

Protocol = Literal["draws", "halves", "first", "all"]


class SceneReferences(Dataset[Scene]):
    """Training scenes as file paths and cameras; the augmentation (`ViewDraw`) draws and reads a few views of each.

    Args:
        scenes: The scenes.
        repeats: Number of times that each scene occurs in an epoch.
    """

    def __init__(self, scenes: Sequence[Scene], repeats: int = 1) -> None:
        self.scenes = list(scenes)
        self.repeats = repeats

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self.scenes) * self.repeats

    def __getitem__(self, index: int) -> Scene:
        """Return scene ``index`` modulo the number of scenes."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} items")  # also ends iteration
        return self.scenes[index % len(self.scenes)]


class ViewDraw:
    """Draw distinct views from the training frames of a scene, and read them.

    Args:
        views: Number of views, support and query together.
        frames: Number of leading frames of the scene to draw from, if the scene has no splits.
    """

    def __init__(self, views: int, frames: int) -> None:
        self.views = views
        self.frames = frames

    def __call__(self, scene: Scene, generator: torch.Generator) -> PosedImages:
        """Return the drawn views.

        Raises:
            ValueError: If an image cannot be read; the message names it.
        """
        count = len(training_frames(scene, self.frames))
        order = torch.randperm(count, generator=generator)[: self.views]
        return posed(scene, order.tolist(), scene.name)


class EvaluationViews(Dataset[PosedImages]):
    """Views of scenes for evaluation, the same in every run: each scene once or several times, with different views.

    Args:
        scenes: The scenes.
        frames: Returns the frame indices for a scene and a repetition, support first.
        repetitions: Number of times that each scene occurs.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        frames: Callable[[Scene, int], list[int]],
        repetitions: int = 1,
    ) -> None:
        self.scenes = list(scenes)
        self.frames = frames
        self.repetitions = repetitions

    def __len__(self) -> int:
        """Return the number of scenes times the number of repetitions."""
        return len(self.scenes) * self.repetitions

    def __getitem__(self, index: int) -> PosedImages:
        """Return repetition ``index % repetitions`` of scene ``index // repetitions``."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} items")  # also ends iteration
        number, repetition = divmod(index, self.repetitions)
        scene = self.scenes[number]
        return posed(scene, self.frames(scene, repetition), self.name_of(number, repetition))

    def name_of(self, number: int, repetition: int) -> str:
        """Return the name of a repetition of a scene: with the number of the draw if there are several."""
        name = self.scenes[number].name
        return name if self.repetitions == 1 else f"{name}.{repetition:03d}"


def training_frames(scene: Scene, train_frames: int) -> range:
    """Return the frames of a scene for training: those of its split, or else its leading frames.

    Args:
        scene: The scene.
        train_frames: Number of leading frames.
    """
    return scene.splits["train"] if scene.splits else range(min(len(scene.images), train_frames))


def held_out_frames(scene: Scene, train_frames: int, split: Split) -> range:
    """Return the frames of a scene that are not for training: those of a split, or else all after the leading frames."""
    return scene.splits[split] if scene.splits else range(min(len(scene.images), train_frames), len(scene.images))


def posed(scene: Scene, frames: Sequence[int], name: str, shape: tuple[int, int] | None = None) -> PosedImages:
    """Read the given frames of a scene.

    Args:
        scene: The scene.
        frames: Indices of the frames, in the order of the result.
        name: Name of the item.
        shape: Rows and columns of the result, to which every image is resized as soon as it is read, and the intrinsics are
            scaled; those of the images if None.

    Raises:
        ValueError: If an image cannot be read, or its size changed since set-up; the message names it.
    """
    images, intrinsics = (scene.read(frame) for frame in frames), scene.intrinsics[list(frames)]
    if shape is not None and shape != scene.shape:
        images = (resize_image(image, *shape) for image in images)
        intrinsics = scaled_intrinsics(intrinsics, scene.shape, shape)
    return PosedImages(torch.stack(list(images)), scene.poses[list(frames)], intrinsics, name)


def drawn_frames(
    scene: Scene,
    repetition: int,
    *,
    views: int,
    query_views: int,
    train_frames: int,
    protocol: Protocol,
    split: Split = "test",
) -> list[int]:
    """Return the frame indices of a scene in a repetition, support first, from its name and these numbers alone.

    The query views do not depend on the number of support views, and a smaller support set is a prefix of a larger one. The
    support views of ``all`` are those of ``draws``; its query views are all others, in the order of the frames. In scenes with
    splits, support views are from training frames and query views from the frames of the split.

    Args:
        scene: The scene.
        repetition: Index of the draw.
        views: Number of support views.
        query_views: Number of query views.
        train_frames: Index of the first frame of the second half in ``halves``.
        protocol: As in `SceneSet`.
        split: The split that is evaluated.
    """
    total = len(scene.images)
    training, held_out = training_frames(scene, train_frames), held_out_frames(scene, train_frames, split)
    if protocol == "first":
        return [0, *(held_out if scene.splits else range(1, total))[:QUERIES_OF_FIRST]]
    generator = generator_at("views", scene.name, repetition)
    if protocol in ("draws", "all") and not scene.splits:
        order: list[int] = torch.randperm(total, generator=generator).tolist()
        observed = order[query_views : query_views + views]
        if protocol == "draws":
            return observed + order[:query_views]
        return observed + [frame for frame in range(total) if frame not in observed]
    queries = held_out.start + torch.randperm(len(held_out), generator=generator)
    support = torch.randperm(len(training), generator=generator)
    if protocol == "all":
        return support[:views].tolist() + list(held_out)
    return support[:views].tolist() + queries[:query_views].tolist()
