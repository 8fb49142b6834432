"""The scenes of a test, for callbacks that compare views of objects."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import Trainer

from datamodules.scenes.base import SceneSet
from datamodules.scenes.draws import EvaluationViews, SceneReferences
from datamodules.storage.views import Scene


def scenes_of(trainer: Trainer, callback: str) -> SceneSet:
    """Return the data module of a trainer.

    Args:
        trainer: The trainer.
        callback: Name of the callback that needs scenes.

    Raises:
        ValueError: If the data are not scenes in folders.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, SceneSet):
        raise ValueError(
            f"{callback} compares views of scenes, and the data is {type(data).__name__}: remove the callback."
        )
    return data


def evaluation_views(data: SceneSet) -> EvaluationViews:
    """Return the test set of scenes, which must be set up."""
    assert isinstance(data.test_set, EvaluationViews)
    return data.test_set


def training_scenes(data: SceneSet) -> Sequence[Scene]:
    """Return the usable training objects, also if only the test was set up."""
    train_set = getattr(data, "train_set", None)
    return train_set.scenes if isinstance(train_set, SceneReferences) else data.readable("train")[0]
