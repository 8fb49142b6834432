"""Baselines for novel views: a white image, and copying a training object: ``python -m studies.copying``.

For every test item of an experiment on scenes, find the training object that looks most like it from the poses of the support
views, and copy its image from the pose of the query view. All objects must share the same cameras, as those of
`datamodules.SampleObjects` and ``python -m tools.render_views --cameras shared`` do. Training objects are read in turn, so that
memory does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from torch import Tensor

from benchmarks.cost import build
from datamodules.scenes.base import SceneSet
from datamodules.scenes.draws import EvaluationViews, SceneReferences, posed
from datamodules.storage.progress import counting
from datamodules.storage.views import Scene


@dataclass(frozen=True)
class CopyingSettings:
    """Measure the PSNR of white images and of copies of training objects on the test items of an experiment.

    Args:
        config: Config of the experiment.
        views: Numbers of support views by which the nearest training object is found.

    Raises:
        ValueError: If there are no numbers of views, or one is below 1.
    """

    config: Path = Path("configs/experiments/objects_ipc.yaml")
    views: tuple[int, ...] = (1, 3)

    def __post_init__(self) -> None:
        """Check the numbers of views."""
        if not self.views or min(self.views) < 1:
            raise ValueError(
                f"views is {list(self.views)}: pass numbers of support views of at least 1, such as [1, 3]."
            )


class Baselines(NamedTuple):
    """PSNR in dB, with peak 1, of one query view per item, averaged over the test items.

    Attributes:
        views: Number of support views.
        white: PSNR of a white image.
        copied: PSNR of a copy of the training object with the smallest mean squared error over the support views.
        best: PSNR of a copy of the training object that is nearest in the query view, an upper bound.
        items: Number of test items.
    """

    views: int
    white: float
    copied: float
    best: float
    items: int


def main(args: list[str] | None = None) -> list[Baselines]:
    """Parse command-line arguments, measure the baselines for each number of support views and print them."""
    parser = ArgumentParser("python -m studies.copying", description=__doc__)
    parser.add_class_arguments(CopyingSettings)
    settings = CopyingSettings(**vars(parser.parse_args(args)))
    _, data, _ = build(settings.config)
    if not isinstance(data, SceneSet):
        raise ValueError(
            f"The data of {settings.config} are {type(data).__name__}; pass the config of an experiment on scenes."
        )
    if data.protocol == "first" and max(settings.views) > 1:
        raise ValueError(
            f"views is {list(settings.views)}, but the protocol first of {settings.config} has one support view: pass "
            "--views [1]."
        )
    data.views = max(settings.views)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert isinstance(data.train_set, SceneReferences)
    assert isinstance(data.test_set, EvaluationViews)
    results = measure(data.train_set.scenes, data.test_set, settings.views)
    console = Console(soft_wrap=True)
    for result in results:
        console.print(
            f"{result.items} views of {settings.config.stem}, {len(data.train_set.scenes)} training objects, {result.views} "
            f"support view(s): white image {result.white:.2f} dB, copy of the nearest training object {result.copied:.2f} dB, "
            f"of the best {result.best:.2f} dB"
        )
    return results


def measure(scenes: Sequence[Scene], items: EvaluationViews, views: Sequence[int]) -> list[Baselines]:
    """Return the baselines of items with one query view each, for each number of support views.

    Args:
        scenes: Training objects.
        items: Test items with as many support views as the largest number; a smaller number uses the first ones, as the draws
            of evaluation do.
        views: Numbers of support views.

    Raises:
        ValueError: If the training objects have no view from a pose of an item.
    """
    most = max(views)
    targets = [items[index] for index in range(len(items))]
    images = torch.stack([item.images[: most + 1] for item in targets])  # (I, V, 3, H, W)
    errors = []
    with counting("comparing objects", len(scenes)) as show:
        for done, scene in enumerate(scenes, 1):
            frames = _frames(scene, torch.stack([item.poses[: most + 1] for item in targets]))
            errors.append(_errors(scene, frames, images))
            show(done)
    table = torch.stack(errors)  # (K, I, V)
    on_query = table[..., most]
    white = _squared_errors(torch.full_like(images[:, most], 255), images[:, most])
    results = []
    for number in views:
        nearest = table[..., :number].mean(-1).argmin(0, keepdim=True)
        rows = torch.stack((white, on_query.gather(0, nearest)[0], on_query.amin(0)))
        white_psnr, copied, best = (-10 * rows.log10()).mean(1).tolist()
        results.append(Baselines(number, white_psnr, copied, best, len(targets)))
    return results


def _frames(scene: Scene, poses: Tensor) -> Tensor:
    """Return the indices ``(...)`` of the frames of a scene with poses ``(..., 3, 4)``."""
    distances = (scene.poses.flatten(1) - poses.flatten(-2)[..., None, :]).abs().amax(-1)
    nearest = distances.min(-1)
    if nearest.values.max() > 1e-4:
        raise ValueError(
            f"{scene.name} has no view from a pose of the test set: all objects must share the same cameras, "
            "as in SampleObjects."
        )
    return nearest.indices


def _errors(scene: Scene, frames: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared errors ``(I, V)`` of frames ``(I, V)`` of a scene from images ``(I, V, 3, H, W)``."""
    used, places = frames.unique(return_inverse=True)
    images = posed(scene, used.tolist(), scene.name).images
    return torch.stack([_squared_errors(images[place], target) for place, target in zip(places, targets, strict=True)])


def _squared_errors(images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared errors ``(K,)``, with peak 1, of uint8 images ``(K, 3, H, W)``."""
    return ((images.float() - targets.float()) / 255).square().flatten(1).mean(1)


if __name__ == "__main__":
    main()
