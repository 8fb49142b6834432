"""Patches of posed views as tokens: the colour and the ray of every pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from composers.encoders.encoder import Encoder
from composers.networks.patch_grid import cut
from datamodules.batch import Views
from datamodules.domain import Rays, exact


class ViewPatches(Encoder):
    """Non-overlapping patches of views with nine channels: red, green, blue, ray origin, ray direction (paper section 4.3).

    Patches are flattened channel by channel; the tokens of the views are concatenated.

    Args:
        signal_shape: ``(V, 3, H, W)`` of the views of one scene; set from the data module on the command line. If only the
            number of tokens is known, pass ``(-1, 3, -1, -1)`` and ``num_tokens``.
        patch_size: Side length of a square patch in pixels, a divisor of ``H`` and ``W``.
        num_tokens: Number of tokens; required only if ``signal_shape`` does not determine it.

    Raises:
        ValueError: If sizes are missing or inconsistent.
    """

    def __init__(
        self, signal_shape: Sequence[int] | None = None, patch_size: int = 8, num_tokens: int | None = None
    ) -> None:
        super().__init__()
        if (
            signal_shape is None
            or len(signal_shape) != 4
            or signal_shape[1] != 3
            or any(size < 1 and size != -1 for size in signal_shape)
        ):
            raise ValueError(
                f"signal_shape is {signal_shape if signal_shape is None else tuple(signal_shape)}: the command line sets it "
                "from a data module of posed views; in Python pass (views, 3, height, width)."
            )
        if patch_size < 1:
            raise ValueError(f"patch_size is {patch_size}; it must be at least 1.")
        self.signal_shape: tuple[int, ...] = tuple(signal_shape)
        self.patch_size = patch_size
        self.embed_dim = 9 * patch_size**2
        self.num_tokens: int = self._resolve_num_tokens(num_tokens)

    def _resolve_num_tokens(self, num_tokens: int | None) -> int:
        """Return the number of tokens from the signal shape, or ``num_tokens`` if the shape does not determine it."""
        if -1 in self.signal_shape:
            if num_tokens is None or num_tokens < 1:
                raise ValueError(
                    f"num_tokens is {num_tokens}, but signal_shape {self.signal_shape} does not determine it: "
                    "pass num_tokens, at least 1."
                )
            return num_tokens
        count = self._count(self.signal_shape)
        if num_tokens not in (None, count):
            raise ValueError(
                f"num_tokens is {num_tokens}, but signal_shape {self.signal_shape} gives {count}: omit num_tokens."
            )
        return count

    def _count(self, shape: Sequence[int]) -> int:
        """Return the number of tokens of views ``(V, 3, H, W)``."""
        views, _, *sizes = shape
        if any(size % self.patch_size for size in sizes):
            raise ValueError(
                f"patch_size {self.patch_size} does not divide views of {sizes[0]} x {sizes[1]} pixels: choose a divisor of "
                "both sides, or resize the views."
            )
        return views * math.prod(size // self.patch_size for size in sizes)

    def tokens(self, signal: Tensor | Views) -> Tensor:
        """Return tokens ``(B, V * (H / p) * (W / p), 9 * p * p)`` of posed views, in row-major order per view, in float32."""
        if not isinstance(signal, Views):
            raise ValueError(
                f"ViewPatches takes posed views (Views) but received {type(signal).__name__}: choose data of scenes, or "
                "encoder Patches."
            )
        self._check(tuple(signal.images.shape[1:]))
        views, _, *sizes = signal.images.shape[1:]
        with torch.autocast(signal.images.device.type, enabled=False):  # rounding would change the ray directions
            cameras = (exact(signal.poses), exact(signal.intrinsics))
            rays = Rays().coords((views, *sizes), cameras=cameras).unflatten(-2, (views, *sizes))  # (B, V, H, W, 6)
        channels = torch.cat((exact(signal.images), rays.movedim(-1, 2)), dim=2)  # (B, V, 9, H, W)
        patches = cut(channels.flatten(0, 1), [self.patch_size] * 2)
        return patches.reshape(channels.shape[0], self.num_tokens, self.embed_dim)

    def _check(self, shape: tuple[int, ...]) -> None:
        """Raise an error if the number or size of views ``(V, 3, H, W)`` does not match ``signal_shape``."""
        fits = len(shape) == 4 and all(
            expected in (-1, size) for expected, size in zip(self.signal_shape, shape, strict=True)
        )
        if not fits or self._count(shape) != self.num_tokens:
            raise ValueError(
                f"The views have shape {shape} (views, 3, height, width); this model takes {self.signal_shape} with "
                f"{self.num_tokens} patches of {self.patch_size} x {self.patch_size} pixels: "
                "change the number or size of the views, and leave --data.init_args.min_views out."
            )
