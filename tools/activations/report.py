"""Figures and tables in a folder, and lines that say what they show."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tools.activations.activation_figure import activation_figure
from tools.activations.code_figure import code_figure
from tools.activations.subject import Subject
from tools.activations.unit_figure import unit_figure
from tools.activations.units import UnitCosts

_FEWEST_IMAGES = 3  # of which codes are drawn: fewer lie on a line

TableRow = Sequence[object]


def report_activations(subjects: Sequence[Subject], folder: Path) -> list[str]:
    """Write ``activations.png`` and ``layers.csv``; return the lines to print."""
    told, rows = [], list[TableRow]()
    for subject in subjects:
        own = subject.network.modulated_layers
        rows += [(subject.name, layer, layer in own, share) for layer, share in enumerate(subject.shares)]
        parts = [f"layer {layer} {share:.1%}" for layer, share in enumerate(subject.shares) if share is not None]
        if parts:
            told.append(f"{subject.name}: variance of activations that lies between images: {', '.join(parts)}")
    _write_table(folder / "layers.csv", ["model", "layer", "modulated", "share_between_images"], rows)
    models = {subject.name: subject.layers() for subject in subjects}
    activation_figure(subjects[0].shown, models).save(folder / "activations.png")
    told = told or ["No share of variance between images: there is one image."]
    return [*told, _wrote(folder, "activations.png", "layers.csv")]


def report_units(subjects: Sequence[Subject], folder: Path) -> list[str]:
    """Write ``units.png`` and ``units.csv``; return the lines to print."""
    layer = subjects[0].layer
    told, rows, models = [], list[TableRow](), {}
    for subject in subjects:
        models[subject.name] = found = subject.units()
        costs = _mean_and_quartiles(found)
        rows += [(subject.name, layer, unit, *cost) for unit, cost in zip(found.order, costs, strict=True)]
        mean, low, high = costs[0]
        told.append(
            f"{subject.name}: the costliest unit of layer {layer} is {found.order[0]}; without it {mean:.2f} dB of "
            f"{found.psnr:.2f} dB are lost (quartiles {low:.2f} to {high:.2f})"
        )
    lost = ["psnr_lost_mean", "psnr_lost_lower_quartile", "psnr_lost_upper_quartile"]
    _write_table(folder / "units.csv", ["model", "layer", "unit", *lost], rows)
    unit_figure(subjects[0].shown, models, layer).save(folder / "units.png")
    return [*told, _wrote(folder, "units.png", "units.csv")]


def _mean_and_quartiles(units: UnitCosts) -> list[list[float]]:
    """Return for every unit, the costliest first, the mean and the quartiles of its costs over images."""
    quartiles = units.costs.quantile(torch.tensor([0.25, 0.75]), dim=0)
    numbers: list[list[float]] = torch.cat([units.costs.mean(0, keepdim=True), quartiles]).T.tolist()
    return numbers


def report_codes(subjects: Sequence[Subject], folder: Path) -> list[str]:
    """Write ``codes.png``, ``codes.csv`` and ``components.csv``, of three images or more; return the lines to print."""
    first, names = subjects[0], list(subjects[0].images)
    if len(names) < _FEWEST_IMAGES:
        return [f"No figure of codes: it needs at least {_FEWEST_IMAGES} images, here are {len(names)}."]
    models = {subject.name: subject.components() for subject in subjects}
    crops = [None] * len(names) + list(range(first.settings.crops)) * len(names)
    codes = [
        (model, names[owner], crop, *scores)
        for model, found in models.items()
        for owner, crop, scores in zip(first.owners, crops, found.scores[:, :2].tolist(), strict=True)
    ]
    shares = [(model, 1 + k, share) for model, found in models.items() for k, share in enumerate(found.shares.tolist())]
    _write_table(folder / "codes.csv", ["model", "image", "crop", "component_1", "component_2"], codes)
    _write_table(folder / "components.csv", ["model", "component", "share_of_variance"], shares)
    code_figure(first.images, models, first.owners).save(folder / "codes.png")
    told = [
        f"{model}: two components explain {found.shares[:2].sum():.1%} of the variance of {len(crops)} codes"
        for model, found in models.items()
    ]
    return [*told, _wrote(folder, "codes.png", "codes.csv", "components.csv")]


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[TableRow]) -> None:
    """Write a table; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _wrote(folder: Path, *names: str) -> str:
    """Return the line that says what was written."""
    return f"Wrote {', '.join(str(folder / name) for name in names)}"
