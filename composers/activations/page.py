"""A page of a paper: axes placed in inches, type that can be read in print, no state shared with other figures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

WIDTH = 7.0  # inches: both columns of a paper
SMALL, NORMAL = 6.5, 8.0  # points
COLOURS = ("#0072B2", "#D55E00")  # told apart by the colour-blind too; lines are also solid and dashed
STYLES = ("-", "--")
_LONGEST_NAME = 16
_LETTER = 0.05  # inches of a small letter


class Page:
    """A white page.

    Args:
        height: Inches.
        width: Inches.
    """

    def __init__(self, height: float, width: float = WIDTH) -> None:
        self.size = (width, height)
        self.figure = Figure(figsize=self.size, dpi=200, facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return new axes, all in inches from the top left corner of the page."""
        across, down = self.size
        return self.figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))

    def plot_axes(self, left: float, top: float, width: float, height: float, x: str, y: str) -> Axes:
        """Return new axes for curves and points, with labels and without a box."""
        axes = self.axes(left, top, width, height)
        axes.set_xlabel(x, fontsize=NORMAL)
        axes.set_ylabel(y, fontsize=NORMAL)
        axes.tick_params(labelsize=SMALL, width=0.6, length=2.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_linewidth(0.6)
        return axes

    def image_axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return new axes for a picture, with a thin frame and no ticks."""
        axes = self.axes(left, top, width, height)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_linewidth(0.3)
        return axes

    def picture(self, pixels: Tensor, left: float, top: float, width: float, height: float) -> None:
        """Show a picture ``(3, H, W)`` uint8."""
        axes = self.image_axes(left, top, width, height)
        axes.imshow(pixels.permute(1, 2, 0).numpy(), aspect="auto", interpolation="nearest")

    def name(self, title: str, left: float, top: float, height: float) -> None:
        """Write the name of a picture upright beside its left edge, shortened to the height of the picture."""
        style: dict[str, Any] = {"fontsize": SMALL, "rotation": 90, "va": "center", "ha": "right"}
        longest = min(_LONGEST_NAME, max(1, int(height / _LETTER)))
        self.text(left - 0.03, top + height / 2, short(title, longest), **style)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Write words, by default with their top left corner at a place; nothing in them is a formula."""
        across, down = self.size
        settings: dict[str, Any] = {"fontsize": NORMAL, "va": "top", "parse_math": False} | style
        self.figure.text(left / across, 1 - top / down, words, **settings)

    def save(self, path: Path) -> None:
        """Write the page as a PNG."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script without type shows boxes
            self.figure.savefig(path)


class Scale:
    """Maps of units as colours: every unit by its own largest activation, the same for all pictures of a model.

    Activations that are never negative go from white to black, others from blue over white to red.

    Args:
        maps: ``(B, U, h, w)``.
    """

    def __init__(self, maps: Tensor) -> None:
        values = maps.numpy()
        largest = np.quantile(np.abs(values), 0.995, axis=(0, 2, 3), keepdims=True)  # a few pixels may be cut off
        self.maps = values / np.where(largest > 0, largest, 1)
        self.signed = bool(values.min() < 0)

    def draw(self, axes: Axes, instance: int, unit: int) -> None:
        """Show the map of a unit."""
        axes.imshow(
            self.maps[instance, unit],
            cmap="RdBu_r" if self.signed else "gray_r",
            vmin=-1 if self.signed else 0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )


def colour_bar(page: Page, scales: Sequence[Scale], right: float, top: float) -> None:
    """Draw what colours mean, ending at a place: one bar for each kind of activations on the page."""
    for signed in sorted({scale.signed for scale in scales}):
        low = -1 if signed else 0
        axes = page.image_axes(right - 1.0, top, 0.85, 0.09)
        axes.imshow(np.linspace(low, 1, 256)[None], cmap="RdBu_r" if signed else "gray_r", aspect="auto")
        page.text(right - 1.05, top - 0.02, f"{low}", fontsize=SMALL, ha="right")
        page.text(right - 0.1, top - 0.02, "1", fontsize=SMALL)
        right -= 1.35
    page.text(right + 0.1, top - 0.02, "activation / largest of the unit", fontsize=SMALL, ha="right")


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return the name of a picture as there is room for it.

    Example:
        >>> short("holidays/a very long day at the beach.jpg")
        'a very long day…'
    """
    stem = Path(name).stem
    return stem if len(stem) <= longest else f"{stem[: longest - 1].rstrip()}…"
