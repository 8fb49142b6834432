"""A figure of the width of a page: axes placed in inches, font sizes for print, no global state of pyplot."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from datamodules.storage.files import written_whole
from datamodules.storage.text import printable

WIDTH = 7.0  # inches: both columns of a paper
SMALL, NORMAL = 6.5, 8.0  # points
COLOURS = ("#0072B2", "#D55E00")  # distinguishable with colour blindness; lines are also solid and dashed
STYLES = ("-", "--")
_MAX_NAME_LENGTH = 16
_LETTER_WIDTH = 0.05  # inches, at the small font size


class Page:
    """A white page of fixed width.

    Args:
        height: Height in inches.
    """

    def __init__(self, height: float) -> None:
        self.size = (WIDTH, height)
        self.figure = Figure(figsize=self.size, dpi=200, facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes; all arguments are in inches, from the top left corner of the page."""
        across, down = self.size
        return self.figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))

    def plot_axes(self, left: float, top: float, width: float, height: float, x: str, y: str) -> Axes:
        """Add axes for curves and points, with labels and without a box."""
        axes = self.axes(left, top, width, height)
        axes.set_xlabel(x, fontsize=NORMAL)
        axes.set_ylabel(y, fontsize=NORMAL)
        axes.tick_params(labelsize=SMALL, width=0.6, length=2.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_linewidth(0.6)
        return axes

    def image_axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes for an image, with a thin frame and no ticks."""
        axes = self.axes(left, top, width, height)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_linewidth(0.3)
        return axes

    def image(self, pixels: Tensor, title: str, left: float, top: float, side: float) -> None:
        """Draw a square image ``(3, H, W)`` uint8 with its name rotated beside it, shortened to the height of the image."""
        self.image_axes(left, top, side, side).imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
        words = short(title, min(_MAX_NAME_LENGTH, max(1, int(side / _LETTER_WIDTH))))
        self.text(left - 0.03, top + side / 2, words, fontsize=SMALL, rotation=90, va="center", ha="right")

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Write text, by default with its top left corner at the position and without parsing formulas."""
        across, down = self.size
        settings: dict[str, Any] = {"fontsize": NORMAL, "va": "top", "parse_math": False} | style
        self.figure.text(left / across, 1 - top / down, printable(words), **settings)

    def save(self, path: Path) -> None:
        """Write the page as a PNG."""
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Glyph .* missing"
            )  # characters missing in the font are drawn as boxes
            with written_whole(path) as part:
                self.figure.savefig(part, format="png")


def short(name: str, max_length: int = _MAX_NAME_LENGTH) -> str:
    """Return the name of an image, shortened to a maximum length.

    Example:
        >>> short("holidays/a very long day at the beach.jpg")
        'a very long day…'
    """
    stem = Path(name).stem
    return stem if len(stem) <= max_length else f"{stem[: max_length - 1].rstrip()}…"
