"""Results of super-resolution by scale, beside those of bicubic interpolation."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from callbacks.baseline import observed_shape
from callbacks.folders import output_folder, relative_path
from callbacks.results import Column, InstanceRow, counts, data_of, gather_rows, heading, headline_of, metrics_of
from composers.evaluation import Evaluation
from composers.metrics import InstanceMetric
from composers.rendering import Reconstruction
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch
from datamodules.domain import exact
from datamodules.spec import Headline, Modality
from datamodules.storage.files import written_whole
from modalities.super_resolution import enlarged

BICUBIC = "bicubic"
Stage = Literal["val", "test"]


class ScaleRow(NamedTuple):
    """Results of an item.

    Attributes:
        scale: Scale of the item; None if the data module states none.
        metrics: Metrics of the prediction, and those of bicubic interpolation, whose ``start`` is ``bicubic``.
    """

    scale: float | None
    metrics: InstanceRow


class ScaleMean(NamedTuple):
    """Means over the images at a scale.

    Attributes:
        scale: The scale; None if the data module states none.
        images: Number of images.
        means: Mean of the model and of bicubic interpolation by metric.
    """

    scale: float | None
    images: int
    means: Mapping[str, tuple[float, float]]


class ScaleTable(Callback):
    """Print the means of every metric by scale after a test or validation, beside bicubic interpolation; write a CSV file.

    All metrics of the model are measured, on its prediction, which refinement does not change. Bicubic interpolation enlarges
    the observed image with the kernel of Pillow; it is measured in the same way. The means are logged as ``test/psnr_x4``,
    ``test/bicubic_psnr_x4``, and so on. Validation during training logs them, without a table. The scale of an item is the one
    that the data module states; items without it that have a lower resolution than their target are listed as one group.

    Data whose items are observed at the resolution of their target have no such table.

    Args:
        filename: Name of the CSV file in the run folder, after the stage: ``test_scales.csv`` or ``val_scales.csv``.
    """

    def __init__(self, filename: str = "scales.csv") -> None:
        self.filename = filename
        self.rows: dict[str, ScaleRow] = {}
        self._bicubic: dict[str, dict[str, float]] = {}  # by item, as they do not change in training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget results of bicubic interpolation on other data."""
        self._bicubic = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows."""
        self.rows = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows."""
        self.rows = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a row per item."""
        self._add_rows(trainer, pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a row per item."""
        self._add_rows(trainer, pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means; print and write them unless this is training."""
        if not trainer.sanity_checking:
            self._report(trainer, pl_module, "val", printed=trainer.state.fn == TrainerFn.VALIDATING)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, print and write the means."""
        self._report(trainer, pl_module, "test", printed=True)

    def _add_rows(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation, batch: CoordinateBatch
    ) -> None:
        """Add a row per item of a batch that has a lower resolution than its target."""
        data, metrics = data_of(trainer), metrics_of(pl_module)
        if data is None or not metrics or (scales := scales_of_batch(data, batch)) is None:
            return
        if not all(name in self._bicubic for name in batch.names):
            measured = measure_values(bicubic_values(batch), batch, metrics)
            for index, name in enumerate(batch.names):
                self._bicubic[name] = {key: values[index] for key, values in measured.items()}
        predicted = {key: values.tolist() for key, values in evaluation["metrics"][0].items()}
        for index, (name, scale) in enumerate(zip(batch.names, scales, strict=True)):
            row = {Column(key, 0): values[index] for key, values in predicted.items()}
            row |= {Column(key, 0, BICUBIC): value for key, value in self._bicubic[name].items()}
            self.rows[name] = ScaleRow(scale, row)

    def _report(self, trainer: Trainer, pl_module: LightningModule, stage: Stage, printed: bool) -> None:
        """Log the means over the items of all processes; print and write them, with those of bicubic, if ``printed``."""
        rows = gather_rows(self.rows)
        means = scale_means(rows)
        for mean in means:
            suffix = "" if mean.scale is None else f"_x{mean.scale:g}"
            for key, pair in mean.means.items():
                for prefix, value in zip(("", f"{BICUBIC}_"), pair, strict=True):
                    if prefix and not printed:
                        continue  # bicubic interpolation does not change in training
                    if prefix or suffix:  # without a scale, the mean of the model is logged already
                        pl_module.log(f"{stage}/{prefix}{key}{suffix}", torch.tensor(value), sync_dist=True)
        data, folder = data_of(trainer), output_folder(trainer) if printed else None
        if not printed or not means or not trainer.is_global_zero or data is None:
            return
        console, metrics = Console(soft_wrap=True), metrics_of(pl_module)
        console.print(scale_table(means, metrics, headline_of(trainer)))
        console.print(protocol(data, metrics), markup=False, highlight=False)
        if folder is not None:
            path = folder / f"{stage}_{self.filename}"
            write_csv(path, means)
            console.print(f"Scales: {relative_path(path)}")


def scales_of_batch(data: CoordinateDataModule, batch: CoordinateBatch) -> list[float | None] | None:
    """Return the scale of every item of a batch, as the data module states it.

    Returns:
        The scales; None if these are no complete images, or no item has a stated scale or a lower resolution than its target.
    """
    observed, signal = observed_shape(batch), batch.observation.signal
    if observed is None or batch.shape is None or len(observed) != 2 or batch.query.values is None:
        return None
    if not isinstance(signal, Tensor) or signal.shape[1] != batch.query.values.shape[-1]:
        return None
    if any(small > large for small, large in zip(observed, batch.shape, strict=True)):
        return None
    scales = [data.scale_of(name) for name in batch.names]
    return scales if observed != batch.shape or any(scale is not None for scale in scales) else None


def bicubic_values(batch: CoordinateBatch) -> Tensor:
    """Return the observed images of a batch, enlarged by bicubic interpolation, as values ``(B, N, C)`` at the query."""
    assert isinstance(batch.observation.signal, Tensor)
    assert batch.shape is not None
    return enlarged(exact(batch.observation.signal), batch.shape).flatten(2).mT


def measure_values(
    values: Tensor, batch: CoordinateBatch, metrics: Mapping[str, InstanceMetric]
) -> dict[str, list[float]]:
    """Return the metrics of values ``(B, N, C)`` at the query of a batch, as they measure predictions."""
    reconstruction = Reconstruction.of_values(values)
    with torch.autocast(values.device.type, enabled=False):
        return {
            key: metric.measure(reconstruction, batch.query, batch.shape).tolist() for key, metric in metrics.items()
        }


def scale_means(rows: Mapping[str, ScaleRow]) -> list[ScaleMean]:
    """Return the means over the images at every scale, in ascending order.

    Undefined values, such as the SSIM of an image of fewer than 11 pixels, do not count in a mean; see `counts`.

    Example:
        >>> row = {Column("psnr", 0): 30.0, Column("psnr", 0, "bicubic"): 29.0}
        >>> scale_means({"a-x2": ScaleRow(2.0, row), "b-x2": ScaleRow(2.0, row)})
        [ScaleMean(scale=2.0, images=2, means={'psnr': (30.0, 29.0)})]
    """
    means = []
    for scale in sorted({row.scale for row in rows.values()}, key=lambda scale: scale or 0.0):
        chosen = [row.metrics for row in rows.values() if row.scale == scale]
        names = dict.fromkeys(column.metric for column in chosen[0])
        pairs = {name: (_mean(chosen, Column(name, 0)), _mean(chosen, Column(name, 0, BICUBIC))) for name in names}
        means.append(ScaleMean(scale, len(chosen), pairs))
    return means


def _mean(rows: Sequence[InstanceRow], column: Column) -> float:
    """Return the mean of a column over the images that count; NaN if there are none."""
    values = [row[column] for row in rows if counts(row, column)]
    return math.fsum(values) / len(values) if values else math.nan


def scale_table(
    means: Sequence[ScaleMean], metrics: Mapping[str, InstanceMetric], headline: Headline = Modality.headline
) -> Table:
    """Return a table with a line per scale: its images, and every metric of the model, of bicubic, and the gain.

    Args:
        means: Means by scale.
        metrics: Metrics by key, which state their headings and units.
        headline: Headline metric of the data.
    """
    table = Table(title="Means over images, by scale", title_justify="left")
    table.add_column("scale", justify="right")
    table.add_column("images", justify="right")
    for name in means[0].means:
        for column in (heading(name, metrics, headline), BICUBIC, "gain"):
            table.add_column(escape(column), justify="right")
    for mean in means:
        numbers = [
            f"{value:{form}}"
            for model, bicubic in mean.means.values()
            for value, form in ((model, ".3f"), (bicubic, ".3f"), (model - bicubic, "+.3f"))
        ]
        table.add_row("all" if mean.scale is None else f"x{mean.scale:g}", f"{mean.images:,}", *numbers)
    return table


def protocol(data: CoordinateDataModule, metrics: Mapping[str, InstanceMetric]) -> str:
    """Return the protocol of the table as one line: area, channels, range, and the method of the baseline."""
    colours = "grey values" if data.spec.value_dim == 1 else "RGB"
    manners = {
        name: f"{'luminance' if metric.luma and data.spec.value_dim > 1 else colours}, "
        f"{'clipped to [0, 1]' if metric.clip else 'not clipped'}"
        for name, metric in metrics.items()
    }
    [first, *others] = dict.fromkeys(manners.values())
    by_metric = "; ".join(f"{metrics[name].heading or name}: {manner}" for name, manner in manners.items())
    manner = by_metric if others else first
    area = data.measured_area or "all pixels"
    return f"Protocol: {area}; {manner}, not rounded; bicubic: Pillow's kernel (a = -0.5), in floating point."


def write_csv(path: Path, means: Sequence[ScaleMean]) -> None:
    """Write a row per scale: its images, and every metric of the model, of bicubic interpolation, and the gain."""
    names = list(means[0].means)
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "scale",
                "images",
                *(title for name in names for title in (name, f"{BICUBIC} {name}", f"{name} gain")),
            ]
        )
        for mean in means:
            numbers = [value for model, bicubic in mean.means.values() for value in (model, bicubic, model - bicubic)]
            writer.writerow(["" if mean.scale is None else f"{mean.scale:g}", mean.images, *numbers])
