"""Cameras around the origin for tests of views."""

import torch

from datamodules.cameras import orbit


def cameras(count, size, centre=None, distance=4.0):
    """Return poses ``(count, 3, 4)`` on an orbit, and intrinsics ``(count, 4)`` of images with ``size`` pixels per side."""
    column, row = centre or (size / 2, size / 2)
    return orbit(count, distance), torch.tensor([1.2 * size, 1.2 * size, column, row]).expand(count, 4)
