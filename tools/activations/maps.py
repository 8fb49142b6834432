"""Rows of images with activation maps of units, and their colour scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from tools.activations.page import SMALL, WIDTH, Page

FOOT = 0.3  # height of the colour bar below the last row in inches, as all sizes here

_LEFT = 0.2  # margin with the names of the images
_RIGHT = 0.06
_GAP = 0.16  # between the image and groups of maps
_SPACING = 0.025  # between maps of a group
_MAX_SIDE = 0.9
_HEADING, _LABEL = 0.36, 0.26
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}


class UnitGroup(NamedTuple):
    """A group of columns with the same units for every image.

    Attributes:
        heading: Heading of the group.
        detail: Second line of the heading.
        labels: A label for each unit, of at most two lines above the maps.
        maps: ``(B, U, h, w)``.
        colour: Colour of the heading.
    """

    heading: str
    detail: str
    labels: list[str]
    maps: Tensor
    colour: str = "black"


class MapRows:
    """Rows of images with groups of maps that fill the width of a page.

    Args:
        images: Square images ``(3, H, W)`` uint8 by name.
        groups: Groups with the same number of maps.
        boxed: Whether to draw labels inside the maps instead of above them, and groups of more than three maps in two lines.

    Attributes:
        height: Height of the rows in inches.
    """

    def __init__(self, images: Mapping[str, Tensor], groups: Sequence[UnitGroup], boxed: bool = False) -> None:
        self.images = images
        self.groups = groups
        self.boxed = boxed
        count = len(groups[0].labels)
        self._lines = 2 if boxed and count > 3 else 1
        self._columns = math.ceil(count / self._lines)
        gaps = len(groups) * (_GAP + (self._columns - 1) * _SPACING) + _LEFT + _RIGHT + (self._lines - 1) * _SPACING
        columns = len(groups) * self._columns + self._lines  # the image is as high as all lines
        self._side = min((WIDTH - gaps) / columns, _MAX_SIDE)
        self._row = self._lines * (self._side + _SPACING) - _SPACING
        self._heading = _HEADING + (0 if boxed else _LABEL)
        self.height = self._heading + len(images) * (self._row + _GAP / 2)

    def draw(self, page: Page, top: float) -> list[ColourScale]:
        """Draw the rows and return their colour scales."""
        scales = [ColourScale(group.maps) for group in self.groups]
        for row, (title, pixels) in enumerate(self.images.items()):
            page.image(pixels, title, _LEFT, top + self._heading + row * (self._row + _GAP / 2), self._row)
        for index, (group, scale) in enumerate(zip(self.groups, scales, strict=True)):
            width = self._columns * (self._side + _SPACING) - _SPACING + _GAP
            left = _LEFT + self._row + _GAP + index * width
            page.text(left, top, group.heading, color=group.colour, fontsize=SMALL + 0.5)
            page.text(left, top + 0.16, group.detail, fontsize=SMALL)
            self._draw_group(page, left, top + self._heading, group, scale)
        return scales

    def _draw_group(self, page: Page, left: float, top: float, group: UnitGroup, scale: ColourScale) -> None:
        """Draw the maps of a group, with labels at the maps of the first image."""
        for unit, label in enumerate(group.labels):
            line, column = divmod(unit, self._columns)
            across, down = (index * (self._side + _SPACING) for index in (column, line))
            for row in range(len(self.images)):
                lower = down + row * (self._row + _GAP / 2)
                scale.draw(page.image_axes(left + across, top + lower, self._side, self._side), row, unit)
            if self.boxed:
                page.text(left + across + 0.02, top + down + 0.02, label, fontsize=SMALL - 1, bbox=_BOX)
            else:
                page.text(left + across, top - 0.03, label, fontsize=SMALL, va="bottom", linespacing=1.1)


class ColourScale:
    """Colours of maps: relative to the largest activation of a unit over all images of a model.

    Nonnegative activations are drawn from white to black, signed activations from blue over white to red.

    Args:
        maps: ``(B, U, h, w)``.
    """

    def __init__(self, maps: Tensor) -> None:
        values = maps.numpy()
        largest = np.quantile(np.abs(values), 0.995, axis=(0, 2, 3), keepdims=True)  # clips a few pixels
        self.maps = values / np.where(largest > 0, largest, 1)
        self.signed = bool(values.min() < 0)

    def draw(self, axes: Axes, instance: int, unit: int) -> None:
        """Draw the map of a unit."""
        axes.imshow(
            self.maps[instance, unit],
            cmap="RdBu_r" if self.signed else "gray_r",
            vmin=-1 if self.signed else 0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )


def colour_bar(page: Page, scales: Sequence[ColourScale]) -> None:
    """Draw a colour bar for nonnegative and for signed activations at the bottom of a page, where there are any."""
    right, top = WIDTH - _RIGHT, page.size[1] - FOOT + 0.08
    for signed in sorted({scale.signed for scale in scales}):
        low = -1 if signed else 0
        axes = page.image_axes(right - 1.0, top, 0.85, 0.09)
        axes.imshow(np.linspace(low, 1, 256)[None], cmap="RdBu_r" if signed else "gray_r", aspect="auto")
        page.text(right - 1.05, top - 0.02, f"{low}", fontsize=SMALL, ha="right")
        page.text(right - 0.1, top - 0.02, "1", fontsize=SMALL)
        right -= 1.35
    page.text(right + 0.1, top - 0.02, "activation / maximum of the unit", fontsize=SMALL, ha="right")
