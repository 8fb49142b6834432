"""Convolutional feature maps of posed views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.encoders.encoder import Encoder
from composers.latents import Layout
from datamodules.batch import Views
from datamodules.domain import exact
from datamodules.spec import FromData, open_views

GROUPS = 4  # of the normalisation of features


class ViewFeatures(Encoder):
    """A convolutional network that turns every posed view into a feature map with half of its resolution.

    It halves the resolution three times and returns to half of it with skip connections (U-Net, Ronneberger et al. 2015), so
    that a feature depends on most of the image. Next to the colours, it reads whether a pixel is white, the background of
    rendered objects. Views may have any number and size. A token is a cell of the map of a view.

    Args:
        signal_shape: ``(-1, 3, -1, -1)``; set from the data module on the command line.
        width: ``E``, channels of the maps, a multiple of 4; twice, three and four times as many at lower resolutions.

    Raises:
        ValueError: If sizes are missing or out of range.
    """

    from_data: ClassVar[FromData] = {"signal_shape": open_views}

    def __init__(self, signal_shape: Sequence[int] | None = None, width: int = 24) -> None:
        check_views(signal_shape, type(self).__name__)
        super().__init__((-1, 3, -1, -1))
        if width < GROUPS or width % GROUPS:
            raise ValueError(f"width is {width}; it must be a positive multiple of {GROUPS}.")
        self.embed_dim = width
        self.at_full = _layer(4, width)
        self.at_half, self.at_quarter, self.at_eighth = (
            nn.Sequential(_layer(before * width, after * width, 2), _layer(after * width, after * width))
            for before, after in ((1, 2), (2, 3), (3, 4))
        )
        self.up_quarter = _layer(7 * width, 3 * width)
        self.up_half = nn.Conv2d(5 * width, width, 3, padding=1)

    def maps(self, views: Views) -> Tensor:
        """Return feature maps ``(B, V, E, H / 2, W / 2)``, sizes rounded up.

        Raises:
            ValueError: If the signal does not consist of posed views with three channels.
        """
        half = self.at_half(self.at_full(pixels(views).flatten(0, 1)))
        quarter = self.at_quarter(half)
        quarter = self.up_quarter(torch.cat((_like(self.at_eighth(quarter), quarter), quarter), dim=1))
        maps: Tensor = self.up_half(torch.cat((_like(quarter, half), half), dim=1)).unflatten(0, views.images.shape[:2])
        return maps

    def layout(self, signal: Tensor | Views) -> Layout:
        """Return the grid ``(V, H / 2, W / 2)``."""
        views, _, height, width = signal_of(signal).images.shape[1:]
        return Layout((views, (height + 1) // 2, (width + 1) // 2))

    def tokens(self, signal: Tensor | Views) -> Tensor:
        """Return the cells of all maps, ``(B, V * H / 2 * W / 2, E)``."""
        return self.maps(signal_of(signal)).movedim(2, -1).flatten(1, 3)


def pixels(views: Views) -> Tensor:
    """Return images ``(B, V, 4, H, W)``: one minus the colours, and 1 where a pixel is not white."""
    images = exact(views.images)
    return torch.cat((1 - images, (images.amin(2, keepdim=True) < 1 - 1e-3).to(images.dtype)), dim=2)


def signal_of(signal: Tensor | Views) -> Views:
    """Return posed views.

    Raises:
        ValueError: If the signal is another, or has other than three channels.
    """
    if not isinstance(signal, Views) or signal.images.shape[2] != 3:
        raise ValueError(
            "This encoder takes posed views with three channels: choose data of scenes, or another encoder."
        )
    return signal


def check_views(signal_shape: Sequence[int] | None, name: str) -> None:
    """Raise a ``ValueError`` if the shape of a signal is not that of posed views."""
    if signal_shape is None or len(signal_shape) != 4 or signal_shape[1] != 3:
        raise ValueError(
            f"signal_shape of {name} is {signal_shape if signal_shape is None else tuple(signal_shape)}: the command line sets "
            "it from a data module of posed views; in Python pass (-1, 3, -1, -1)."
        )


def _layer(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution of 3 x 3 with normalisation and ReLU."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.GroupNorm(GROUPS, width), nn.ReLU())


def _like(features: Tensor, other: Tensor) -> Tensor:
    """Return a map at the resolution of another, by repeating cells."""
    return functional.interpolate(features, size=other.shape[-2:], mode="nearest")
