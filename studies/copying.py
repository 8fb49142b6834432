"""Baselines for novel views: a white image, and copying a training object: ``python -m studies.copying``.

For every test item of an experiment on scenes, find the training object that looks most like it from the pose of the support
view, and copy its image from the pose of the query view. All objects must share the same cameras, as those of
`datamodules.SampleObjects` and ``python -m tools.render_views --cameras shared`` do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from torch import Tensor

from benchmarks.cost import build
from datamodules.batch import PosedImages
from datamodules.scenes.base import SceneSet
from datamodules.scenes.draws import EvaluationViews, SceneReferences, posed
from datamodules.storage.views import Scene


@dataclass(frozen=True)
class CopyingSettings:
    """Measure the PSNR of white images and of copies of training objects on the test items of an experiment.

    Args:
        config: Config of the experiment.
    """

    config: Path = Path("configs/experiments/objects_voxels.yaml")


class Baselines(NamedTuple):
    """PSNR in dB, with peak 1, of one query view per item, averaged over the test items.

    Attributes:
        white: PSNR of a white image.
        copied: PSNR of a copy of the training object that is nearest in the support view.
        best: PSNR of a copy of the training object that is nearest in the query view, an upper bound.
        items: Number of test items.
    """

    white: float
    copied: float
    best: float
    items: int


def main(args: list[str] | None = None) -> Baselines:
    """Parse command-line arguments, measure the baselines and print them."""
    parser = ArgumentParser("python -m studies.copying", description=__doc__)
    parser.add_class_arguments(CopyingSettings)
    settings = CopyingSettings(**vars(parser.parse_args(args)))
    _, data, _ = build(settings.config)
    if not isinstance(data, SceneSet):
        raise ValueError(
            f"The data of {settings.config} are {type(data).__name__}; pass the config of an experiment on scenes."
        )
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert isinstance(data.train_set, SceneReferences)
    assert isinstance(data.test_set, EvaluationViews)
    result = measure(data.train_set.scenes, data.test_set, data.views)
    Console().print(
        f"{result.items} views of {settings.config.stem}: white image {result.white:.2f} dB, copy of the nearest training "
        f"object {result.copied:.2f} dB, of the best {result.best:.2f} dB"
    )
    return result


def measure(scenes: list[Scene], items: EvaluationViews, views: int) -> Baselines:
    """Return the baselines of items with one query view each.

    Args:
        scenes: Training objects.
        items: Test items.
        views: Number of support views of an item; the first one determines the nearest object.

    Raises:
        ValueError: If the training objects have no view from a pose of an item.
    """
    images = torch.stack([_in_unit(posed(scene, range(len(scene.images)), scene.name)) for scene in scenes])
    rows = []
    for index in range(len(items)):
        item = items[index]
        support, query = _in_unit(item)[0], _in_unit(item)[views]
        from_support, from_query = (images[:, _frame(scenes[0], item.poses[view])] for view in (0, views))
        nearest = _errors(from_support, support).argmin()
        errors = _errors(from_query, query)
        rows.append(torch.stack((_errors(torch.ones(1), query)[0], errors[nearest], errors.min())))
    white, copied, best = (-10 * torch.stack(rows).log10()).mean(0).tolist()
    return Baselines(white, copied, best, len(rows))


def _in_unit(item: PosedImages) -> Tensor:
    """Return the images ``(V, 3, H, W)`` of an item in [0, 1]."""
    return item.images.float() / 255


def _frame(scene: Scene, pose: Tensor) -> int:
    """Return the index of the frame of a scene with a pose."""
    distances = (scene.poses - pose).abs().amax((1, 2))
    if distances.min() > 1e-4:
        raise ValueError(
            f"{scene.name} has no view from a pose of the test set: all objects must share the same cameras, "
            "as in SampleObjects."
        )
    return int(distances.argmin())


def _errors(images: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared errors ``(K,)`` of images ``(K, ...)``."""
    return (images - target).square().reshape(len(images), -1).mean(1)


if __name__ == "__main__":
    main()
