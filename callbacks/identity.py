"""The identity test of novel views: whether a prediction is nearer to its object than to the other test objects."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from callbacks.folders import output_folder, relative_path
from callbacks.results import gather_rows
from callbacks.scenes import evaluation_views, scenes_of
from composers.evaluation import Evaluation
from datamodules.batch import CoordinateBatch
from datamodules.scenes.copying import NotSharedError, shared_frames
from datamodules.scenes.draws import EvaluationViews, posed
from datamodules.storage.files import written_whole

_CACHE_BYTES = 200e6  # of images that are kept for the next items
_CURVES = ("predicted", "refined")


class Identities(NamedTuple):
    """Mean squared errors of predicted views as those of every object, averaged over the query views and draws.

    Attributes:
        names: Names of the objects, ``K``.
        tested: Indices of the objects with predictions, ``T``; fewer than ``K`` in a test of some items.
        errors: ``(T, K)``: row ``i`` holds the errors of the predictions for object ``tested[i]`` as views of every object.
    """

    names: list[str]
    tested: list[int]
    errors: Tensor

    @property
    def nearest(self) -> list[int]:
        """Index of the object that the predictions for every tested object are nearest to."""
        result: list[int] = self.errors.argmin(1).tolist()
        return result

    @property
    def correct(self) -> int:
        """Number of tested objects whose predictions are nearest to themselves."""
        return sum(number == nearest for number, nearest in zip(self.tested, self.nearest, strict=True))

    @property
    def text(self) -> str:
        """The result in words, with the objects that are confused."""
        pairs = zip(self.tested, self.nearest, strict=True)
        wrong = [
            f"{self.names[number]} is nearest to {self.names[nearest]}"
            for number, nearest in pairs
            if number != nearest
        ]
        among = f" among {len(self.names)} objects" if len(self.tested) < len(self.names) else ""
        note = f": {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}" if wrong else ""
        return f"identity {self.correct} of {len(self.tested)}{among}{note}"


class IdentityTest(Callback):
    """Count the test objects whose predicted views are nearer to their true views than to those of all other test objects.

    A model that predicts the mean of its training objects may reach a high PSNR, but not pass this test. The query views of an
    item, which the model did not observe, are compared with the views of every test object from the same cameras by the mean
    squared error, averaged over the query views and the draws of an object. The number is printed, as ``identity 3 of 4``, for
    the prediction and after refinement; the fraction is logged as ``test/identity`` and ``test/identity_refined``, and the
    errors are written to a CSV file. With ``--trainer.limit_test_batches``, the predictions of the tested objects are still
    compared with all objects: ``identity 1 of 1 among 4 objects``.

    All test objects must have the same cameras. If they do not, a line says so, and nothing is logged.

    Args:
        max_objects: Maximum number of objects that are compared, the first ones of the test set.
        filename: Name of the CSV file in the run folder.

    Raises:
        ValueError: If ``max_objects`` is less than 2; in a test, if the data module is not a `SceneSet`.
    """

    def __init__(self, max_objects: int = 64, filename: str = "test_identity.csv") -> None:
        if max_objects < 2:
            raise ValueError(f"max_objects is {max_objects}; it must be at least 2.")
        self.max_objects = max_objects
        self.filename = filename
        self.rows: dict[str, dict[str, Tensor]] = {}
        self._views: _ObjectViews | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the class of the data before a test."""
        if stage == "test":
            scenes_of(trainer, type(self).__name__)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows, and check the cameras."""
        self.rows, self._views = {}, None
        data = scenes_of(trainer, type(self).__name__)
        items = evaluation_views(data)
        try:
            if len(items.scenes) < 2:
                raise NotSharedError("the test has a single object")
            shared_frames(items.scenes[: self.max_objects])
            self._views = _ObjectViews(items, data.views, self.max_objects)
        except NotSharedError as error:
            if trainer.is_global_zero:
                Console(soft_wrap=True).print(f"No identity test: {error}.", markup=False, highlight=False)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compare the predictions of a batch with the views of all objects."""
        if self._views is None or batch.shape is None:
            return
        evaluation: Evaluation = outputs
        steps = dict(zip(_CURVES, sorted({0, max(evaluation["values"])}), strict=False))
        for index, name in enumerate(batch.names):
            if name in self._views.frames:
                views = {curve: evaluation["values"][step][index] for curve, step in steps.items()}
                self.rows[name] = {
                    curve: self._views.errors(name, values.float().cpu().view(*batch.shape, -1))
                    for curve, values in views.items()
                }

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, print and write the results of all processes; the first process writes."""
        rows, views, folder = gather_rows(self.rows), self._views, output_folder(trainer)
        self._views = None  # frees the images
        if views is None or not rows or not trainer.is_global_zero:
            return
        console = Console(soft_wrap=True)
        results = {
            curve: views.identities({name: row[curve] for name, row in rows.items()})
            for curve in next(iter(rows.values()))
        }
        for curve, result in results.items():
            key = "test/identity" if curve == "predicted" else f"test/identity_{curve}"
            for logger in trainer.loggers:
                logger.log_metrics({key: result.correct / len(result.tested)}, trainer.global_step)
            console.print(f"{curve}: {result.text}", markup=False, highlight=False)
        if folder is not None:
            path = folder / self.filename
            _write(path, results)
            console.print(f"Errors against the views of every object: {relative_path(path)}", highlight=False)


class _ObjectViews:
    """The views of the test objects from the cameras of all items.

    Args:
        items: The test set; its objects have the same cameras.
        views: Number of support views of an item.
        max_objects: Maximum number of objects.
    """

    def __init__(self, items: EvaluationViews, views: int, max_objects: int) -> None:
        self.scenes = items.scenes[:max_objects]
        self.frames = {
            items.name_of(number, repetition): (number, items.frames(scene, repetition)[views:])
            for number, scene in enumerate(self.scenes)
            for repetition in range(items.repetitions)
        }
        rows, columns = self.scenes[0].shape
        size = max(1, int(_CACHE_BYTES / (3 * rows * columns * len(self.scenes))))
        self._images = lru_cache(size)(self._read_frame)

    def errors(self, name: str, prediction: Tensor) -> Tensor:
        """Return the mean squared error ``(K,)`` of views ``(Q, H, W, 3)`` of an item as those of every object."""
        total = torch.zeros(len(self.scenes), dtype=torch.float64)
        frames = self.frames[name][1]
        for view, frame in zip(prediction, frames, strict=True):
            truth = self._images(frame).float() / 255
            total += (truth - view.movedim(-1, 0)).square().flatten(1).mean(1)
        return total / len(frames)

    def identities(self, errors: Mapping[str, Tensor]) -> Identities:
        """Return the mean errors of every object with items over these, as views of all objects.

        Args:
            errors: Errors ``(K,)`` by item.
        """
        of_object: dict[int, list[Tensor]] = {}
        for name, row in errors.items():
            of_object.setdefault(self.frames[name][0], []).append(row)
        numbers = sorted(of_object)
        table = torch.stack([torch.stack(of_object[number]).mean(0) for number in numbers])
        return Identities([scene.name for scene in self.scenes], numbers, table)

    def _read_frame(self, frame: int) -> Tensor:
        """Return the views ``(K, 3, H, W)`` of all objects."""
        return torch.cat([posed(scene, [frame], scene.name).images for scene in self.scenes])


def _write(path: Path, results: Mapping[str, Identities]) -> None:
    """Write a row per tested object and curve with the errors as views of every object, atomically."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names: Sequence[str] = next(iter(results.values())).names
        writer.writerow(["name", "views", "nearest", *(f"mse to {name}" for name in names)])
        for curve, result in results.items():
            for number, nearest, errors in zip(result.tested, result.nearest, result.errors.tolist(), strict=True):
                writer.writerow([names[number], curve, names[nearest], *(f"{error:.6g}" for error in errors)])
