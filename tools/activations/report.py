"""Figures and tables in a folder, with summary lines to print."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from datamodules.storage.files import written_whole
from tools.activations.activation_figure import activation_figure
from tools.activations.analysis import ModelAnalysis
from tools.activations.code_figure import code_figure
from tools.activations.unit_figure import unit_figure

_MIN_IMAGES = 3  # for the figure of codes: the codes of two images lie on a line

TableRow = Sequence[object]


def report_activations(analyses: Sequence[ModelAnalysis], folder: Path) -> list[str]:
    """Write ``activations.png`` and ``layers.csv``; return the lines to print."""
    lines, rows = [], list[TableRow]()
    for analysis in analyses:
        shares = analysis.shares
        rows += [(analysis.name, layer, layer in analysis.modulated, share) for layer, share in shares.items()]
        parts = [f"layer {layer} {share:.1%}" for layer, share in shares.items() if share is not None]
        if parts:
            lines.append(f"{analysis.name}: share of the variance of activations between images: {', '.join(parts)}")
    _write_table(folder / "layers.csv", ["model", "layer", "modulated", "share_between_images"], rows)
    models = {analysis.name: analysis.layers() for analysis in analyses}
    activation_figure(analyses[0].shown, models).save(folder / "activations.png")
    lines = lines or ["No share of variance between images: there is only one image."]
    return [*lines, _written(folder, "activations.png", "layers.csv")]


def report_units(analyses: Sequence[ModelAnalysis], folder: Path) -> list[str]:
    """Write ``units.png`` and ``units.csv``; return the lines to print."""
    layer = analyses[0].layer
    lines, rows, models = [], list[TableRow](), {}
    for analysis in analyses:
        models[analysis.name] = ablation = analysis.units()
        quartiles = ablation.losses.quantile(torch.tensor([0.25, 0.75]), dim=0)
        statistics = torch.cat([ablation.losses.mean(0, keepdim=True), quartiles]).T.tolist()
        rows += [(analysis.name, layer, unit, *row) for unit, row in zip(ablation.order, statistics, strict=True)]
        mean, low, high = statistics[0]
        lines.append(
            f"{analysis.name}: the most important unit of layer {layer} is {ablation.order[0]}; without it, {mean:.2f} dB of "
            f"{ablation.psnr:.2f} dB are lost (quartiles {low:.2f} to {high:.2f})"
        )
    columns = ["psnr_lost_mean", "psnr_lost_lower_quartile", "psnr_lost_upper_quartile"]
    _write_table(folder / "units.csv", ["model", "layer", "unit", *columns], rows)
    unit_figure(analyses[0].shown, models, layer).save(folder / "units.png")
    return [*lines, _written(folder, "units.png", "units.csv")]


def report_codes(analyses: Sequence[ModelAnalysis], folder: Path) -> list[str]:
    """Write ``codes.png``, ``codes.csv`` and ``components.csv`` for at least three images; return the lines to print."""
    first, names = analyses[0], list(analyses[0].images)
    if len(names) < _MIN_IMAGES:
        return [f"No figure of codes: it requires at least {_MIN_IMAGES} images, got {len(names)}."]
    models = {analysis.name: analysis.components() for analysis in analyses}
    crops = [None] * len(names) + list(range(first.settings.crops)) * len(names)
    codes = [
        (model, names[owner], crop, *scores)
        for model, components in models.items()
        for owner, crop, scores in zip(first.owners, crops, components.scores[:, :2].tolist(), strict=True)
    ]
    shares = [
        (model, number, share)
        for model, components in models.items()
        for number, share in enumerate(components.shares.tolist(), 1)
    ]
    _write_table(folder / "codes.csv", ["model", "image", "crop", "component_1", "component_2"], codes)
    _write_table(folder / "components.csv", ["model", "component", "share_of_variance"], shares)
    code_figure(first.images, models, first.owners).save(folder / "codes.png")
    lines = [
        f"{model}: two components explain {components.shares[:2].sum():.1%} of the variance of {len(crops)} codes"
        for model, components in models.items()
    ]
    return [*lines, _written(folder, "codes.png", "codes.csv", "components.csv")]


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[TableRow]) -> None:
    """Write a table as CSV; None is an empty cell."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _written(folder: Path, *names: str) -> str:
    """Return the line that lists written files."""
    return f"Wrote {', '.join(str(folder / name) for name in names)}"
