"""Copies of training views: the baseline of novel views for objects that share their cameras."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from callbacks.folders import output_folder, relative_path
from datamodules.scenes.base import SceneSet
from datamodules.scenes.copying import CopiedItem, NotSharedError, copied_items
from datamodules.scenes.draws import EvaluationViews, SceneReferences
from datamodules.storage.files import written_whole
from datamodules.storage.progress import is_first_process
from datamodules.storage.views import Scene


class NearestTrainingView(Callback):
    """Copy the views of the training object that is nearest to every test item, print the mean PSNR, and write a CSV file.

    A model that is not better than these copies is no better than retrieval. The nearest training object has the smallest mean
    squared error in the support views; its views from the cameras of the query views are compared with the true views, as those
    of the model are. The CSV file also contains the PSNR of the best copy, an upper bound of retrieval, and of white images.
    Means are logged as ``test/copied_psnr`` and ``test/best_copied_psnr``.

    All objects must have the same cameras. If they do not, a line says so, and nothing is logged.

    Args:
        filename: Name of the CSV file in the run folder.

    Raises:
        ValueError: In a test, if the data module is not a `SceneSet`.
    """

    def __init__(self, filename: str = "test_copied.csv") -> None:
        self.filename = filename

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, log, print and write, on the first process."""
        folder = output_folder(trainer)
        if not is_first_process():
            return
        data = scenes_of(trainer, "NearestTrainingView")
        console = Console(soft_wrap=True)
        try:
            rows = copied_items(training_scenes(data), evaluation_views(data), data.views)
        except NotSharedError as error:
            console.print(f"No copies of training views: {error}.", markup=False, highlight=False)
            return
        copied, best = statistics.fmean(row.copied for row in rows), statistics.fmean(row.best for row in rows)
        for logger in trainer.loggers:
            logger.log_metrics({"test/copied_psnr": copied, "test/best_copied_psnr": best}, trainer.global_step)
        console.print(
            f"Copies of the nearest training object: {copied:.2f} dB, of the best: {best:.2f} dB (means of {len(rows)} items)",
            highlight=False,
        )
        if folder is not None:
            path = folder / self.filename
            _write(path, rows)
            console.print(f"Copies of training views: {relative_path(path)}", highlight=False)


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


def _write(path: Path, rows: Sequence[CopiedItem]) -> None:
    """Write the rows as CSV, atomically."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "nearest", "psnr copied", "psnr best", "psnr white"])
        writer.writerows([row.name, row.nearest, *(f"{value:.5g}" for value in row[2:])] for row in rows)
