"""Refinement as a curve: a metric over the steps, from the prediction and from the places it is compared with."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning import LightningModule, Trainer
from rich.console import Console

from composers.base import Composer
from composers.callbacks import HEADINGS, InstanceRows, Row, counts, gathered, main_metric, output_folder, relative_path
from composers.refinement import CURVES, NETWORK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ENDINGS = (".png", ".svg", ".pdf")
_STYLES = {  # colours that the colour-blind can tell apart (Okabe and Ito 2008)
    "prediction": ("from the prediction", "#0072b2", "o", "solid"),
    "mean": ("from the mean code", "#d55e00", "s", "dashed"),
    "random": ("from a random start", "#009e73", "^", "dotted"),
    NETWORK: ("all weights, from the prediction", "#cc79a7", "D", "dashdot"),
}


class Point(NamedTuple):
    """A metric over instances, after some steps from a start.

    Attributes:
        start: One of `composers.refinement.STARTS`.
        step: Refinement steps.
        mean: Over the instances.
        lower: Their lower quartile, between the two nearest instances in proportion.
        upper: Their upper quartile.
        instances: Their number.
    """

    start: str
    step: int
    mean: float
    lower: float
    upper: float
    instances: int


class RefinementPlot(InstanceRows):
    """Draws after a test how refinement goes on from every start: mean and quartiles of a metric over the instances.

    The numbers are written beside the picture, in a CSV of the same name. A test without refinement writes neither.

    Args:
        filename: Of the picture, in the folder of the run: PNG, SVG or PDF.
        metric: One that the composer measures; the PSNR if None, or the first where that is not measured.

    Raises:
        ValueError: If the file name has another ending.
    """

    def __init__(self, filename: str = "refinement.png", metric: str | None = None) -> None:
        super().__init__()
        if Path(filename).suffix.lower() not in _ENDINGS:
            raise ValueError(f"filename is {filename}; a plot is written as {', '.join(_ENDINGS)}.")
        self.filename = filename
        self.metric = metric

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a metric that is not measured before the test takes its time.

        Raises:
            ValueError: With the metrics that are measured.
        """
        if isinstance(pl_module, Composer) and self.metric not in (None, *pl_module.measures):
            measured = ", ".join(pl_module.measures)
            raise ValueError(f"metric of RefinementPlot is {self.metric}; this model measures {measured}.")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture and its numbers, of the instances of all processes."""
        rows = gathered(self.rows)
        path = output_folder(trainer) / self.filename
        if not trainer.is_global_zero or not rows:
            return
        metric = self.metric or main_metric(next(iter(rows.values())))
        points = curve(rows, metric)
        if max(point.step for point in points) == 0:
            return
        with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["metric", "start", "step", "mean", "lower quartile", "upper quartile", "instances"])
            writer.writerows([metric, *point] for point in points)
        draw(points, metric).savefig(path)
        Console(soft_wrap=True).print(f"Refinement curves: {relative_path(path)}")


def curve(rows: Mapping[str, Row], metric: str) -> list[Point]:
    """Return mean and quartiles of a metric over instances, start by start, in the order of the steps."""
    points = []
    for column in sorted(next(iter(rows.values())), key=lambda column: (CURVES.index(column.start), column.step)):
        if column.metric == metric:
            counted = [row[column] for row in rows.values() if counts(row, column)]
            numbers = torch.tensor(counted or [math.nan], dtype=torch.float64)
            lower, upper = numbers.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
            points.append(Point(column.start, column.step, numbers.mean().item(), lower, upper, len(counted)))
    return points


def draw(points: Sequence[Point], metric: str) -> Figure:
    """Return the curves, 720 x 450 pixels: a line of means with a band of quartiles for every start."""
    from matplotlib.figure import Figure  # here, because most commands draw nothing and need not wait for it

    figure = Figure(figsize=(7.2, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for start in dict.fromkeys(point.start for point in points):
        _draw_curve(axes, [point for point in points if point.start == start])
    _label(axes, sorted({point.step for point in points}))
    axes.set_ylabel(HEADINGS.get(metric, metric), fontsize=12)
    axes.set_title(f"Mean and quartiles of {points[0].instances:,} instances", loc="left", fontsize=12)
    axes.legend(loc="best", fontsize=11, frameon=False, handlelength=3)
    return figure


def _draw_curve(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the curve of one start, the prediction above the others."""
    label, colour, marker, line = _STYLES[points[0].start]
    steps, order = [point.step for point in points], 3 - CURVES.index(points[0].start) / len(CURVES)
    lower, upper = [point.lower for point in points], [point.upper for point in points]
    axes.fill_between(steps, lower, upper, color=colour, alpha=0.12, linewidth=0)
    for edge in (lower, upper):  # without which bands that overlap are one
        axes.plot(steps, edge, color=colour, alpha=0.6, linewidth=0.8, linestyle=line, zorder=order)
    means = [point.mean for point in points]
    axes.plot(
        steps, means, color=colour, marker=marker, markersize=6, linewidth=2, linestyle=line, label=label, zorder=order
    )


def _label(axes: Axes, steps: Sequence[int]) -> None:
    """Give the axis of the steps its scale and its ticks, and take away what nobody reads."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.minorticks_off()
    axes.set_xticks(spaced(steps), [f"{step:,}" for step in spaced(steps)])
    axes.set_xlabel("refinement steps", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def spaced(steps: Sequence[int], gap: float = 0.06) -> list[int]:
    """Return the steps whose labels do not run into each other on a logarithmic axis; the first and the last stay.

    Args:
        steps: In order, more than one.
        gap: The closest that two labels may be, in lengths of the axis.

    Example:
        >>> spaced([0, 1, 3, 10, 30, 90, 100])
        [0, 1, 3, 10, 30, 100]
    """
    places = {step: 0.5 + math.log10(step) if step else 0.0 for step in steps}
    gap *= places[steps[-1]]
    kept = [steps[0]]
    for step in steps[1:-1]:
        if places[step] - places[kept[-1]] >= gap and places[steps[-1]] - places[step] >= gap:
            kept.append(step)
    return [*kept, steps[-1]]
