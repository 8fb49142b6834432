"""Results of a sweep: a CSV file with one row per run, a table of the best runs, and a figure by parameter."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from datamodules.storage.files import written_whole
from studies.search import Metric, Parameter
from studies.sweep_runs import STOPPED, SweepRun, validations

_COLUMNS = ("run", "state", "validations", "step")
_COLOURS = {STOPPED: "#c98a2b"}
_COMPLETE = "#3b6ea5"


class SweepRow(dict[str, Any]):
    """A row of the results: number, state, values of parameters, and the metrics of the last validation."""


def rows_of(runs: Sequence[SweepRun]) -> list[SweepRow]:
    """Return the rows of runs that have started."""
    rows = []
    for run in runs:
        measured = validations(run.folder)
        last = measured[-1] if measured else {}
        row = SweepRow(
            run=run.number, state=run.state or "in progress", validations=len(measured), step=last.get("step")
        )
        row.update(run.values)
        row.update({name: value for name, value in last.items() if name.startswith("val/")})
        rows.append(row)
    return rows


def ranked(rows: Sequence[SweepRow], metric: Metric | None) -> list[SweepRow]:
    """Return rows from the best to the worst value of a metric; those without a value last."""
    if metric is None:
        return list(rows)
    sign = -1.0 if metric.goal == "maximize" else 1.0
    return sorted(rows, key=lambda row: (metric.name not in row, sign * row.get(metric.name, 0.0)))


def write(rows: Sequence[SweepRow], path: Path) -> None:
    """Write a CSV file with one row per run."""
    names = dict.fromkeys(name for row in rows for name in row)
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_COLUMNS, *(name for name in names if name not in _COLUMNS)])
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[SweepRow], parameters: Sequence[Parameter], metric: Metric | None, limit: int) -> Table:
    """Return a table of the best runs: number, state, searched parameters, and the metric.

    Args:
        rows: Rows, from best to worst.
        parameters: Parameters of the sweep.
        metric: Metric of the sweep.
        limit: Maximum number of rows.
    """
    searched = [parameter.name for parameter in parameters if parameter.is_searched]
    title = f"best {min(limit, len(rows))} of {len(rows)} runs" if len(rows) > limit else f"{len(rows)} run(s)"
    result = Table(title=title, title_justify="left")
    metrics = [] if metric is None else [metric.name]
    for name in ("run", "state", "validations", *searched, *metrics):
        heading = ".".join(part for part in name.split(".") if part != "init_args")
        result.add_column(escape(heading), justify="left" if name == "state" or name in searched else "right")
    for row in rows[:limit]:
        cells = [row[name] for name in ("run", "state", "validations", *searched)]
        measured = [f"{row[name]:.4g}" if name in row else "-" for name in metrics]
        result.add_row(*(escape(str(cell)) for cell in cells), *measured)
    return result


def draw(rows: Sequence[SweepRow], parameters: Sequence[Parameter], metric: Metric) -> Figure | None:
    """Return a figure of the metric over every searched parameter, one dot per run; None without values."""
    searched = [parameter for parameter in parameters if parameter.is_searched]
    rows = [row for row in rows if metric.name in row]
    if not searched or not rows:
        return None
    figure = Figure(figsize=(max(4.5, 3.2 * len(searched)), 3.6), dpi=100, layout="constrained")
    columns = figure.subplots(1, len(searched), sharey=True, squeeze=False)[0]
    for axes, parameter in zip(columns, searched, strict=True):
        _draw_parameter(axes, rows, parameter, metric)
    columns[0].set_ylabel(metric.name)
    return figure


def _draw_parameter(axes: Axes, rows: Sequence[SweepRow], parameter: Parameter, metric: Metric) -> None:
    """Draw the metric over one parameter; runs that were stopped early in another colour."""
    choices = parameter.choices()
    texts = None if choices is None else [str(choice) for choice in choices]
    for row in rows:
        value = row[parameter.name]
        position = value if texts is None else texts.index(str(value))
        axes.plot(position, row[metric.name], "o", color=_COLOURS.get(row["state"], _COMPLETE), markersize=5, alpha=0.7)
    if texts is not None:
        axes.set_xticks(range(len(texts)), [Path(text).stem for text in texts], rotation=45, ha="right", fontsize=8)
    elif parameter.is_logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(".".join(part for part in parameter.path if part != "init_args")[-40:], fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
