"""What a new view is worth: that of a white image, and of a training object copied: ``python -m studies.copying``.

For every test item of an experiment on scenes, the training object is found whose image from the pose of the support view
is most like it; its image from the pose of the query view is copied. Objects must have been seen by the same
cameras, as `datamodules.SampleObjects` and ``python -m tools.render_views --cameras shared`` have it.
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
    """Measure what white images and copies of training objects reach on the test items of an experiment.

    Args:
        config: YAML of the experiment; its data is made or read as in training.
    """

    config: Path = Path("configs/experiments/objects_ipc.yaml")


class Baselines(NamedTuple):
    """Means over the test items of the PSNR in dB, peak 1, of one query view each.

    Attributes:
        white: Of the white image.
        copied: Of the training object that is nearest from the support view, seen from the query view.
        best: Of the training object that is best from the query view itself, which nobody can know.
        items: Their number.
    """

    white: float
    copied: float
    best: float
    items: int


def main(args: list[str] | None = None) -> Baselines:
    """Measure for these command line arguments and print the result."""
    parser = ArgumentParser("python -m studies.copying", description=__doc__)
    parser.add_class_arguments(CopyingSettings)
    settings = CopyingSettings(**vars(parser.parse_args(args)))
    _, data, _ = build(settings.config)
    if not isinstance(data, SceneSet):
        raise ValueError(f"{settings.config} has data of {type(data).__name__}: name an experiment on scenes.")
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert isinstance(data.train_set, SceneReferences)
    assert isinstance(data.test_set, EvaluationViews)
    found = measure(data.train_set.scenes, data.test_set, data.views)
    Console().print(
        f"{found.items} views of {settings.config.stem}: white {found.white:.2f} dB, copied from the nearest training object "
        f"{found.copied:.2f} dB, from the best {found.best:.2f} dB"
    )
    return found


def measure(scenes: list[Scene], items: EvaluationViews, views: int) -> Baselines:
    """Return the baselines of items with one query view each.

    Args:
        scenes: The training objects.
        items: The test items.
        views: Support views of an item; the first one finds the nearest object.

    Raises:
        ValueError: If a pose of an item is not among those of the training objects.
    """
    images = torch.stack([_in_unit(posed(scene, range(len(scene.images)), scene.name)) for scene in scenes])
    rows = []
    for index in range(len(items)):
        item = items[index]
        seen, query = _in_unit(item)[0], _in_unit(item)[views]
        from_support, from_query = (images[:, _frame(scenes[0], item.poses[view])] for view in (0, views))
        nearest = _errors(from_support, seen).argmin()
        errors = _errors(from_query, query)
        rows.append(torch.stack((_errors(torch.ones(1), query)[0], errors[nearest], errors.min())))
    white, copied, best = (-10 * torch.stack(rows).log10()).mean(0).tolist()
    return Baselines(white, copied, best, len(rows))


def _in_unit(item: PosedImages) -> Tensor:
    """Return the images of an item ``(V, 3, H, W)`` in [0, 1]."""
    return item.images.float() / 255


def _frame(scene: Scene, pose: Tensor) -> int:
    """Return which frame of a scene has a pose."""
    distances = (scene.poses - pose).abs().amax((1, 2))
    if distances.min() > 1e-4:
        raise ValueError(
            f"{scene.name} was not seen from a pose of the test: objects must share their cameras, as SampleObjects do."
        )
    return int(distances.argmin())


def _errors(images: Tensor, wanted: Tensor) -> Tensor:
    """Return mean squared errors ``(K,)`` of images ``(K, ...)``."""
    return (images - wanted).square().reshape(len(images), -1).mean(1)


if __name__ == "__main__":
    main()
