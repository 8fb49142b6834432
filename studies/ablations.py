"""Run the ablations locally: ``python -m studies.ablations`` trains all runs of a sweep, and plots the results."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from jsonargparse import auto_cli
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import composers
from datamodules.batch import Observation
from datamodules.configuration import load_config
from modalities.images import input_size

_SHOWN = {"gain": "predicted gain [dB]", "refined_gain": "refined gain [dB]"}  # where all runs have them
_UNITS = {"psnr": "PSNR [dB]", "ssim": "SSIM"}  # headings of other metrics
_OPEN_SIZE = 48  # pixels along each side of the image whose code is counted for a model of images of any size
_COLUMNS = ("variant", "seed", "steps", "parameters", "code")  # of the CSV file, before the metrics


@dataclass(frozen=True)
class AblationSettings:
    """Train every variant of a sweep with every seed, and collect the metrics of the final validation.

    Runs that are complete in the output folder are not repeated.

    Args:
        sweep: Config of a Weights & Biases sweep with the parameters ``config``, files that override the experiment of its
            command, and ``seed_everything``. The first file is the baseline.
        output: Folder for the runs, ``ablations.csv`` and ``ablations.png``.
        variants: Names of the files to use, without extension. If None, all.
        seeds: Seeds to use. If None, all of the sweep.
        options: Additional command-line arguments of ``cli.py fit`` for every run.

    Raises:
        ValueError: If the sweep does not contain a variant.
    """

    sweep: Path = Path("configs/sweeps/ablations.yaml")
    output: Path = Path("runs/ablations")
    variants: list[str] | None = None
    seeds: list[int] | None = None
    options: tuple[str, ...] = ()


class Run(NamedTuple):
    """A training run.

    Attributes:
        variant: Name of the file that overrides the experiment.
        seed: Seed of the run.
        command: Command that trains it.
        folder: Folder of its versions.
    """

    variant: str
    seed: int
    command: list[str]
    folder: Path


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


def planned(settings: AblationSettings) -> list[Run]:
    """Return the runs of a sweep, ordered by seed, so that an interrupted study has complete comparisons."""
    sweep = load_config(settings.sweep)
    layers = [item for item in sweep["command"] if item.startswith("--config=") and "wandb" not in item]
    files = {Path(file).stem: file for file in sweep["parameters"]["config"]["values"]}
    variants = list(files) if settings.variants is None else settings.variants
    if unknown := set(variants) - set(files):
        raise ValueError(
            f"variants contains {sorted(unknown)}; the variants of {settings.sweep} are {', '.join(files)}."
        )
    runs = []
    for seed in settings.seeds or sweep["parameters"]["seed_everything"]["values"]:
        for variant in variants:
            folder = settings.output / f"{variant}-{seed}"
            logger = "--trainer.logger.init_args"
            arguments = [*layers, f"--config={files[variant]}", f"--seed_everything={seed}"]
            arguments += [f"{logger}.save_dir={folder.parent}", f"{logger}.name={folder.name}", *settings.options]
            runs.append(Run(variant, seed, [sys.executable, "cli.py", "fit", *arguments], folder))
    return runs


def outcome(run: Run) -> Outcome | None:
    """Return the result of a run, or None if it is incomplete."""
    for log in sorted(run.folder.glob("version_*/metrics.csv"), reverse=True):
        with log.open(newline="", encoding="utf-8") as file:
            validations = [row for row in csv.DictReader(file) if row.get("val/psnr")]
        weights = log.parent / "checkpoints" / "last.ckpt"
        if validations and weights.exists() and _is_last(validations[-1], log.parent / "config.yaml"):
            last = {
                name.removeprefix("val/"): value for name, value in validations[-1].items() if name.startswith("val/")
            }
            figures = {name: float(value) for name, value in last.items() if value and name != "loss"}
            return Outcome(run.variant, run.seed, int(validations[-1]["step"]) + 1, *_sizes(weights), figures)
    return None


def _is_last(validation: Mapping[str, str], config: Path) -> bool:
    """Return whether a validation is that of the last epoch of a run; a run without a number of epochs has no such."""
    epochs = yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]["max_epochs"]
    return epochs in (None, -1) or int(validation["epoch"]) + 1 >= epochs


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


def train(runs: Sequence[Run]) -> list[Outcome]:
    """Train incomplete runs, each in a subprocess, and return the results of all runs.

    Raises:
        RuntimeError: If a run fails. Results of earlier runs are kept.
    """
    outcomes = []
    for number, run in enumerate(runs):
        if outcome(run) is None:
            Console(stderr=True, soft_wrap=True).print(f"{number + 1} of {len(runs)}: {run.variant}, seed {run.seed}")
            process = subprocess.run(run.command, stdout=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "200"})  # noqa: S603
            if process.returncode or outcome(run) is None:
                raise RuntimeError(
                    f"{run.variant} with seed {run.seed} failed with exit status {process.returncode}: {run.command}"
                )
        result = outcome(run)
        assert result is not None
        outcomes.append(result)
    return outcomes


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a CSV file with one row per run."""
    with path.open("w", newline="", encoding="utf-8") as file:
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


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    settings = auto_cli(AblationSettings, args=args)
    try:
        outcomes = train(planned(settings))
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    write(outcomes, settings.output / "ablations.csv")
    draw(outcomes).savefig(settings.output / "ablations.png")
    console = Console(soft_wrap=True)
    console.print(table(outcomes))
    console.print(f"Results: {settings.output / 'ablations.csv'}; figure: {settings.output / 'ablations.png'}")


if __name__ == "__main__":
    main()
