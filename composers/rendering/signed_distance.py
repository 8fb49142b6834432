"""Signed distances from the heads of a network: a distance, the logit of its sign, or both (MetaSDF, section 3)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from composers.networks import Field
from composers.rendering.renderer import PointRenderer, Rendered
from datamodules.spec import DataSpec


class SignedDistance(PointRenderer):
    """Signed distances at points, negative inside, from the outputs of the field, which losses read as ``raw``.

    ``distance`` is one output, the signed distance itself. ``logit`` is one output, positive outside, whose zero level is the
    surface. ``both`` are two outputs: the logit of the sign, positive outside, then the distance; the value is
    ``sign(logit) * |distance|``. The logit has no gradient through this product, only through a loss of ``raw`` such as
    `composers.losses.SignAndDistance`.

    Args:
        heads: Outputs of the network: ``distance``, ``logit`` or ``both``.
        chunk_size: Coordinates evaluated at a time where no gradient is kept, which bounds memory; None for all at once.
        unit: Distance that an output of 1 stands for, so that outputs near a surface need not be small; only for ``distance``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        heads: Literal["distance", "logit", "both"] = "both",
        chunk_size: int | None = 65536,
        unit: float = 1.0,
    ) -> None:
        super().__init__(chunk_size)
        if heads not in ("distance", "logit", "both"):
            raise ValueError(f"heads is {heads}; allowed are distance, logit and both.")
        if not 0 < unit < math.inf or (heads != "distance" and unit != 1):
            raise ValueError(f"unit is {unit} with heads {heads}; it must be positive, and 1 unless heads is distance.")
        self.heads = heads
        self.unit = unit

    def field_spec(self, spec: DataSpec) -> DataSpec:
        """Return the specification of the data with as many channels as there are heads.

        Raises:
            ValueError: If the data has more than one channel.
        """
        if spec.value_dim != 1:
            raise ValueError(
                f"SignedDistance renders one channel, and the data has {spec.value_dim}: use data of signed distances, or "
                "PointRenderer."
            )
        return spec._replace(value_dim=2 if self.heads == "both" else 1)

    def pointwise(self, field: Field) -> Field:
        """Return the function from coordinates to signed distances."""
        return lambda coords: self._signed(field(coords))

    def rendered(self, field: Field, coords: Tensor) -> Rendered:
        """Return the signed distances at ``coords``, and the outputs of the field as ``raw``.

        Raises:
            ValueError: If the field does not have the outputs of ``heads``.
        """
        raw = super().rendered(field, coords).values
        return Rendered(self._signed(raw), raw=raw)

    def _signed(self, raw: Tensor) -> Tensor:
        """Return the signed distances ``(B, N, 1)`` of outputs ``(B, N, 1)`` or ``(B, N, 2)``."""
        expected = 2 if self.heads == "both" else 1
        if raw.shape[-1] != expected:
            raise ValueError(
                f"The field has {raw.shape[-1]} outputs, and heads {self.heads} of SignedDistance needs {expected}: set "
                f"value_dim of the network to {expected}."
            )
        if self.heads != "both":
            return self.unit * raw
        return raw[..., :1].sign() * raw[..., 1:].abs()  # the logit, then the distance
