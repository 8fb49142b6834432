"""The layout of latents: the part of their shape that depends on the signal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

Latents = dict[str, Tensor]


class Layout(NamedTuple):
    """The part of the shape of latents that depends on the signal, the same for all instances of a batch.

    It is stored with the latents in code files and exported programs, and passed to `Parametrization.compose`.

    Attributes:
        grid: Number of tokens or cells along every axis; None if latents have the same shape for every signal.
        extent: Number of samples that the grid covers along every axis, without padding; None if ``grid`` is None.
    """

    grid: tuple[int, ...] | None = None
    extent: tuple[int, ...] | None = None

    def shape(self, stated: Sequence[int]) -> tuple[int, ...]:
        """Return a shape with -1 replaced by the sizes of the grid.

        One -1 stands for the number of cells, as many as the grid has axes for the cells along each.

        Args:
            stated: A shape without the batch dimension, as in `composers.networks.TensorSpec`.

        Raises:
            ValueError: If the shape has free axes and this layout has no grid that fills them.

        Example:
            >>> Layout((2, 3)).shape((8, -1, -1)), Layout((2, 3)).shape((-1, 8)), Layout().shape((4, 5))
            ((8, 2, 3), (6, 8), (4, 5))
        """
        free = list(stated).count(-1)
        if not free:
            return tuple(stated)
        if self.grid is None or free not in (1, len(self.grid)):
            raise ValueError(
                f"Latents of shape {tuple(stated)} take the sizes of their -1 axes from the signal, whose grid is {self.grid}: "
                "use a start whose encoder states the grid."
            )
        sizes = iter(self.grid if free == len(self.grid) else (math.prod(self.grid),))
        return tuple(next(sizes) if size == -1 else size for size in stated)

    def config(self) -> dict[str, Any]:
        """Return this layout as plain data, for files."""
        return {name: list(sizes) for name, sizes in self._asdict().items() if sizes is not None}

    @classmethod
    def from_config(cls, config: Mapping[str, Sequence[int]]) -> Self:
        """Return the layout that `config` describes."""
        return cls(**{name: tuple(sizes) for name, sizes in config.items()})


def lerp(first: Latents, last: Latents, share: float) -> Latents:
    """Return latents on the line from ``first``, at ``share`` 0, to ``last``, at 1."""
    return {name: torch.lerp(latent, last[name], share) for name, latent in first.items()}


def module_key(name: str) -> str:
    """Return the name of a latent as a key of a module, which must not contain dots."""
    return name.replace(".", "_")
