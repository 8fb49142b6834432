"""Settings of OpenMP, which take effect only before torch is imported."""

from __future__ import annotations

import os

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def limit_spinning() -> None:
    """Let threads of the OpenMP library of GCC sleep after they waited a few microseconds for each other.

    By default, they spin for milliseconds at the end of every parallel operation. If other processes are busy, a thread may
    then occupy the core that the thread it waits for needs. Without spinning at all, training is slower on an idle machine. The
    environment variables ``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT`` override this.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = "1000"
