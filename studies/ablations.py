"""Results of ablations, sweeps over variants and seeds: table, CSV file and figure of their metrics.

``python -m studies.sweep configs/sweeps/ablations.yaml`` trains the runs.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

import composers
from datamodules.batch import Observation
from datamodules.storage.files import written_whole
from modalities.images import input_size
from studies.search import Sweep
from studies.sweep_runs import FINISHED, SweepRun, validations

_SHOWN = {"gain": "predicted gain [dB]", "refined_gain": "refined gain [dB]"}  # where all runs have them
_UNITS = {"psnr": "PSNR [dB]", "ssim": "SSIM"}  # headings of other metrics
_PARAMETERS = {"config", "seed_everything"}
_OPEN_SIZE = 48  # pixels along each side of the image whose code is counted for a model of images of any size
_COLUMNS = ("variant", "seed", "steps", "parameters", "code")  # of the CSV file, before the metrics


class Outcome(NamedTuple):
    """Result of a training run.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the run.
        steps: Number of training steps.
        parameters: Number of parameters of the model.
        code: Code size: number of values of an instance code.
        figures: Metrics averaged over the held-out images.
    """

    variant: str
    seed: int
    steps: int
    parameters: int
    code: int
    figures: dict[str, float]


def outcomes_of(sweep: Sweep, runs: Sequence[SweepRun]) -> list[Outcome]:
    """Return the results of the complete runs of an ablation study; an empty list if the sweep is not one.

    An ablation study is a grid over ``config``, files that override the experiment, and ``seed_everything``.
    """
    if {parameter.name for parameter in sweep.parameters} != _PARAMETERS:
        return []
    return [result for run in runs if run.state == FINISHED and (result := outcome(run)) is not None]


def outcome(run: SweepRun) -> Outcome | None:
    """Return the result of a run; None without a validation or a checkpoint."""
    measured = validations(run.folder)
    weights = sorted(run.folder.glob("version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not measured or not weights:
        return None
    last = {name.removeprefix("val/"): value for name, value in measured[-1].items() if name.startswith("val/")}
    figures = {name: value for name, value in last.items() if name != "loss"}
    variant, seed = Path(run.values["config"]).stem, run.values["seed_everything"]
    return Outcome(variant, seed, int(measured[-1]["step"]) + 1, *_sizes(weights[-1]), figures)


def _sizes(weights: Path) -> tuple[int, int]:
    """Return the number of parameters and the code size of a model; that of a small image if it takes any size."""
    composer = composers.load(weights)
    try:
        size = input_size(composer)
    except ValueError:
        size = _OPEN_SIZE
    with torch.no_grad():
        latents = composer.encode(Observation(torch.zeros(1, 3, size, size)))
    return sum(parameter.numel() for parameter in composer.parameters()), sum(
        latent.numel() for latent in latents.values()
    )


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a CSV file with one row per run."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = figures_of(outcomes)
        writer.writerow([*_COLUMNS, *names])
        writer.writerows([*result[:-1], *(f"{result.figures[name]:.4f}" for name in names)] for result in outcomes)


def read(path: Path) -> list[Outcome]:
    """Return the results in a CSV file."""
    outcomes = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seed, steps, parameters, code = (int(row[name]) for name in _COLUMNS[1:])
            figures = {name: float(value) for name, value in row.items() if name not in _COLUMNS}
            outcomes.append(Outcome(row["variant"], seed, steps, parameters, code, figures))
    return outcomes


def figures_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the names of the metrics that all runs have, in the order of the first run."""
    return [name for name in outcomes[0].figures if all(name in result.figures for result in outcomes)]


def shown(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return the headings of the metrics in the table and the figure, by name.

    These are the gains, predicted and refined. Without them, it is the PSNR by scale, or without scales PSNR and SSIM.
    """
    names = figures_of(outcomes)
    if all(name in names for name in _SHOWN):
        return dict(_SHOWN)
    scales = sorted(float(name.removeprefix("psnr_x")) for name in names if name.startswith("psnr_x"))
    return {f"psnr_x{scale:g}": f"PSNR x{scale:g} [dB]" for scale in scales} or {
        name: heading for name, heading in _UNITS.items() if name in names
    }


def by_variant(outcomes: Sequence[Outcome], figure: str) -> dict[str, list[float]]:
    """Return the values of one metric over seeds, by variant."""
    values: dict[str, list[float]] = {}
    for result in outcomes:
        values.setdefault(result.variant, []).append(result.figures[figure])
    return values


def mean_and_spread(numbers: Sequence[float]) -> str:
    """Return the mean and the standard deviation, formatted as text.

    Example:
        >>> mean_and_spread([1.0, 2.0, 3.0])
        '2.00 ± 1.00'
    """
    spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{spread}"


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return a table of parameters, code size, and mean and standard deviation over seeds of the metrics, by variant."""
    seeds = sorted({result.seed for result in outcomes})
    rows = Table(title=f"{outcomes[0].steps:,} steps, seeds {seeds}", title_justify="left")
    figures = shown(outcomes)
    for heading in ("variant", "parameters", "code", *figures.values()):
        rows.add_column(escape(heading), justify="left" if heading == "variant" else "right")
    values = {figure: by_variant(outcomes, figure) for figure in figures}
    for result in {result.variant: result for result in outcomes}.values():
        cells = (mean_and_spread(values[figure][result.variant]) for figure in figures)
        rows.add_row(result.variant, f"{result.parameters:,}", f"{result.code:,}", *cells)
    return rows


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Return a dot plot of the metrics, one row per variant and one dot per seed; a line marks the baseline."""
    figures = shown(outcomes)
    variants = list(by_variant(outcomes, next(iter(figures))))
    figure = Figure(figsize=(max(9, 2.5 * len(figures)), 1.2 + 0.28 * len(variants)), dpi=100, layout="constrained")
    columns = figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for axes, (name, label) in zip(columns, figures.items(), strict=True):
        _draw_column(axes, by_variant(outcomes, name))
        axes.set_xlabel(label, fontsize=11)
    return figure


def _draw_column(axes: Axes, numbers: dict[str, list[float]]) -> None:
    """Draw the values of one metric."""
    axes.axvline(statistics.mean(next(iter(numbers.values()))), color="#888888", linewidth=1, linestyle="--")
    for row, values in enumerate(numbers.values()):
        axes.plot(values, [row] * len(values), "o", color="#3b6ea5", markersize=5, alpha=0.6, markeredgewidth=0)
        axes.plot(statistics.mean(values), row, "|", color="#1b3550", markersize=13, markeredgewidth=2)
    axes.set_yticks(range(len(numbers)), list(numbers), fontsize=10)
    axes.set_ylim(len(numbers) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
