"""The sheet of units: what each is worth, and what the costliest ones look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from composers.activations.page import COLOURS, SMALL, STYLES, WIDTH, Page, Scale, colour_bar

_LEFT, _RIGHT, _GAP, _BETWEEN = 0.2, 0.06, 0.16, 0.03
_CURVE, _HEADING, _FOOT = 2.75, 0.5, 0.3


class UnitCosts(NamedTuple):
    """What the units of a layer are worth.

    Attributes:
        layer: Counted from 0.
        psnr: With all units, the mean over pictures in dB.
        order: Units ``(O,)``, the costliest on average first.
        costs: PSNR in dB ``(B, O)`` lost without a unit, in that order.
        maps: Of the first units in that order, ``(b, U, h, w)`` of the first pictures.
    """

    layer: int
    psnr: float
    order: list[int]
    costs: Tensor
    maps: Tensor


def unit_sheet(pictures: Mapping[str, Tensor], models: Mapping[str, UnitCosts]) -> Page:
    """Return the sheet: costs by rank with the quartiles over pictures, and maps of the costliest units.

    Args:
        pictures: The first ones, ``(3, H, W)`` uint8 by name.
        models: By name, with as many maps each.
    """
    _, number, height, width = next(iter(models.values())).maps.shape
    columns = 1 + number * len(models)
    gaps = _LEFT + _RIGHT + len(models) * (_GAP + (number - 1) * _BETWEEN)
    cell = min((WIDTH - gaps) / columns, 0.9)
    tall = cell * height / width
    page = Page(_CURVE + _HEADING + len(pictures) * (tall + _BETWEEN) + _FOOT)
    _draw_curves(page, models)
    for row, (title, pixels) in enumerate(pictures.items()):
        down = _CURVE + _HEADING + row * (tall + _BETWEEN)
        page.picture(pixels, _LEFT, down, cell, tall)
        page.name(title, _LEFT, down, tall)
    left, scales = _LEFT + cell + _GAP, []
    for (name, units), colour in zip(models.items(), COLOURS, strict=False):
        page.text(left, _CURVE, f"{name}, layer {units.layer}", color=colour, weight="bold")
        scales.append(_draw_maps(page, units, left, (cell, tall)))
        left += number * (cell + _BETWEEN) - _BETWEEN + _GAP
    colour_bar(page, scales, WIDTH - _RIGHT, page.size[1] - 0.2)
    return page


def _draw_curves(page: Page, models: Mapping[str, UnitCosts]) -> None:
    """Draw the costs of all models by rank."""
    axes = page.plot_axes(
        0.55, 0.15, WIDTH - 0.7, _CURVE - 0.65, "units, the costliest first", "PSNR lost without it [dB]"
    )
    axes.axhline(0, color="0.6", linewidth=0.5)
    for (name, units), colour, style in zip(models.items(), COLOURS, STYLES, strict=False):
        _draw_curve(axes, f"{name}, layer {units.layer}", units.costs.numpy(), colour, style)
    axes.margins(x=0.01)
    axes.legend(fontsize=SMALL + 0.5, frameon=False, title="mean and quartiles over pictures", title_fontsize=SMALL)


def _draw_curve(axes: Axes, name: str, costs: np.ndarray, colour: str, style: str) -> None:
    """Draw mean and quartiles of the costs of one model."""
    ranks = np.arange(1, costs.shape[1] + 1)
    low, high = np.quantile(costs, [0.25, 0.75], axis=0)
    axes.fill_between(ranks, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(ranks, costs.mean(0), style, color=colour, linewidth=1.2, label=name)


def _draw_maps(page: Page, units: UnitCosts, left: float, cell: tuple[float, float]) -> Scale:
    """Draw the maps of the costliest units of a model and return their scale of colour."""
    scale, mean = Scale(units.maps), units.costs.mean(0)
    width, height = cell
    for column in range(units.maps.shape[1]):
        across = left + column * (width + _BETWEEN)
        label = f"unit {units.order[column]}\n{mean[column]:.2f} dB"
        page.text(across, _CURVE + 0.2, label, fontsize=SMALL, linespacing=1.1)
        for row in range(len(units.maps)):
            down = _CURVE + _HEADING + row * (height + _BETWEEN)
            scale.draw(page.image_axes(across, down, width, height), row, column)
    return scale
