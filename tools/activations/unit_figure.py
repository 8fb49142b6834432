"""Figure of the importance of units, with activation maps of the most important ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from tools.activations.maps import FOOT, MapRows, UnitGroup, colour_bar
from tools.activations.page import COLOURS, SMALL, STYLES, WIDTH, Page
from tools.activations.units import UnitAblation

_CURVE_HEIGHT = 2.75  # inches


def unit_figure(images: Mapping[str, Tensor], models: Mapping[str, UnitAblation], layer: int) -> Page:
    """Draw the lost PSNR by rank with quartiles over images, and maps of the most important units.

    Args:
        images: First images, square, ``(3, H, W)`` uint8 by name.
        models: Ablations by model name, with the same number of maps.
        layer: Layer of the units.
    """
    groups = [
        UnitGroup(name, f"layer {layer}", _labels(units), units.maps, colour)
        for (name, units), colour in zip(models.items(), COLOURS, strict=False)
    ]
    rows = MapRows(images, groups)
    page = Page(_CURVE_HEIGHT + rows.height + FOOT)
    _draw_curves(page, models, layer)
    colour_bar(page, rows.draw(page, _CURVE_HEIGHT))
    return page


def _labels(units: UnitAblation) -> list[str]:
    """Return the unit of every map with the PSNR that is lost without it on average."""
    mean = units.losses.mean(0).tolist()
    return [f"unit {units.order[rank]}\n{mean[rank]:.2f} dB" for rank in range(units.maps.shape[1])]


def _draw_curves(page: Page, models: Mapping[str, UnitAblation], layer: int) -> None:
    """Draw mean and quartiles of the lost PSNR of all models by rank."""
    labels = "units, most important first", "PSNR lost without the unit [dB]"
    axes = page.plot_axes(0.55, 0.15, WIDTH - 0.7, _CURVE_HEIGHT - 0.65, *labels)
    axes.axhline(0, color="0.6", linewidth=0.5)
    for (name, units), colour, style in zip(models.items(), COLOURS, STYLES, strict=False):
        losses = units.losses.numpy()
        ranks = np.arange(1, losses.shape[1] + 1)
        axes.fill_between(ranks, *np.quantile(losses, [0.25, 0.75], axis=0), color=colour, alpha=0.2, linewidth=0)
        axes.plot(ranks, losses.mean(0), style, color=colour, linewidth=1.2, label=f"{name}, layer {layer}")
    axes.margins(x=0.01)
    axes.legend(fontsize=SMALL + 0.5, frameon=False, title="mean and quartiles over images", title_fontsize=SMALL)
