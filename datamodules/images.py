"""Pictures as uint8 tensors: resizing and cropping."""

from __future__ import annotations

import torch
from kornia.geometry import resize
from torch import Tensor

from datamodules.batch import Signal


def resize_picture(picture: Tensor, height: int, width: int) -> Tensor:
    """Return an antialiased copy of another size.

    Args:
        picture: ``(3, h, w)`` uint8.
        height: Wanted rows.
        width: Wanted columns.

    Returns:
        ``(3, height, width)`` uint8.
    """
    resized = resize(picture.unsqueeze(0).float(), (height, width), interpolation="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


class RandomCrop:
    """A square crop at a random place, mirrored at random: the augmentation of published training on ImageNette.

    Args:
        size: Pixels along each side.
        flip: Whether half of the crops are mirrored left to right.
    """

    def __init__(self, size: int, flip: bool = True) -> None:
        self.size = size
        self.flip = flip

    def __call__(self, item: Signal, generator: torch.Generator) -> Signal:
        """Return a crop of ``item``, whose sides must be at least ``size``."""
        top, left = (
            int(torch.randint(extent - self.size + 1, (), generator=generator)) for extent in item.values.shape[1:]
        )
        crop = item.values[:, top : top + self.size, left : left + self.size]
        if self.flip and torch.rand((), generator=generator) < 0.5:
            crop = crop.flip(-1)
        return item._replace(values=crop)
