"""Fields whose gradients take bounded memory, for gradient steps on large signals."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from composers.networks import Field

MAX_KEPT = 1 << 28  # floats of activations that are kept for a gradient: 1 GiB


def bounded(field: Field, floats_per_instance: int, max_kept: int = MAX_KEPT) -> Field:
    """Return a field that evaluates many coordinates in parts, and recomputes the activations of a part in the backward pass.

    Values and gradients are the same. Up to ``max_kept`` floats, the field itself is evaluated.

    Args:
        field: From coordinates ``(N, D)`` or ``(B, N, D)`` to values ``(B, N, C)``.
        floats_per_instance: Floats that evaluation holds per coordinate, of all instances together.
        max_kept: Floats of the activations of a part.
    """
    largest = max(1, max_kept // floats_per_instance)

    def evaluate(coords: Tensor) -> Tensor:
        if coords.shape[-2] <= largest or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return field(coords)
        parts = [
            checkpoint(field, part, use_reentrant=False, context_fn=_attention_of_adapt)
            for part in coords.split(largest, dim=-2)
        ]
        return torch.cat(parts, dim=-2)

    return evaluate


def _attention_of_adapt() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of the evaluation and of its recomputation, with the attention of `GradientSteps` in both."""
    return nullcontext(), sdpa_kernel(SDPBackend.MATH)
