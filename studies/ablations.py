"""The ablations, run on this machine: ``python -m studies.ablations`` trains what the sweep lists and draws the outcome."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from modalities.images import input_size

_SHOWN = {"gain": "predicted gain [dB]", "refined_gain": "refined gain [dB]"}
_FIGURES = ("psnr", "gain", "ssim", "refined_psnr", "refined_gain", "refined_ssim")


@dataclass(frozen=True)
class AblationSettings:
    """Train every variant of a sweep with every seed, and collect what validation measured at the end.

    A variant that was trained in the same output folder before is not trained again.

    Args:
        sweep: Config of a sweep of Weights & Biases whose parameters are ``config``, files laid over the experiment that its
            command names, and ``seed_everything``. The first file is what the others are compared with.
        output: Folder of the runs, and of ``ablations.csv`` and ``ablations.png``.
        variants: Names of the files to take, without ending; all if None.
        seeds: Seeds to take; all of the sweep if None.
        options: What every run is told besides, as on the command line of ``cli.py fit``.

    Raises:
        ValueError: If the sweep has no such variants.
    """

    sweep: Path = Path("configs/sweeps/ablations.yaml")
    output: Path = Path("runs/ablations")
    variants: list[str] | None = None
    seeds: list[int] | None = None
    options: tuple[str, ...] = ()


class Run(NamedTuple):
    """One training.

    Attributes:
        variant: Name of the file that is laid over the experiment.
        seed: Of everything.
        command: What trains it.
        folder: Where its versions lie.
    """

    variant: str
    seed: int
    command: list[str]
    folder: Path


class Outcome(NamedTuple):
    """What came of a training.

    Attributes:
        variant: What was changed.
        seed: Of everything.
        steps: Training steps.
        parameters: Of the whole model.
        code: Numbers of an instance code.
        figures: Means over the held-out images, by metric.
    """

    variant: str
    seed: int
    steps: int
    parameters: int
    code: int
    figures: dict[str, float]


def planned(settings: AblationSettings) -> list[Run]:
    """Return the runs of a sweep, seed by seed, so that an early stop leaves whole comparisons."""
    sweep: dict[str, Any] = yaml.safe_load(settings.sweep.read_text(encoding="utf-8"))
    layers = [item for item in sweep["command"] if item.startswith("--config=") and "wandb" not in item]
    files = {Path(file).stem: file for file in sweep["parameters"]["config"]["values"]}
    variants = list(files) if settings.variants is None else settings.variants
    if unknown := set(variants) - set(files):
        raise ValueError(f"variants names {sorted(unknown)}; {settings.sweep} has {', '.join(files)}.")
    runs = []
    for seed in settings.seeds or sweep["parameters"]["seed_everything"]["values"]:
        for variant in variants:
            folder = settings.output / f"{variant}-{seed}"
            place = [f"--trainer.logger.init_args.{key}={value}" for key, value in _place(folder).items()]
            told = [*layers, f"--config={files[variant]}", f"--seed_everything={seed}", *place, *settings.options]
            runs.append(Run(variant, seed, [sys.executable, "cli.py", "fit", *told], folder))
    return runs


def _place(folder: Path) -> dict[str, str]:
    """Return what the logger calls a folder."""
    return {"save_dir": str(folder.parent), "name": folder.name}


def outcome(run: Run) -> Outcome | None:
    """Return what came of a run, None if it was not finished yet."""
    for log in sorted(run.folder.glob("version_*/metrics.csv"), reverse=True):
        with log.open(newline="", encoding="utf-8") as file:
            measured = [row for row in csv.DictReader(file) if row.get("val/refined_gain")]
        weights = log.parent / "checkpoints" / "last.ckpt"
        if measured and weights.exists():
            figures = {name: float(measured[-1][f"val/{name}"]) for name in _FIGURES}
            return Outcome(run.variant, run.seed, int(measured[-1]["step"]) + 1, *_sizes(weights), figures)
    return None


def _sizes(weights: Path) -> tuple[int, int]:
    """Return the parameters of a model and the numbers of its codes."""
    composer = composers.load(weights)
    size = input_size(composer)
    with torch.no_grad():
        latents = composer.encode(Observation(torch.zeros(1, 3, size, size)))
    return sum(one.numel() for one in composer.parameters()), sum(latent.numel() for latent in latents.values())


def train(runs: Sequence[Run]) -> list[Outcome]:
    """Train what was not trained yet, each run in a process of its own, and return what came of all.

    Raises:
        RuntimeError: If a run fails; the others are kept.
    """
    found = []
    for number, run in enumerate(runs):
        if outcome(run) is None:
            Console(stderr=True, soft_wrap=True).print(f"{number + 1} of {len(runs)}: {run.variant}, seed {run.seed}")
            done = subprocess.run(run.command, stdout=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "200"})  # noqa: S603
            if done.returncode or outcome(run) is None:
                raise RuntimeError(f"{run.variant} with seed {run.seed} ended with {done.returncode}: {run.command}")
        ended = outcome(run)
        assert ended is not None
        found.append(ended)
    return found


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a CSV row per run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", "steps", "parameters", "code", *_FIGURES])
        writer.writerows([*one[:-1], *(f"{one.figures[name]:.4f}" for name in _FIGURES)] for one in outcomes)


def read(path: Path) -> list[Outcome]:
    """Return the outcomes of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [_outcome(row) for row in rows]


def _outcome(row: dict[str, str]) -> Outcome:
    """Return the outcome in a row of a CSV."""
    seed, steps, parameters, code = (int(row[name]) for name in ("seed", "steps", "parameters", "code"))
    return Outcome(row["variant"], seed, steps, parameters, code, {name: float(row[name]) for name in _FIGURES})


def by_variant(outcomes: Sequence[Outcome], figure: str) -> dict[str, list[float]]:
    """Return a figure of every seed, variant by variant."""
    found: dict[str, list[float]] = {}
    for one in outcomes:
        found.setdefault(one.variant, []).append(one.figures[figure])
    return found


def mean_and_spread(numbers: Sequence[float]) -> str:
    """Return the mean and the standard deviation over seeds, as people write them.

    Example:
        >>> mean_and_spread([1.0, 2.0, 3.0])
        '2.00 ± 1.00'
    """
    spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{spread}"


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return a line per variant: the numbers of a code, and mean and deviation over seeds of what was predicted and refined."""
    seeds = sorted({one.seed for one in outcomes})
    made = Table(title=f"{outcomes[0].steps:,} steps, seeds {seeds}", title_justify="left")
    for heading in ("variant", "parameters", "code", *_SHOWN.values()):
        made.add_column(escape(heading), justify="left" if heading == "variant" else "right")
    shown = {figure: by_variant(outcomes, figure) for figure in _SHOWN}
    for one in {one.variant: one for one in outcomes}.values():
        cells = (mean_and_spread(shown[figure][one.variant]) for figure in _SHOWN)
        made.add_row(one.variant, f"{one.parameters:,}", f"{one.code:,}", *cells)
    return made


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Return dots, one per seed, variant below variant, of what was predicted and refined; a line marks the first variant."""
    variants = list(by_variant(outcomes, "gain"))
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(variants)), dpi=100, layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(_SHOWN), sharey=True), _SHOWN.items(), strict=True):
        _draw_column(axes, by_variant(outcomes, name))
        axes.set_xlabel(label, fontsize=11)
    return figure


def _draw_column(axes: Axes, numbers: dict[str, list[float]]) -> None:
    """Draw the dots of one figure."""
    axes.axvline(statistics.mean(next(iter(numbers.values()))), color="#888888", linewidth=1, linestyle="--")
    for row, found in enumerate(numbers.values()):
        axes.plot(found, [row] * len(found), "o", color="#3b6ea5", markersize=5, alpha=0.6, markeredgewidth=0)
        axes.plot(statistics.mean(found), row, "|", color="#1b3550", markersize=13, markeredgewidth=2)
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
    console.print(f"Every run: {settings.output / 'ablations.csv'}; drawn: {settings.output / 'ablations.png'}")


if __name__ == "__main__":
    main()
