"""The sheet of activation maps: the layers before, at and after the modulated one, for several pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from composers.activations.page import SMALL, WIDTH, Page, Scale, colour_bar

_LEFT = 0.2  # the names of the pictures stand there
_RIGHT = 0.06
_GAP = 0.16  # between the picture and groups of maps
_BETWEEN = 0.025  # of maps of one group
_HEADING = 0.6
_FOOT = 0.3


class LayerMaps(NamedTuple):
    """Maps of some units of a layer.

    Attributes:
        layer: Counted from 0.
        modulated: Whether its weights are the instance's own.
        share: Of its variance between pictures; None where there is one picture only.
        units: Which ones, counted from 0.
        maps: ``(B, U, h, w)``.
    """

    layer: int
    modulated: bool
    share: float | None
    units: list[int]
    maps: Tensor


def activation_sheet(pictures: Mapping[str, Tensor], models: Mapping[str, Sequence[LayerMaps]]) -> Page:
    """Return the sheet: a row for every picture, a group of columns for every layer, one model under the other.

    Args:
        pictures: ``(3, H, W)`` uint8 by name.
        models: The same layers of every model, by its name.
    """
    grids = [_Grid(layers) for layers in models.values()]
    heights = [_HEADING + len(pictures) * (grid.row + _GAP / 2) for grid in grids]
    page = Page(sum(heights) + _FOOT)
    top, scales = 0.0, []
    for (name, layers), grid, height in zip(models.items(), grids, heights, strict=True):
        scales += _draw_model(page, top, name, pictures, layers, grid)
        top += height
    colour_bar(page, scales, WIDTH - _RIGHT, top + 0.08)
    return page


class _Grid:
    """Sizes in inches, such that the maps of all layers fill the width of the page."""

    def __init__(self, layers: Sequence[LayerMaps]) -> None:
        number, (_, _, height, width) = len(layers[0].units), layers[0].maps.shape
        self.lines = 1 if number <= 3 else 2
        self.columns = math.ceil(number / self.lines)
        maps = len(layers) * self.columns
        gaps = len(layers) * (_GAP + (self.columns - 1) * _BETWEEN) + _LEFT + _RIGHT + (self.lines - 1) * _BETWEEN
        self.width = min((WIDTH - gaps) / (maps + self.lines), 0.9)  # the picture is as high as all lines
        self.height = self.width * height / width
        self.row = self.lines * self.height + (self.lines - 1) * _BETWEEN
        self.picture = self.row * width / height
        self.group = self.columns * (self.width + _BETWEEN) - _BETWEEN

    def left(self, group: int) -> float:
        """Return where a group of maps begins."""
        return _LEFT + self.picture + _GAP + group * (self.group + _GAP)


def _draw_model(
    page: Page, top: float, name: str, pictures: Mapping[str, Tensor], layers: Sequence[LayerMaps], grid: _Grid
) -> list[Scale]:
    """Draw the rows of a model and return its scales of colour."""
    scales = [Scale(layer.maps) for layer in layers]
    page.text(_LEFT, top + 0.08, name, weight="bold")
    for group, layer in enumerate(layers):
        kind = "modulated per picture" if layer.modulated else "common to all pictures"
        page.text(grid.left(group), top + 0.27, f"Layer {layer.layer}, {kind}", fontsize=SMALL + 0.5)
        if layer.share is not None:
            page.text(grid.left(group), top + 0.42, f"{layer.share:.1%} of variance between pictures", fontsize=SMALL)
    for row, (title, pixels) in enumerate(pictures.items()):
        down = top + _HEADING + row * (grid.row + _GAP / 2)
        page.picture(pixels, _LEFT, down, grid.picture, grid.row)
        page.name(title, _LEFT, down, grid.row)
        for group, layer in enumerate(layers):
            _draw_group(page, grid, grid.left(group), down, layer, scales[group], row)
    return scales


def _draw_group(
    page: Page, grid: _Grid, left: float, top: float, layer: LayerMaps, scale: Scale, instance: int
) -> None:
    """Draw the maps of a layer for one picture; those of the first picture say which units they are."""
    for index, unit in enumerate(layer.units):
        line, column = divmod(index, grid.columns)
        across, down = left + column * (grid.width + _BETWEEN), top + line * (grid.height + _BETWEEN)
        scale.draw(page.image_axes(across, down, grid.width, grid.height), instance, index)
        if instance == 0:
            page.text(across + 0.02, down + 0.02, str(unit), fontsize=SMALL - 1, bbox=_BOX)


_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
