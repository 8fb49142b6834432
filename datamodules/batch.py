"""What travels from data to composers, as NamedTuples that Lightning moves between devices untouched.

Shape letters, here and everywhere: ``B`` instances, ``N`` query coordinates, ``D`` coordinate dimensions, ``C`` channels,
``V`` views, ``S`` samples per ray, ``T`` tokens, ``E`` embedding, ``R`` rank, ``I``/``O`` inputs/outputs of a layer.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Samples(NamedTuple):
    """Places and what was measured there.

    Attributes:
        coords: ``(N, D)`` when all instances share them, else ``(B, N, D)``.
        values: ``(B, N, C)``, or None where nothing was measured.
        mask: ``(B, N)`` booleans, False where a sample is padding and counts nowhere; None if all count.
    """

    coords: Tensor
    values: Tensor | None = None
    mask: Tensor | None = None


class Views(NamedTuple):
    """Posed pictures of scenes.

    Attributes:
        images: ``(B, V, 3, H, W)`` in [0, 1].
        poses: ``(B, V, 3, 4)`` camera-to-world: axes right, up, backwards in columns, then the position.
        focals: ``(B, V, 2)`` focal lengths in pixels.
    """

    images: Tensor
    poses: Tensor
    focals: Tensor


class Observation(NamedTuple):
    """All that a composer may look at; either part may be None.

    Attributes:
        signal: For tokenizers: ``(B, C, *shape)``, a point set ``(B, P, C)``, or `Views`.
        samples: For inner loops and refinement: the pixels of the instance, the rays of the support views.
    """

    signal: Tensor | Views | None = None
    samples: Samples | None = None


class Piece(NamedTuple):
    """Where an instance lies in a larger signal, of which it is one tile, or the whole in another size.

    Attributes:
        name: Of the signal; its tiles follow one another in the order of the data.
        shape: Extents of the signal, in its own samples.
        box: Start and stop of the instance along every axis.
    """

    name: str
    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]


class PosedPictures(NamedTuple):
    """One raw item of a data set of scenes, or a collated batch of them: support views first, query views after them.

    Attributes:
        images: ``(V, 3, H, W)`` uint8, support and query together.
        poses: ``(V, 3, 4)`` camera-to-world: axes right, up, backwards in columns, then the position.
        focals: ``(V, 2)`` focal lengths in pixels, along columns and rows.
        name: Names the item in tables and files.
        seed: Where the random draws of this item in this epoch come from; set by the loader.
    """

    images: Tensor
    poses: Tensor
    focals: Tensor
    name: str
    seed: int = 0


class CoordinateBatch(NamedTuple):
    """One batch: what may be looked at, and where the loss is taken.

    Attributes:
        observation: All that a composer may look at.
        query: The samples whose values are to be reproduced.
        shape: How ``N`` unflattens into a picture, clip or views; None when subsampled.
        names: One string per instance, for tables, files and seeded draws.
        pieces: Of which signal an instance is which part; None where each is a signal of its own.
    """

    observation: Observation
    query: Samples
    shape: tuple[int, ...] | None
    names: list[str]
    pieces: list[Piece] | None = None


class Signal(NamedTuple):
    """One raw item of a data set, or a collated batch of them, before coordinates are made.

    Attributes:
        values: ``(C, *shape)``: uint8 stands for [0, 1] in 255 steps, floating point for itself.
        name: Names the item in tables and files.
        seed: Where the random draws of this item in this epoch come from; set by the loader.
        length: Samples along the last axis that were measured, from its start; what follows is padding and counts nowhere.
            -1 for all.
    """

    values: Tensor
    name: str
    seed: int = 0
    length: int = -1
