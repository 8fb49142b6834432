"""Baselines for novel views: a white image, and copying a training object: ``python -m studies.copying``.

For every test item of an experiment on scenes, find the training object that looks most like it from the poses of the support
views, and copy its image from the pose of the query view. All objects must share the same cameras, as those of
`datamodules.SampleObjects` and ``python -m tools.render_views --cameras shared`` do. Training objects are read in turn, so that
memory does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import ArgumentParser
from rich.console import Console

from benchmarks.cost import build
from datamodules.scenes.base import SceneSet
from datamodules.scenes.copying import NotSharedError, copied_items
from datamodules.scenes.draws import EvaluationViews, SceneReferences
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

    config: Path = Path("configs/experiments/objects_voxels.yaml")
    views: tuple[int, ...] = (1, 3)

    def __post_init__(self) -> None:
        """Check the numbers of views."""
        if not self.views or min(self.views) < 1:
            raise ValueError(
                f"views is {list(self.views)}: pass numbers of support views of at least 1, such as [1, 3]."
            )


class Baselines(NamedTuple):
    """PSNR in dB, with peak 1, averaged over the query views and the test items.

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
    """Return the baselines of items for each number of support views.

    Args:
        scenes: Training objects.
        items: Test items; a smaller number of support views uses the first ones of a larger number.
        views: Numbers of support views.

    Raises:
        ValueError: If objects do not share their cameras.
    """
    assert isinstance(items.frames, partial)
    results = []
    for number in views:
        drawn = EvaluationViews(items.scenes, partial(items.frames, views=number), items.repetitions)
        try:
            copied = copied_items(scenes, drawn, number)
        except NotSharedError as error:
            raise ValueError(f"All objects must share the same cameras, as in SampleObjects: {error}.") from error
        white, nearest, best = torch.tensor([(item.white, item.copied, item.best) for item in copied]).mean(0).tolist()
        results.append(Baselines(number, white, nearest, best, len(copied)))
    return results


if __name__ == "__main__":
    main()
