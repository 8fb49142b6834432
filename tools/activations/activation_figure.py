"""Figure of activation maps of neighbouring layers for several images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tools.activations.layers import LayerMaps
from tools.activations.maps import FOOT, MapRows, UnitGroup, colour_bar
from tools.activations.page import Page

_TITLE = 0.27


def activation_figure(images: Mapping[str, Tensor], models: Mapping[str, Sequence[LayerMaps]]) -> Page:
    """Draw a row for every image and a group of columns for every layer, one model below the other.

    Args:
        images: Square images ``(3, H, W)`` uint8 by name.
        models: Layers of every model by its name.
    """
    blocks = [MapRows(images, [_group(layer) for layer in layers], boxed=True) for layers in models.values()]
    page = Page(sum(_TITLE + block.height for block in blocks) + FOOT)
    top, scales = 0.0, []
    for name, block in zip(models, blocks, strict=True):
        page.text(0.2, top + 0.08, name, weight="bold")
        scales += block.draw(page, top + _TITLE)
        top += _TITLE + block.height
    colour_bar(page, scales)
    return page


def _group(layer: LayerMaps) -> UnitGroup:
    """Return the maps of a layer with their labels."""
    kind = "modulated per image" if layer.modulated else "shared by all images"
    detail = "" if layer.share is None else f"{layer.share:.1%} of variance between images"
    return UnitGroup(f"Layer {layer.layer}, {kind}", detail, [str(unit) for unit in layer.units], layer.maps)
