"""Figure of codes: their first two principal components, and the variance that each component explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tools.activations.components import Components
from tools.activations.page import COLOURS, SMALL, STYLES, WIDTH, Page, short

_MAX_THUMBNAILS = 8
_THUMBNAIL_SIZE = 20.0  # points
_MAX_NAMES = 10
_NAMES_PER_ROW = 5
_NUM_COMPONENTS = 10


def code_figure(images: Mapping[str, Tensor], models: Mapping[str, Components], owners: Sequence[int]) -> Page:
    """Draw the figure.

    Args:
        images: Images ``(3, H, W)`` uint8 by name.
        models: Components of codes by model name: first of the images, then of their crops.
        owners: Index of the image that every code belongs to.
    """
    side = min((WIDTH - 1.9 - 0.65 * len(models)) / len(models), 3.2)
    rows = math.ceil(len(images) / _NAMES_PER_ROW) if len(images) <= _MAX_NAMES else 0
    page = Page(side + 1.0 + 0.14 * rows)
    colours = _colours(len(images))
    for index, (name, components) in enumerate(models.items()):
        left = 0.55 + index * (side + 0.65)
        page.text(left, 0.08, name, weight="bold", color=COLOURS[index])
        labels = [
            f"component {number + 1} ({share:.0%})" for number, share in enumerate(components.shares[:2].tolist())
        ]
        axes = page.plot_axes(left, 0.3, side, side, *labels)
        _draw_codes(axes, images, components.scores.numpy(), owners, colours)
    left = 0.55 + len(models) * (side + 0.65)
    _draw_shares(page.plot_axes(left, 0.3, WIDTH - left - 0.1, side, "component", "variance explained [%]"), models)
    if len(owners) > len(images):
        kind = "Framed" if len(images) <= _MAX_THUMBNAILS else "Outlined in black"
        page.text(0.55, side + 0.78, f"{kind}: images. Points: their crops.", fontsize=SMALL)
    if rows:
        _draw_names(page, [short(name) for name in images], colours, side + 0.94)
    return page


def _colours(count: int) -> np.ndarray:
    """Return a colour for each image: distinct colours for few images, shades for many."""
    if count <= _MAX_NAMES:
        return mpl.colormaps["tab10"](range(count))
    return mpl.colormaps["viridis"](np.linspace(0, 0.95, count))


def _draw_codes(
    axes: Axes, images: Mapping[str, Tensor], scores: np.ndarray, owners: Sequence[int], colours: np.ndarray
) -> None:
    """Draw codes of crops as points, and codes of images as framed thumbnails, or as larger points if there are many."""
    crops = slice(len(images), None)
    x, y = scores[:, 0], scores[:, 1]
    axes.axhline(0, color="0.85", linewidth=0.5, zorder=0)
    axes.axvline(0, color="0.85", linewidth=0.5, zorder=0)
    axes.scatter(x[crops], y[crops], s=11, c=colours[list(owners)[crops]], edgecolors="white", linewidths=0.3, zorder=4)
    axes.scatter(x[: len(images)], y[: len(images)], s=36, c=colours, edgecolors="black", linewidths=0.5)
    axes.margins(0.12)
    if len(images) <= _MAX_THUMBNAILS:
        for index, pixels in enumerate(images.values()):
            box = OffsetImage(pixels.permute(1, 2, 0).numpy(), zoom=_THUMBNAIL_SIZE / max(pixels.shape[1:]))
            frame = {"edgecolor": colours[index], "linewidth": 1.5}
            axes.add_artist(AnnotationBbox(box, (x[index], y[index]), pad=0.1, bboxprops=frame))


def _draw_shares(axes: Axes, models: Mapping[str, Components]) -> None:
    """Draw the variance explained by the first components."""
    for (name, components), colour, style in zip(models.items(), COLOURS, STYLES, strict=False):
        shares = 100 * components.shares[:_NUM_COMPONENTS].numpy()
        ranks = np.arange(1, len(shares) + 1)
        axes.plot(ranks, shares, style, marker="o", markersize=2.5, linewidth=1, color=colour, label=name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xticks([1, 5, _NUM_COMPONENTS])
    axes.set_xlim(0.5, _NUM_COMPONENTS + 0.5)


def _draw_names(page: Page, names: Sequence[str], colours: np.ndarray, top: float) -> None:
    """Write the names of the images in their colours, in columns."""
    for index, name in enumerate(names):
        row, column = divmod(index, _NAMES_PER_ROW)
        page.text(0.55 + 1.28 * column, top + 0.14 * row, f"● {name}", fontsize=SMALL, color=colours[index])
