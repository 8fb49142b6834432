"""The nearest training shape of every test shape: the baseline of models of shapes."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from rich.console import Console
from scipy.spatial import cKDTree

from callbacks.folders import output_folder, relative_path
from callbacks.results import metrics_of
from datamodules.shapes.base import ShapeModule
from datamodules.shapes.samples import StoredShape
from datamodules.storage.files import written_whole
from datamodules.storage.progress import counting, is_first_process
from modalities.shape_metrics import SurfaceMetric, proximity
from modalities.triangle_mesh import SurfacePoints

_COARSE_POINTS = 256  # of every shape, by which training shapes are ranked


class NearestRow(NamedTuple):
    """The nearest training shape of a test shape.

    Attributes:
        name: Name of the test shape.
        nearest: Name of the training shape.
        metrics: Metrics of its surface by name.
    """

    name: str
    nearest: str
    metrics: Mapping[str, float]


class NearestTrainingShape(Callback):
    """Compare every test shape with the training shapes, print the means for the nearest, and write them to a CSV file.

    A model that is not closer to a test shape than the nearest training shape is no better than retrieval. Training shapes are
    ranked by the Chamfer distance between 256 surface points; the first ``candidates`` are compared with the surface points of
    the test shape by all surface metrics of the model. Means are logged as ``test/nearest_chamfer``, and so on.

    Args:
        candidates: Number of training shapes that are compared by all their points.
        filename: Name of the CSV file in the run folder.

    Raises:
        ValueError: If ``candidates`` is not positive; in a test, if the data module is not a `ShapeModule`, or a shape has no
            surface points.
    """

    def __init__(self, candidates: int = 20, filename: str = "test_nearest.csv") -> None:
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}; it must be at least 1.")
        self.candidates = candidates
        self.filename = filename

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, log, print and write, on the first process."""
        folder = output_folder(trainer)
        if not is_first_process():
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ShapeModule):
            raise ValueError(
                f"NearestTrainingShape compares shapes, and the data is {type(data).__name__}: remove the callback."
            )
        metrics = {name: metric for name, metric in metrics_of(pl_module).items() if isinstance(metric, SurfaceMetric)}
        if not metrics:
            return
        rows = nearest_rows(data, metrics, self.candidates)
        means = {name: statistics.fmean(row.metrics[name] for row in rows) for name in metrics}
        for logger in trainer.loggers:
            logger.log_metrics({f"test/nearest_{name}": value for name, value in means.items()}, trainer.global_step)
        console = Console(soft_wrap=True)
        text = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        console.print(f"Nearest of the training shapes: {text} (means of {len(rows)} shapes)", highlight=False)
        if folder is not None:
            path = folder / self.filename
            _write(path, rows)
            console.print(f"Nearest training shapes: {relative_path(path)}", highlight=False)


def nearest_rows(data: ShapeModule, metrics: Mapping[str, SurfaceMetric], candidates: int = 20) -> list[NearestRow]:
    """Return the nearest training shape of every test shape.

    Args:
        data: Data of shapes; its test set must be set up.
        metrics: Metrics by name; the nearest shape is that of the smallest Chamfer-L1 distance.
        candidates: Number of training shapes that are compared by all their points.
    """
    training = data.shapes("train")
    coarse = [cKDTree(_coarse(shape)) for shape in training]
    rows = []
    items = [data.test_set[index] for index in range(len(data.test_set))]  # type: ignore[arg-type]
    with counting("nearest training shapes", len(items)) as show:
        for done, item in enumerate(items, 1):
            on_surface = item.query[:, 3] == 0
            true = SurfacePoints(
                item.query[on_surface, :3].double().numpy(), item.query_normals[on_surface].double().numpy()
            )
            rows.append(_nearest(data, item.name, true, training, coarse, metrics, candidates))
            show(done)
    return rows


def _nearest(
    data: ShapeModule,
    name: str,
    true: SurfacePoints,
    training: Sequence[StoredShape],
    coarse: Sequence[cKDTree],
    metrics: Mapping[str, SurfaceMetric],
    candidates: int,
) -> NearestRow:
    """Return the nearest training shape of one shape."""
    few = true.points[:: max(1, len(true.points) // _COARSE_POINTS)]
    tree = cKDTree(few)
    ranks = [tree.query(other.data)[0].mean() + other.query(few)[0].mean() for other in coarse]
    compared = []
    for index in np.argsort(ranks)[:candidates]:
        shape = training[int(index)]
        nearest = proximity(_points(shape.surface), true)
        if nearest is not None and nearest.to_true is not None and nearest.to_predicted is not None:
            compared.append((nearest.to_true.mean() + nearest.to_predicted.mean(), int(index)))
    if not compared:
        raise ValueError(
            f"{name} has no points on its surface to compare with: raise --data.init_args.eval_surface_points."
        )
    _, number = min(compared)
    shape = training[number]
    numbers = {}
    for key, metric in metrics.items():  # with as many points as a prediction
        nearest = proximity(_points(data.surface_points(shape, metric.points)), true)
        assert nearest is not None
        numbers[key] = metric.compare(nearest)
    return NearestRow(name, shape.name, numbers)


def _points(surface: NDArray[np.float32]) -> SurfacePoints:
    """Return points and normals ``(S, 6)`` of a surface."""
    points, normals = np.split(surface.astype(np.float64), 2, axis=1)
    return SurfacePoints(points, normals)


def _coarse(shape: StoredShape) -> NDArray[np.float32]:
    """Return a few points of the surface of a shape, which are in random order."""
    return shape.surface[:_COARSE_POINTS, :3]


def _write(path: Path, rows: Sequence[NearestRow]) -> None:
    """Write the rows as CSV, atomically."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "nearest", *rows[0].metrics])
        writer.writerows([row.name, row.nearest, *(f"{value:.5g}" for value in row.metrics.values())] for row in rows)
