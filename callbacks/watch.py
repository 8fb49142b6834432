"""Connections from all ranks to rank 0, which show at once that a rank has died or failed, and after a timeout that it hangs.

The connections are independent of the collectives of training, whose backends wait for half an hour or more.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

_BEATS = 9  # heartbeats within the timeout
_GRACE = 2.0  # seconds to wait after a rank has failed: if rank 0 fails as well, it prints its own message
_EXIT = 10.0  # seconds that other ranks wait for rank 0 to print and exit: launchers kill all processes when one exits
_GREETING = 2  # seconds in which a rank identifies itself
_MAX_LENGTH = 1 << 16  # bytes of a message


class LostRank(NamedTuple):
    """A rank that no longer takes part.

    Attributes:
        rank: The rank.
        host: Name of its host.
        text: What happened, as the end of a sentence.
    """

    rank: int
    host: str
    text: str


class Watch:
    """Heartbeats between rank 0 and every other rank, sent and checked by a thread of each process.

    A closed connection means that a process has died. Missing heartbeats mean that it is stopped or hangs, or that its host
    is lost. A process that was itself suspended starts to measure the silence anew.

    Args:
        rank: Rank of this process.
        num_ranks: Number of ranks.
        timeout: Seconds without a heartbeat after which a rank is lost.
        report: Function that the thread calls once, with the lost rank and whether rank 0 has already reported it.

    Attributes:
        host: Name of the host of this process.
        launched: Whether the process of rank 0 has started this one.
    """

    launched = False

    def __init__(self, rank: int, num_ranks: int, timeout: float, report: Callable[[LostRank, bool], None]) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.timeout = timeout
        self.host = socket.gethostname()
        self._report = report
        self._peers: dict[int, Connection] = {}
        self._hosts: dict[int, str] = {}
        self._failures: dict[int, tuple[float, str]] = {}
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._ended = False
        self._failing = False
        self._reporting = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def listen(self) -> dict[str, Any]:
        """Open the port of rank 0 and return the arguments of `connect` except its host."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, backlog=self.num_ranks, dualstack_ipv6=dual)
        self._token = secrets.token_hex()
        return {"port": self._listener.getsockname()[1], "token": self._token, "name": self.host, "pid": os.getpid()}

    def accept(self, limit: float = 30.0) -> bool:
        """Accept the connections of all other ranks, and close the port; return whether all connected in time."""
        deadline = time.monotonic() + limit
        with self._listener:
            while len(self._peers) < self.num_ranks - 1 and (left := deadline - time.monotonic()) > 0:
                self._listener.settimeout(left)
                try:
                    with self._listener.accept()[0] as peer:
                        connection = Connection(os.dup(peer.fileno()))
                        _limit_reading(peer, _GREETING)  # a stranger may send nothing, or half a message
                        greeting = _receive(connection)
                        _limit_reading(peer, 0)
                except OSError:
                    continue
                token = str((greeting or {}).get("token")).encode()
                if greeting is not None and hmac.compare_digest(token, self._token.encode()):
                    self._peers[greeting["rank"]], self._hosts[greeting["rank"]] = connection, greeting["name"]
                else:
                    connection.close()
        return len(self._peers) == self.num_ranks - 1

    def connect(self, host: str, port: int, token: str, name: str, pid: int, limit: float = 30.0) -> bool:
        """Connect to rank 0 and return whether that succeeded.

        Args:
            host: Address of the host of rank 0.
            port: Port of rank 0.
            token: Random string by which rank 0 recognises the other ranks.
            name: Name of the host of rank 0.
            pid: Process ID of rank 0 on its host.
            limit: Seconds to wait for the connection.
        """
        try:
            connection = socket.create_connection((host, port), timeout=limit)
        except OSError:
            return False
        connection.settimeout(None)
        self._peers, self._hosts = {0: Connection(connection.detach())}, {0: name}
        self.launched = name == self.host and pid == os.getppid()
        self._send({"token": token, "rank": self.rank, "name": self.host})
        return True

    def start(self) -> None:
        """Start to send and check heartbeats."""
        os.register_at_fork(after_in_child=self.close)  # a worker would keep the connection of a dead process open
        self._thread.start()

    def close(self) -> None:
        """Close the connections of this process."""
        self._ended = True
        for connection in self._peers.values():
            connection.close()

    def end(self) -> None:
        """Notify the other ranks that this one has completed its command, so that they do not report its exit."""
        self._ended = True
        self._send({"ended": True})

    def fail(self, text: str, agreed: bool = False) -> None:
        """Notify the other ranks that this one stops because of an exception, before it prints the exception and exits.

        If the exception was caused by the death of another rank, the thread reports that rank and ends the process.

        Args:
            text: What happened, as the end of a sentence.
            agreed: Whether the other ranks are about to stop as well.
        """
        self._failing = True
        if self.rank == 0 and not agreed:
            self._thread.join(1.0)  # until the thread has noticed that another process died
        if self.rank == 0 or agreed:
            with self._ending:
                self._ended = True
        self._send({"failed": text})
        if self._reporting or not self._ended:
            self._thread.join(_GRACE + _EXIT)

    def tell(self, loss: LostRank) -> None:
        """Notify the other ranks of a lost rank."""
        self._send({"lost": loss._asdict()})

    def wait_for_exit(self) -> None:
        """Wait until rank 0 has exited, for a few seconds at most."""
        deadline = time.monotonic() + _EXIT
        while (left := deadline - time.monotonic()) > 0 and wait(list(self._peers.values()), left):
            if all(_receive(connection) is None for connection in self._peers.values()):
                return

    def _run(self) -> None:
        """Send and check heartbeats until all peers have ended or one is lost."""
        interval = self.timeout / _BEATS
        last = beat_at = time.monotonic()
        heard = dict.fromkeys(self._peers, last)
        while self._peers or self._failures:
            try:
                ready = wait(list(self._peers.values()), interval)
            except (OSError, ValueError):  # closed
                return
            now = time.monotonic()
            if now - last > self.timeout / 2:  # this process was suspended
                heard = dict.fromkeys(self._peers, now)
            last = now
            for rank, connection in list(self._peers.items()):
                if connection in ready:
                    heard[rank] = now
                    self._handle(rank, _receive(connection), now)
            if now >= beat_at:
                self._send({})
                beat_at = now + interval
            self._check(heard, now)

    def _check(self, heard: dict[int, float], now: float) -> None:
        """Report peers that are silent, and peers that have failed unless this rank fails as well."""
        for rank in list(self._peers):
            if now - heard[rank] > self.timeout:
                silent = (
                    f"has not responded for {self.timeout:g} s: its process is stopped or hangs, or its host is lost"
                )
                self._lose(rank, silent)
        for rank, (deadline, text) in list(self._failures.items()):
            if now > deadline and not self._failing:
                self._lose(rank, text)

    def _handle(self, rank: int, message: dict[str, Any] | None, now: float) -> None:
        """Act on a message of a peer, or on the end of its connection, which is None."""
        if message is None:
            if rank in self._failures:
                self._peers.pop(rank)
            else:
                self._lose(rank, "has died: it was killed, for example for lack of memory, or its host is lost")
        elif "lost" in message:
            self._leave(rank, LostRank(**message["lost"]), True)
        elif "ended" in message:
            self._peers.pop(rank)
        elif "failed" in message and rank == 0:
            self._leave(rank, LostRank(0, self._hosts[0], message["failed"]), True)
        elif "failed" in message:
            self._failures[rank] = now + _GRACE, message["failed"]

    def _lose(self, rank: int, text: str) -> None:
        """Report a lost peer."""
        self._failures.pop(rank, None)
        self._leave(rank, LostRank(rank, self._hosts[rank], text), False)

    def _leave(self, rank: int, loss: LostRank, reported: bool) -> None:
        """Report a lost rank, unless this rank has ended; stop watching the peer."""
        with self._ending:
            self._reporting, self._ended = not self._ended, True
        if self._reporting:
            self._report(loss, reported)
            self._reporting = False
        self._peers.pop(rank, None)

    def _send(self, message: dict[str, Any]) -> None:
        """Send a message to all peers; a closed connection is noticed when it is read."""
        content = json.dumps(message).encode()
        with self._sending:
            for connection in list(self._peers.values()):
                try:
                    connection.send_bytes(content)
                except OSError:
                    continue


def _receive(connection: Connection) -> dict[str, Any] | None:
    """Return the next message of a connection; None if it is closed."""
    try:
        return dict(json.loads(connection.recv_bytes(_MAX_LENGTH)))
    except (EOFError, OSError, ValueError, TypeError):
        return None


def _limit_reading(peer: socket.socket, seconds: int) -> None:
    """Limit how long reading from a connection waits; 0 is no limit."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
