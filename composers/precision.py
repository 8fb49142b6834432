"""The least precision of what must not be rounded: coordinates, values and losses."""

from __future__ import annotations

import torch
from torch import Tensor


def exact(numbers: Tensor) -> Tensor:
    """Return numbers in float32, and in float64 if that is what they are: bfloat16 and float16 are converted.

    Example:
        >>> [exact(torch.zeros(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))
