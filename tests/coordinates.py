"""Coordinates of domains in short, for tests."""

from datamodules.cameras import centred_intrinsics
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
    """Return the rays ``(..., H * W, 6)`` of pixels of views ``(..., 3, 4)``.

    Args:
        poses: ``(..., 3, 4)``.
        focals: Focal lengths ``(..., 2)`` of cameras with the principal point at the centre, or intrinsics ``(..., 4)``.
        shape: Shape of the views.
    """
    intrinsics = centred_intrinsics(focals, shape[-2:]) if focals.shape[-1] == 2 else focals
    return Rays().coords(shape, cameras=(poses, intrinsics))
