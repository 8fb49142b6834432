"""A page of a paper: axes placed in inches, type that can be read in print, no state shared with other figures."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from datamodules.storage.text import printable

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
    """

    def __init__(self, height: float) -> None:
        self.size = (WIDTH, height)
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
        """Return new axes for an image, with a thin frame and no ticks."""
        axes = self.axes(left, top, width, height)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_linewidth(0.3)
        return axes

    def image(self, pixels: Tensor, title: str, left: float, top: float, side: float) -> None:
        """Show a square image ``(3, H, W)`` uint8, its name upright beside it, shortened to its height."""
        self.image_axes(left, top, side, side).imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
        words = short(title, min(_LONGEST_NAME, max(1, int(side / _LETTER))))
        self.text(left - 0.03, top + side / 2, words, fontsize=SMALL, rotation=90, va="center", ha="right")

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Write words, by default with their top left corner at a place; nothing in them is a formula."""
        across, down = self.size
        settings: dict[str, Any] = {"fontsize": NORMAL, "va": "top", "parse_math": False} | style
        self.figure.text(left / across, 1 - top / down, printable(words), **settings)

    def save(self, path: Path) -> None:
        """Write the page as a PNG."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script without type shows boxes
            self.figure.savefig(path)


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return the name of an image as there is room for it.

    Example:
        >>> short("holidays/a very long day at the beach.jpg")
        'a very long day…'
    """
    stem = Path(name).stem
    return stem if len(stem) <= longest else f"{stem[: longest - 1].rstrip()}…"
