"""Refinement and inner loops as curves: a metric over the steps, from the prediction and from what it is compared with."""

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
    gathered,
    heading_of,
    headline_of,
    inner_steps,
    main_metric,
)
from composers.base import Composer
from composers.inference import GradientSteps
from composers.inference.refinement import CURVES, INNER, NETWORK
from datamodules.spec import Headline, Modality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ENDINGS = (".png", ".svg", ".pdf")
_STYLES = {  # colours that the colour-blind can tell apart (Okabe and Ito 2008)
    "prediction": ("from the prediction", "#0072b2", "o", "solid"),
    "mean": ("from the mean code", "#d55e00", "s", "dashed"),
    "random": ("from a random start", "#009e73", "^", "dotted"),
    NETWORK: ("all weights, from the prediction", "#cc79a7", "D", "dashdot"),
    INNER: ("inner loop, from the learned start", "#e69f00", "v", "solid"),
}


class Point(NamedTuple):
    """A metric over instances, after some steps from a start.

    Attributes:
        start: One of `composers.inference.refinement.CURVES`.
        step: Refinement steps; inner steps where ``start`` is ``inner``.
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

    Of a meta-learned model it draws the inner loop too, from the learned start far beyond the steps of training, which a
    vertical line marks. What refines the adapted codes begins there where the inner loop of the test stopped. What an inner
    loop loses beyond those steps may lie below the axis, or be no number: then the label of the axis says so.

    The numbers are written beside the image, in a CSV of the same name, whose steps count from where each curve starts. A
    test without refinement and without an inner loop writes neither.

    Args:
        filename: Of the image, in the folder of the run: PNG, SVG or PDF.
        metric: One that the composer measures; the headline of the data if None, or the first where that is not measured.

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
        """Write the image and its numbers, of the instances of all processes."""
        rows = gathered(self.rows)
        folder = output_folder(trainer)
        if folder is None or not trainer.is_global_zero or not rows:
            return
        path = folder / self.filename
        headline = headline_of(trainer)
        metric = self.metric or main_metric(next(iter(rows.values())), headline)
        points = curve(rows, metric)
        if max(point.step for point in points) == 0:
            return
        with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["metric", "start", "step", "mean", "lower quartile", "upper quartile", "instances"])
            writer.writerows([metric, *point] for point in points)
        loop = pl_module.inner if isinstance(pl_module, Composer) else None
        loop = loop if loop is not None and loop.report else None
        draw(points, metric, loop, headline).savefig(path)
        Console(soft_wrap=True).print(f"{'Curves' if loop else 'Refinement curves'}: {relative_path(path)}")


def curve(rows: Mapping[str, InstanceRow], metric: str) -> list[Point]:
    """Return mean and quartiles of a metric over instances, start by start, in the order of the steps."""
    points = []
    for column in sorted(next(iter(rows.values())), key=lambda column: (CURVES.index(column.start), column.step)):
        if column.metric == metric:
            counted = [row[column] for row in rows.values() if counts(row, column)]
            numbers = torch.tensor(counted or [math.nan], dtype=torch.float64)
            lower, upper = numbers.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
            points.append(Point(column.start, column.step, numbers.mean().item(), lower, upper, len(counted)))
    return points


def draw(
    points: Sequence[Point], metric: str, loop: GradientSteps | None = None, headline: Headline = Modality.headline
) -> Figure:
    """Return the curves, 720 x 450 pixels: a line of means with a band of quartiles for every start.

    Args:
        points: As `curve` returns them.
        metric: Which they are of.
        loop: The inner loop, if there is a curve of one.
        headline: Of the data; where the metric is another, more of it is taken to be better.
    """
    from matplotlib.figure import Figure  # here, because most commands draw nothing and need not wait for it

    figure = Figure(figsize=(7.2, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    placed = _placed(points, loop.test_steps if loop else 0)
    for start in dict.fromkeys(point.start for point in placed):
        _draw_curve(axes, [point for point in placed if point.start == start], loop)
    named = {point.step for point in placed if loop is None or point.start == INNER}
    _label(axes, sorted(named | {max(point.step for point in placed)}))
    if loop:
        _mark(axes, placed, loop, less_is_better=metric == headline.metric and headline.direction == "min")
    axes.set_ylabel(heading_of(metric, headline), fontsize=12)
    axes.set_title(f"Mean and quartiles of {points[0].instances:,} instances", loc="left", fontsize=12)
    framed = loop is not None  # or the line of the steps of training runs through the words
    axes.legend(loc="best", fontsize=11, frameon=framed, framealpha=0.85, edgecolor="none", handlelength=3)
    return figure


def _placed(points: Sequence[Point], stopped: int) -> list[Point]:
    """Return points where they are drawn: what follows an inner loop, which stopped after some steps, goes on from there."""
    later = ("prediction", NETWORK)
    return [point._replace(step=point.step + stopped * (point.start in later)) for point in points]


def _draw_curve(axes: Axes, points: Sequence[Point], loop: GradientSteps | None) -> None:
    """Draw the curve of one start, the prediction above the others; where it has one point only, as a ring."""
    label, colour, marker, line = _STYLES[points[0].start]
    label = label if loop is None else _inner_labels(loop, len(points)).get(points[0].start, label)
    steps, order = [point.step for point in points], 3 - CURVES.index(points[0].start) / len(CURVES)
    means, lower, upper = zip(*(map(_finite, _numbers(point)) for point in points), strict=True)
    if len(points) == 1:
        axes.plot(steps, means, "o", markersize=12, markerfacecolor="none", color=colour, label=label, zorder=4)
        return
    axes.fill_between(steps, lower, upper, color=colour, alpha=0.12, linewidth=0)
    for edge in (lower, upper):  # without which bands that overlap are one
        axes.plot(steps, edge, color=colour, alpha=0.6, linewidth=0.8, linestyle=line, zorder=order)
    axes.plot(
        steps, means, color=colour, marker=marker, markersize=6, linewidth=2, linestyle=line, label=label, zorder=order
    )


def _inner_labels(loop: GradientSteps, points: int) -> dict[str, str]:
    """Return what the legend calls what follows an inner loop."""
    stopped = inner_steps(loop.test_steps)
    return {
        "prediction": f"{'refined' if points > 1 else 'result of the test'}, after {stopped}",
        NETWORK: f"all weights, after {stopped}",
    }


def _numbers(point: Point) -> tuple[float, float, float]:
    """Return the mean and the quartiles."""
    return point.mean, point.lower, point.upper


def _finite(number: float) -> float:
    """Return a number that can be drawn, or NaN."""
    return number if math.isfinite(number) else math.nan


def _mark(axes: Axes, points: Sequence[Point], loop: GradientSteps, less_is_better: bool) -> None:
    """Mark the steps of training, name the axis of the steps, and say what of the inner loop is not shown."""
    trained = f"trained with {inner_steps(loop.steps)}"
    axes.axvline(loop.steps, color="#555555", linewidth=1.2, linestyle=(0, (4, 3)), zorder=1, label=trained)
    refined = any(point.start != INNER and point.step != loop.test_steps for point in points)
    lines = ["steps" if refined else "inner steps"]
    ends = shown(points, max(loop.steps, loop.test_steps), less_is_better)
    if ends:
        axes.set_ylim(ends)
    hidden = [point for point in points if point.start == INNER and not _is_shown(point.mean, ends)]
    if hidden:
        lines.append("not shown: " + ", ".join(f"{_number(point.mean)} after {point.step:,}" for point in hidden))
    axes.set_xlabel("\n".join(lines), fontsize=12)


def shown(points: Sequence[Point], steps: int, less_is_better: bool = False) -> tuple[float, float] | None:
    """Return the ends of the axis of a metric where an inner loop gets so bad that it would flatten all else, or None.

    What lies beyond these numbers of steps may be as far on the bad side of all else as all else spans, up to the best there
    is.

    Args:
        points: Of all curves.
        steps: Inner steps of training and test, the greater of both.
        less_is_better: Whether low values of the metric are the good ones.
    """
    sign = -1 if less_is_better else 1
    beyond = [point for point in points if point.start == INNER and point.step > steps]
    known = [sign * number for point in points for number in _numbers(point) if math.isfinite(number)]
    kept = [
        sign * number for point in points if point not in beyond for number in _numbers(point) if math.isfinite(number)
    ]
    if not kept:
        return None
    best, room = max(known), max(known) - min(kept)
    worst = min(kept) - room
    if min(known) >= worst:
        return None
    low, high = sorted((sign * worst, sign * (best + 0.1 * room)))
    return low, high


def _is_shown(mean: float, ends: tuple[float, float] | None) -> bool:
    """Return whether a mean lies on the axis."""
    return math.isfinite(mean) and (ends is None or ends[0] <= mean <= ends[1])


def _number(mean: float) -> str:
    """Return a mean in words."""
    return f"{mean:.1f}" if math.isfinite(mean) else "no number"


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
