"""End all processes of a run with a clear message if one of them dies, fails or hangs."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from lightning import Callback, LightningModule, Trainer

from callbacks.saving import resume_hint
from callbacks.watch import LostRank, Watch

STATUS = getattr(os, "EX_TEMPFAIL", 75)
_EXIT_TIME = 2.0  # seconds that other processes of this host have to print their messages before they are killed


class Heartbeat(Callback):
    """End all processes with exit status 75 if one of them dies, fails or does not respond.

    Without it, they would wait in the next collective operation for half an hour or more. One message names the rank, its host,
    the last checkpoint and the command that resumes the run. Has no effect on a single process.

    Args:
        timeout: Seconds without a heartbeat after which a rank is considered lost. Heartbeats do not depend on the duration of
            steps, but an extension that holds the interpreter lock for longer delays them.

    Raises:
        ValueError: If ``timeout`` is not a positive, finite number.
    """

    def __init__(self, timeout: float = 45.0) -> None:
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout is {timeout}; it must be a positive, finite number of seconds.")
        self.timeout = timeout
        self._trainer: Trainer | None = None
        self._watch: Watch | None = None

    def attach(self, trainer: Trainer) -> None:
        """Start the heartbeat when the trainer creates its process group: hooks of callbacks run only after data are prepared.

        Args:
            trainer: Trainer that has not started a command.
        """
        if trainer.world_size == 1:
            return
        set_up = trainer.strategy.setup_environment

        def set_up_and_start() -> None:
            set_up()
            self._start(trainer)

        trainer.strategy.setup_environment = set_up_and_start  # type: ignore[method-assign]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Notify the other ranks before this one prints the exception and exits."""
        if self._watch is None:
            return
        if isinstance(exception, SystemExit):
            text = f"has stopped with exit status {exception.code}"
        else:
            first_line = next(iter(str(exception).splitlines()), "")
            text = f"has failed ({type(exception).__name__}: {first_line})"
        self._watch.fail(text, agreed=isinstance(exception, SystemExit))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notify the other ranks that this one has completed the command."""
        if self._watch is not None:
            self._watch.end()

    def _start(self, trainer: Trainer) -> None:
        """Connect all ranks to rank 0; call it on all processes."""
        self._trainer, strategy = trainer, trainer.strategy
        watch = Watch(trainer.global_rank, trainer.world_size, self.timeout, self._leave)
        address: dict[str, Any] = strategy.broadcast(watch.listen() if trainer.is_global_zero else {})
        host = strategy.cluster_environment.main_address  # type: ignore[attr-defined]
        connected = watch.accept() if trainer.is_global_zero else watch.connect(host, **address)
        if strategy.reduce_boolean_decision(connected):
            self._watch = watch
            watch.start()
            return
        watch.close()
        if trainer.is_global_zero:
            print(
                f"Ranks cannot connect to port {address['port']} of {host}: a rank that dies or hangs is noticed only when "
                "the communication backend times out. Allow connections between the hosts.",
                file=sys.stderr,
            )

    def _leave(self, loss: LostRank, reported: bool) -> None:
        """Print what happened, unless rank 0 has printed it, and end this process and those that it started."""
        trainer, watch = self._trainer, self._watch
        assert trainer is not None
        assert watch is not None
        if loss.rank == watch.rank:  # prints its exception itself
            return
        try:
            if not reported and (watch.rank <= 1 or trainer.local_rank == 0):
                print(
                    f"error: Rank {loss.rank} of {watch.num_ranks} on {loss.host} {loss.text}. All ranks stop. "
                    f"{resume_hint(trainer)}",
                    file=sys.stderr,
                    flush=True,
                )
            watch.tell(loss)
            for worker in multiprocessing.active_children():
                worker.kill()
            if watch.rank == 0:
                self._end_launched(trainer)
            elif reported:
                watch.wait_for_exit()
            elif watch.launched:
                with suppress(OSError):  # a stopped launcher would remain
                    os.kill(os.getppid(), signal.SIGKILL)
        finally:  # the main thread waits for the lost rank
            os._exit(0 if reported and watch.launched else STATUS)  # the launcher kills rank 0 for any other status

    def _end_launched(self, trainer: Trainer) -> None:
        """End the processes that the trainer has started; a stopped process only reacts to SIGKILL."""
        for process in getattr(trainer.strategy.launcher, "procs", []):
            with suppress(Exception):
                process.wait(_EXIT_TIME)
            process.kill()
