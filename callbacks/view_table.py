"""Metrics of every view of a test, as a CSV file."""

from __future__ import annotations

import csv
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from callbacks.folders import output_folder, relative_path
from callbacks.results import gather_rows, metrics_of
from composers.evaluation import Evaluation
from datamodules.batch import CoordinateBatch
from datamodules.scenes.draws import EvaluationViews
from datamodules.storage.files import written_whole
from modalities.view_metrics import ViewMetric, complete_views


class ViewTable(Callback):
    """Write the metrics of every query view to a CSV file after a test, for the prediction and after refinement.

    A row holds the name of the item, the index of the frame in its scene, the number of refinement steps, and the metrics of
    the model that are computed per view (`modalities.view_metrics.ViewMetric`).

    Args:
        filename: Name of the CSV file in the run folder.
    """

    def __init__(self, filename: str = "test_views.csv") -> None:
        self.filename = filename
        self.rows: dict[str, list[list[Any]]] = {}
        self._frames: dict[str, list[int]] = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows, and list the query frames of all items."""
        self.rows, self._frames = {}, {}
        data = getattr(trainer, "datamodule", None)
        items = getattr(data, "test_set", None)
        if isinstance(items, EvaluationViews):
            self._frames = {
                items.name_of(number, repetition): items.frames(scene, repetition)[data.views :]  # type: ignore[union-attr]
                for number, scene in enumerate(items.scenes)
                for repetition in range(items.repetitions)
            }

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the rows of a batch."""
        evaluation: Evaluation = outputs
        metrics = _view_metrics(pl_module)
        if not metrics or not complete_views(batch.shape):
            return
        for step in sorted({0, max(evaluation["values"])}):
            values = [
                metric.per_view(evaluation["values"][step], batch.query, batch.shape).tolist()
                for metric in metrics.values()
            ]
            for index, name in enumerate(batch.names):
                frames = self._frames.get(name, list(range(batch.shape[0])))
                rows = zip(frames, *(metric[index] for metric in values), strict=True)
                self.rows.setdefault(name, []).extend([frame, step, *numbers] for frame, *numbers in rows)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of all processes; the first process writes."""
        rows, folder = gather_rows(self.rows), output_folder(trainer)
        if folder is None or not rows or not trainer.is_global_zero:
            return
        path = folder / self.filename
        with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "frame", "steps", *_view_metrics(pl_module)])
            writer.writerows([name, *row] for name, views in rows.items() for row in views)
        Console(soft_wrap=True).print(f"Metrics of every view: {relative_path(path)}", highlight=False)


def _view_metrics(module: LightningModule) -> dict[str, ViewMetric]:
    """Return the metrics of a model that are computed per view."""
    return {name: metric for name, metric in metrics_of(module).items() if isinstance(metric, ViewMetric)}
