"""Ranks notice when another one has died, failed or hangs, and not when it has ended or they were suspended themselves."""

import functools
import queue
import socket
import threading
import time
from multiprocessing.connection import Client

import pytest

from callbacks import watch as watching
from callbacks.heartbeat import Heartbeat
from callbacks.watch import LostRank, Watch

LIMIT = 30  # seconds after which a test has failed


class Ranks:
    """Connected watches of several ranks in this process, and their reports."""

    def __init__(self, count, timeout):
        self.reports = [queue.Queue() for _ in range(count)]
        self.watches = [
            Watch(rank, count, timeout, lambda *report, rank=rank: self.reports[rank].put(report))
            for rank in range(count)
        ]
        address = self.watches[0].listen()
        others = [
            threading.Thread(target=functools.partial(watch.connect, "127.0.0.1", **address))
            for watch in self.watches[1:]
        ]
        for other in others:
            other.start()
        assert self.watches[0].accept(LIMIT)
        for other in others:
            other.join(LIMIT)

    def start(self, *ranks):
        """Start the threads of these ranks; a rank without a thread is silent."""
        for rank in ranks:
            self.watches[rank]._thread.start()

    def report(self, rank):
        """Return the report of a rank."""
        return self.reports[rank].get(timeout=LIMIT)


@pytest.mark.parametrize("lost", [0, 1])
def test_closed_connection_is_a_death(lost):
    ranks = Ranks(2, timeout=1000)
    ranks.start(1 - lost)
    ranks.watches[lost].close()
    loss, reported = ranks.report(1 - lost)
    assert loss.rank == lost
    assert loss.host == socket.gethostname()
    assert loss.text.startswith("has died")
    assert not reported


@pytest.mark.parametrize("lost", [0, 2])
def test_silent_rank_is_lost(lost):
    ranks = Ranks(3, timeout=1.5)
    ranks.start(*({0, 1, 2} - {lost}))
    loss, _ = ranks.report(1 if lost == 0 else 0)
    assert loss.rank == lost
    assert loss.text.startswith("has not responded for 1.5 s")


def test_verdict_of_rank_0_reaches_the_others():
    ranks = Ranks(3, timeout=1000)
    ranks.start(0, 1)
    ranks.watches[0]._report = lambda loss, reported: ranks.watches[0].tell(loss)
    ranks.watches[2].close()
    loss, reported = ranks.report(1)
    assert loss.rank == 2
    assert reported


def test_failed_rank_is_reported_with_its_reason(monkeypatch):
    monkeypatch.setattr(watching, "_GRACE", 0.1)
    ranks = Ranks(2, timeout=2)
    ranks.start(0)
    ranks.watches[1]._send({"failed": "has failed (ValueError: no)"})
    assert ranks.report(0) == (LostRank(1, socket.gethostname(), "has failed (ValueError: no)"), False)


@pytest.mark.parametrize("rank", [0, 1])
def test_failure_waits_for_the_report_of_its_cause(rank):
    """The report ends the process with its own message and exit status, which the exception of this rank must not precede."""
    ranks = Ranks(2, timeout=1000)
    watch, reporting, ended = ranks.watches[rank], threading.Event(), threading.Event()

    def report(loss, reported):
        reporting.set()
        assert ended.wait(LIMIT)

    watch._report = report
    ranks.start(rank)
    ranks.watches[1 - rank].close()
    assert reporting.wait(LIMIT)
    failing = threading.Thread(target=watch.fail, args=("has failed (RuntimeError: connection reset by peer)",))
    failing.start()
    failing.join(0.5)
    waits = failing.is_alive()
    ended.set()
    failing.join(LIMIT)
    assert waits
    assert not failing.is_alive()


def test_completed_rank_is_no_loss():
    ranks = Ranks(2, timeout=1000)
    ranks.start(0, 1)
    for watch in ranks.watches:
        watch.end()
        watch._thread.join(LIMIT)
        assert not watch._thread.is_alive()
    assert all(reports.empty() for reports in ranks.reports)


def test_suspended_rank_blames_no_other(monkeypatch):
    """The clock of rank 0 jumps by an hour, as after a suspension, and that of rank 1 does not."""
    ranks = Ranks(2, timeout=50)
    jumped, jumps = threading.Event(), iter([0.0, 0.0, 3600.0])
    offset = [0.0]

    def clock():
        if threading.current_thread() is ranks.watches[0]._thread:
            offset[0] = next(jumps, 3600.0)
            if offset[0]:
                jumped.set()
        return real() + offset[0]

    real = time.monotonic
    monkeypatch.setattr(watching.time, "monotonic", clock)
    monkeypatch.setattr(watching, "_BEATS", 500)
    ranks.start(0, 1)
    assert jumped.wait(LIMIT)
    for watch in ranks.watches:
        watch.end()
        watch._thread.join(LIMIT)
    assert ranks.reports[0].empty()


def test_strangers_are_not_accepted():
    first = Watch(0, 2, 1000, print)
    port = first.listen()["port"]
    stranger = Client(("127.0.0.1", port))
    stranger.send_bytes(b'{"token": "guess", "rank": 1, "name": "stranger"}')
    assert not first.accept(0.5)
    stranger.close()


STRANGERS = {
    "silent": b"",
    "half a message": b"\x00",
    "not ASCII": b"\x00\x00\x00\x0f" + '{"token": "é"}'.encode(),
    "a number": b"\x00\x00\x00\x011",
}


@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS)
def test_a_rank_connects_after_a_stranger(content, monkeypatch):
    monkeypatch.setattr(watching, "_GREETING", 1)
    first, second = Watch(0, 2, 1000, print), Watch(1, 2, 1000, print)
    address = first.listen()
    with socket.create_connection(("127.0.0.1", address["port"])) as stranger:
        stranger.sendall(content)
        accepted = []
        thread = threading.Thread(target=lambda: accepted.append(first.accept()))
        thread.start()
        assert second.connect("127.0.0.1", **address)
        thread.join(LIMIT)
    assert accepted == [True]
    for watch in (first, second):
        watch.close()


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_timeout_must_be_positive(timeout):
    with pytest.raises(ValueError, match=f"timeout is {timeout}; it must be a positive, finite number of seconds"):
        Heartbeat(timeout)
