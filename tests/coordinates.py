"""Coordinates of domains in short, for tests."""

from datamodules.domain import Grid, Rays


def box(shape, low=-1.0, high=1.0):
    """Return a grid with as many axes as a shape and one range for all."""
    return Grid(((low, high),) * len(shape))


def grid(shape, low=-1.0, high=1.0):
    """Return the cell centres of a shape ``(N, D)``, one range for all axes."""
    return box(shape, low, high).coords(shape)


def cell_size(shape, low=-1.0, high=1.0):
    """Return the edge lengths of a cell of `grid`."""
    return box(shape, low, high).cell(shape)


def pixel_rays(poses, focals, shape):
    """Return the rays ``(..., H * W, 6)`` of pixels of views ``(..., 3, 4)``."""
    return Rays().coords(shape, cameras=(poses, focals))
