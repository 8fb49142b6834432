"""The figure of units: what each is worth, and what the costliest ones look like."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from tools.activations.maps import FOOT, MapRows, UnitGroup, colour_bar
from tools.activations.page import COLOURS, SMALL, STYLES, WIDTH, Page
from tools.activations.units import UnitCosts

_CURVE = 2.75


def unit_figure(images: Mapping[str, Tensor], models: Mapping[str, UnitCosts], layer: int) -> Page:
    """Return the figure: costs by rank with the quartiles over images, and maps of the costliest units.

    Args:
        images: Square ones, the first, ``(3, H, W)`` uint8 by name.
        models: By name, with as many maps each.
        layer: That of the units.
    """
    groups = [
        UnitGroup(name, f"layer {layer}", _labels(units), units.maps, colour)
        for (name, units), colour in zip(models.items(), COLOURS, strict=False)
    ]
    rows = MapRows(images, groups)
    page = Page(_CURVE + rows.height + FOOT)
    _draw_curves(page, models, layer)
    colour_bar(page, rows.draw(page, _CURVE))
    return page


def _labels(units: UnitCosts) -> list[str]:
    """Return for every map its unit and what that costs on average."""
    mean = units.costs.mean(0).tolist()
    return [f"unit {units.order[rank]}\n{mean[rank]:.2f} dB" for rank in range(units.maps.shape[1])]


def _draw_curves(page: Page, models: Mapping[str, UnitCosts], layer: int) -> None:
    """Draw mean and quartiles of the costs of all models by rank."""
    labels = "units, the costliest first", "PSNR lost without it [dB]"
    axes = page.plot_axes(0.55, 0.15, WIDTH - 0.7, _CURVE - 0.65, *labels)
    axes.axhline(0, color="0.6", linewidth=0.5)
    for (name, units), colour, style in zip(models.items(), COLOURS, STYLES, strict=False):
        costs = units.costs.numpy()
        ranks = np.arange(1, costs.shape[1] + 1)
        axes.fill_between(ranks, *np.quantile(costs, [0.25, 0.75], axis=0), color=colour, alpha=0.2, linewidth=0)
        axes.plot(ranks, costs.mean(0), style, color=colour, linewidth=1.2, label=f"{name}, layer {layer}")
    axes.margins(x=0.01)
    axes.legend(fontsize=SMALL + 0.5, frameon=False, title="mean and quartiles over images", title_fontsize=SMALL)
