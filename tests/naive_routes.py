"""Blending weights of patches by a naive formula, for tests."""

import math


def _smoothstep(share):
    share = min(max(share, 0.0), 1.0)
    return share * share * (3 - 2 * share)


def naive_weight(position, patch, count, overlap):
    """Return the weight of a patch at a position along an axis, in patches."""
    if not overlap:
        return float(min(max(math.floor(position), 0), count - 1) == patch)
    rising = 1.0 if patch == 0 else _smoothstep((position - patch + overlap) / (2 * overlap))
    falling = 0.0 if patch == count - 1 else _smoothstep((position - patch - 1 + overlap) / (2 * overlap))
    return rising * (1 - falling)
