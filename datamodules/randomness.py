"""Addressed random numbers: functions of seed, epoch, instance and step, never of processes, workers or devices."""

from __future__ import annotations

import hashlib
import os

import torch


def global_seed() -> int:
    """Return the seed set by ``seed_everything``, 0 by default."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def seed_at(*address: int | str) -> int:
    """Return a 63-bit seed for an address such as ``(seed, "crop", epoch, index)``.

    Example:
        >>> seed_at(0, "crop", 3, 17) == seed_at(0, "crop", 3, 17) != seed_at(0, "crop", 3, 18)
        True
    """
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_at(*address: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on ``device``, seeded with an address."""
    return torch.Generator(device).manual_seed(seed_at(*address))
