"""Curves of a test: a metric over the steps of refinement and of an inner loop, by initialisation."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning import LightningModule, Trainer
from rich.console import Console

from callbacks.folders import output_folder, relative_path
from callbacks.results import (
    InstanceRow,
    InstanceRows,
    counts,
    gather_rows,
    heading,
    headline_of,
    inner_steps,
    main_metric,
    metrics_of,
)
from composers.base import Composer
from composers.inference import GradientSteps
from composers.inference.refinement import CURVES, INNER, NETWORK
from composers.metrics import InstanceMetric
from datamodules.spec import Headline, Modality
from datamodules.storage.files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")
_STYLES = {  # the palette of Okabe and Ito (2008), suitable for colour-blind readers
    "prediction": ("from the prediction", "#0072b2", "o", "solid"),
    "mean": ("from the mean code", "#d55e00", "s", "dashed"),
    "random": ("from a random code", "#009e73", "^", "dotted"),
    NETWORK: ("all weights, from the prediction", "#cc79a7", "D", "dashdot"),
    INNER: ("inner loop, from the learned start", "#e69f00", "v", "solid"),
}


class Point(NamedTuple):
    """Statistics of a metric over instances, after a number of steps.

    Attributes:
        start: Curve of the point, one of `composers.inference.refinement.CURVES`.
        step: Number of refinement steps, or of inner steps where ``start`` is ``inner``.
        mean: Mean over the instances.
        lower: Lower quartile, linearly interpolated.
        upper: Upper quartile, linearly interpolated.
        instances: Number of instances.
    """

    start: str
    step: int
    mean: float
    lower: float
    upper: float
    instances: int


class RefinementPlot(InstanceRows):
    """Plot the mean and quartiles of a metric over the refinement steps after a test, with a curve per initialisation.

    For a meta-learned model, the plot also shows the inner loop, beyond the number of steps used in training, which a
    vertical line marks. Curves that refine the adapted codes begin where the inner loop of the test ends. If the inner loop
    diverges, the axis is cut and its label lists the values that are not shown.

    The values are written to a CSV file with the same name; its steps count from the start of each curve. A test without
    refinement and without an inner loop writes neither file.

    Args:
        filename: Name of the plot in the run folder, with the suffix ``.png``, ``.svg`` or ``.pdf``.
        metric: Key of a metric of the composer; if None, the headline metric of the data, or the first metric if that is not
            measured.

    Raises:
        ValueError: If ``filename`` has another suffix.
    """

    def __init__(self, filename: str = "refinement.png", metric: str | None = None) -> None:
        super().__init__()
        if Path(filename).suffix.lower() not in _SUFFIXES:
            raise ValueError(f"filename is {filename}; its suffix must be one of {', '.join(_SUFFIXES)}.")
        self.filename = filename
        self.metric = metric

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the metric is measured.

        Raises:
            ValueError: If it is not; the message lists the metrics of the composer.
        """
        if isinstance(pl_module, Composer) and self.metric not in (None, *pl_module.measures):
            measured = ", ".join(pl_module.measures)
            raise ValueError(f"metric of RefinementPlot is {self.metric}; this model measures {measured}.")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the plot and its values for the instances of all processes."""
        rows = gather_rows(self.rows)
        folder = output_folder(trainer)
        if folder is None or not trainer.is_global_zero or not rows:
            return
        path = folder / self.filename
        headline = headline_of(trainer)
        metric = self.metric or main_metric(next(iter(rows.values())), headline)
        points = curve(rows, metric)
        if max(point.step for point in points) == 0:
            return
        table = path.with_suffix(".csv")
        with written_whole(table) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["metric", "start", "step", "mean", "lower quartile", "upper quartile", "instances"])
            writer.writerows([metric, *point] for point in points)
        loop = pl_module.inner if isinstance(pl_module, Composer) else None
        loop = loop if loop is not None and loop.report else None
        figure = draw(points, metric, loop, headline, metrics_of(pl_module))
        with written_whole(path) as part:
            figure.savefig(part, format=path.suffix[1:])
        Console(soft_wrap=True).print(f"{'Curves' if loop else 'Refinement curves'}: {relative_path(path)}")


def curve(rows: Mapping[str, InstanceRow], metric: str) -> list[Point]:
    """Return the mean and quartiles of a metric over instances, ordered by curve and step."""
    points = []
    for column in sorted(next(iter(rows.values())), key=lambda column: (CURVES.index(column.start), column.step)):
        if column.metric == metric:
            counted = [row[column] for row in rows.values() if counts(row, column)]
            values = torch.tensor(counted or [math.nan], dtype=torch.float64)
            lower, upper = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
            points.append(Point(column.start, column.step, values.mean().item(), lower, upper, len(counted)))
    return points


def draw(
    points: Sequence[Point],
    metric: str,
    loop: GradientSteps | None = None,
    headline: Headline = Modality.headline,
    metrics: Mapping[str, InstanceMetric] | None = None,
) -> Figure:
    """Return a plot of 720 x 450 pixels: for every curve, a line of means in a band between the quartiles.

    Args:
        points: Points as returned by `curve`.
        metric: Key of the metric.
        loop: Inner loop, if the points hold its curve.
        headline: Headline metric of the data. Of other metrics, higher values are assumed to be better.
        metrics: Metrics by key, which state the label of the axis; if None, the key is the label.
    """
    from matplotlib.figure import Figure  # a slow import that most commands do not need

    figure = Figure(figsize=(7.2, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    offset = loop.test_steps if loop else 0  # refinement of adapted codes begins where the inner loop of the test ends
    points = [
        point._replace(step=point.step + offset) if point.start in ("prediction", NETWORK) else point
        for point in points
    ]
    for start in dict.fromkeys(point.start for point in points):
        _draw_curve(axes, [point for point in points if point.start == start], loop)

    labelled = {point.step for point in points if loop is None or point.start == INNER}
    ticks = spaced(sorted(labelled | {max(point.step for point in points)}))
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{step:,}" for step in ticks])
    axes.set_xlabel("refinement steps", fontsize=12)
    axes.set_ylabel(heading(metric, metrics, headline), fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if loop:
        _annotate(axes, points, loop, less_is_better=metric == headline.metric and headline.direction == "min")
    axes.set_title(f"Mean and quartiles of {points[0].instances:,} instances", loc="left", fontsize=12)
    framed = loop is not None  # the frame hides the vertical line behind the text
    axes.legend(loc="best", fontsize=11, frameon=framed, framealpha=0.85, edgecolor="none", handlelength=3)
    return figure


def _draw_curve(axes: Axes, points: Sequence[Point], loop: GradientSteps | None) -> None:
    """Draw one curve, with the prediction above the others; a curve of one point is drawn as a ring."""
    start, single = points[0].start, len(points) == 1
    label, colour, marker, line = _STYLES[start]
    if loop is not None and start == "prediction":
        label = f"{'result of the test' if single else 'refined'}, after {inner_steps(loop.test_steps)}"
    elif loop is not None and start == NETWORK:
        label = f"all weights, after {inner_steps(loop.test_steps)}"
    steps, order = [point.step for point in points], 3 - CURVES.index(start) / len(CURVES)
    finite = [[value if math.isfinite(value) else math.nan for value in _statistics(point)] for point in points]
    means, lower, upper = zip(*finite, strict=True)
    if single:
        axes.plot(steps, means, "o", markersize=12, markerfacecolor="none", color=colour, label=label, zorder=4)
        return
    axes.fill_between(steps, lower, upper, color=colour, alpha=0.12, linewidth=0)
    for edge in (lower, upper):  # edges keep overlapping bands apart
        axes.plot(steps, edge, color=colour, alpha=0.6, linewidth=0.8, linestyle=line, zorder=order)
    axes.plot(
        steps, means, color=colour, marker=marker, markersize=6, linewidth=2, linestyle=line, label=label, zorder=order
    )


def _annotate(axes: Axes, points: Sequence[Point], loop: GradientSteps, less_is_better: bool) -> None:
    """Mark the inner steps of training, cut the axis where the inner loop diverges, and label the axis of the steps."""
    trained = f"trained with {inner_steps(loop.steps)}"
    axes.axvline(loop.steps, color="#555555", linewidth=1.2, linestyle=(0, (4, 3)), zorder=1, label=trained)
    limits = shown(points, max(loop.steps, loop.test_steps), less_is_better)
    if limits:
        axes.set_ylim(limits)
    hidden = []
    for point in points:
        finite = math.isfinite(point.mean)
        is_shown = finite and (limits is None or limits[0] <= point.mean <= limits[1])
        if point.start == INNER and not is_shown:
            hidden.append(f"{f'{point.mean:.1f}' if finite else 'no number'} after {point.step:,}")
    refined = any(point.start != INNER and point.step != loop.test_steps for point in points)
    note = f"\nnot shown: {', '.join(hidden)}" if hidden else ""
    axes.set_xlabel(("steps" if refined else "inner steps") + note, fontsize=12)


def shown(points: Sequence[Point], steps: int, less_is_better: bool = False) -> tuple[float, float] | None:
    """Return the limits of the metric axis if an inner loop diverges and would flatten the other curves, else None.

    Points of the inner loop beyond ``steps`` extend the axis towards worse values by at most the range of the other points,
    measured from their worst value to the best value of all points.

    Args:
        points: Points of all curves.
        steps: Number of inner steps of training or test, whichever is greater.
        less_is_better: Whether lower values of the metric are better.
    """
    sign = -1 if less_is_better else 1
    every: list[float] = []
    kept: list[float] = []
    for point in points:
        values = [sign * value for value in _statistics(point) if math.isfinite(value)]
        every += values
        if point.start != INNER or point.step <= steps:
            kept += values
    if not kept:
        return None
    best, extent = max(every), max(every) - min(kept)
    worst = min(kept) - extent
    if min(every) >= worst:
        return None
    low, high = sorted((sign * worst, sign * (best + 0.1 * extent)))
    return low, high


def _statistics(point: Point) -> tuple[float, float, float]:
    """Return the mean and the quartiles of a point."""
    return point.mean, point.lower, point.upper


def spaced(steps: Sequence[int], gap: float = 0.06) -> list[int]:
    """Return the steps whose labels do not overlap on a logarithmic axis, including the first and the last.

    Args:
        steps: Steps in ascending order, at least two.
        gap: Smallest distance of two labels, as a fraction of the axis.

    Example:
        >>> spaced([0, 1, 3, 10, 30, 90, 100])
        [0, 1, 3, 10, 30, 100]
    """
    positions = {step: 0.5 + math.log10(step) if step else 0.0 for step in steps}
    gap *= positions[steps[-1]]
    kept = [steps[0]]
    for step in steps[1:-1]:
        if positions[step] - positions[kept[-1]] >= gap and positions[steps[-1]] - positions[step] >= gap:
            kept.append(step)
    return [*kept, steps[-1]]
