"""Copies of training views: the baseline of novel views for objects that share their cameras."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from callbacks.folders import output_folder, relative_path
from callbacks.results import gather_rows
from callbacks.scenes import evaluation_views, scenes_of, training_scenes
from datamodules.batch import CoordinateBatch
from datamodules.scenes.copying import CopiedItem, NotSharedError, copied_items
from datamodules.storage.files import written_whole
from datamodules.storage.progress import is_first_process


class NearestTrainingView(Callback):
    """Copy the views of the training object that is nearest to every test item, print the mean PSNR, and write a CSV file.

    A model that is not better than these copies is no better than retrieval. The nearest training object has the smallest mean
    squared error in the support views; its views from the cameras of the query views are compared with the true views, as those
    of the model are. The CSV file also contains the PSNR of the best copy, an upper bound of retrieval, and of white images.
    Means are logged as ``test/copied_psnr`` and ``test/best_copied_psnr``. Only the items that were tested are compared, fewer
    with ``--trainer.limit_test_batches``.

    All objects must have the same cameras. If they do not, a line says so, and nothing is logged.

    Args:
        filename: Name of the CSV file in the run folder.

    Raises:
        ValueError: In a test, if the data module is not a `SceneSet`.
    """

    def __init__(self, filename: str = "test_copied.csv") -> None:
        self.filename = filename
        self.tested: dict[str, None] = {}  # names of items

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the class of the data before a test."""
        if stage == "test":
            scenes_of(trainer, type(self).__name__)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the names."""
        self.tested = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the names of a batch."""
        self.tested |= dict.fromkeys(batch.names)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, log, print and write the tested items of all processes, on the first process."""
        tested, folder = gather_rows(self.tested), output_folder(trainer)
        if not tested or not is_first_process():
            return
        data = scenes_of(trainer, type(self).__name__)
        console = Console(soft_wrap=True)
        try:
            rows = copied_items(training_scenes(data), evaluation_views(data), data.views, tested)
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


def _write(path: Path, rows: Sequence[CopiedItem]) -> None:
    """Write the rows as CSV, atomically."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "nearest", "psnr copied", "psnr best", "psnr white"])
        writer.writerows([row.name, row.nearest, *(f"{value:.5g}" for value in row[2:])] for row in rows)
