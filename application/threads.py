"""Settings of OpenMP, which take effect only before torch is imported."""

from __future__ import annotations

import os

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_passively() -> None:
    """Let threads sleep while they wait for each other, unless the environment sets another policy.

    By default, they spin for milliseconds at the end of every parallel operation. If other processes are busy, a thread may
    then occupy the core that the thread it waits for needs.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
