"""One cheap HTTP load generator for every server that is compared.

It shares the cores with the server, so what it costs is taken from what it measures: a loop over
epoll, with requests built beforehand, in a process of its own with the highest priority allowed.

Closed loop: every connection has one request in flight. Open loop: requests leave at Poisson times,
each on a free connection, answered or not; a latency counts from when the request was due. One that
is refused, cut off or not answered counts as failed; nothing is sent twice. Connections are opened
one by one under load: of many at once, the first worker to wake would accept nearly all.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from cascade.errors import CascadeError
from perf.harness.measurement import LOST, UNANSWERED, Mode, Trace

NICE = -20
MOST_CONNECTIONS = 1024
CONNECTIONS_APART_NS = 5_000_000  # closed loop; an open one opens more when all are busy
MOST_PER_SECOND = 50_000  # answers that there is room for in a closed loop
MOST_LOST = 100  # in a row: the server has gone
DRAIN_S = 10.0
now = time.monotonic_ns


class LoadError(CascadeError):
    """The server cannot be reached, or its answers are not understood."""


@dataclass(frozen=True)
class Plan:
    """One run: a load (see `Load`) for so many seconds after a warm-up that does not count."""

    mode: Mode
    value: float
    seconds: float
    warm_up_s: float = 0.5
    first: int = 0  # user; the others follow in order and come again after the last
    seed: int = 0  # of the Poisson times

    @property
    def duration_s(self) -> float:
        return self.warm_up_s + self.seconds

    def due(self) -> list[int]:
        """Open loop: when each request is due, in ns after the start. Empty for a closed loop."""
        if self.mode == "concurrency":
            return []
        random = np.random.default_rng(self.seed)
        count = int(self.value * self.duration_s * 1.5 + 100)
        times_s = random.exponential(1 / self.value, count).cumsum()
        return [int(s * 1e9) for s in times_s[times_s < self.duration_s]]


class Connection:
    """A keep-alive connection, and the number of the request that is under way on it."""

    __slots__ = ("buffer", "request", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=DRAIN_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(None)
        self.buffer = b""
        self.request = -1


def status(answer: bytes) -> int | None:
    """The code of an HTTP/1.1 answer, None while it is incomplete. Raises LoadError: no length."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    at = answer[:end].lower().find(b"\r\ncontent-length:")
    if at < 0:
        raise LoadError(f"an answer without Content-Length came: {answer[:end]!r}")
    length = int(answer[at + 17 : answer.find(b"\r\n", at + 17)])
    return None if len(answer) < end + 4 + length else int(answer[9:12])


class Generator:
    """Sends requests, and notes in nanoseconds when each was due, sent and answered."""

    def __init__(self, address: tuple[str, int], requests: list[bytes], plan: Plan) -> None:
        self._address, self._requests, self._plan = address, requests, plan
        self._first, self._due = plan.first % len(requests), plan.due()
        room = len(self._due) or int(MOST_PER_SECOND * plan.duration_s)
        self._sent, self._done, self._status = [0] * room, [0] * room, [UNANSWERED] * room
        self._next = self._answers = self._lost = 0
        self._open: dict[int, Connection] = {}
        self._free: deque[Connection] = deque()
        self._epoll = select.epoll()

    def run(self) -> Trace:
        """Do it. Raises LoadError; see there."""
        closed = self._plan.mode == "concurrency"
        cpu_s, start = time.process_time(), now()
        (self._closed_loop if closed else self._open_loop)(start)
        deadline = now() + int(DRAIN_S * 1e9)
        while self._answers < self._next and now() < deadline:
            self._receive(0.1)
        cpu_s = time.process_time() - cpu_s
        for connection in self._open.values():
            connection.socket.close()
        count, plan = self._next, self._plan
        sent, done, codes = np.array([self._sent, self._done, self._status], np.int64)[:, :count]
        due = sent if closed else np.array(self._due[:count], np.int64) + start
        from_ns, until_ns = (start + int(s * 1e9) for s in (plan.warm_up_s, plan.duration_s))
        return Trace(due, sent, done, codes, from_ns, until_ns, cpu_s * 1e6 / max(1, count))

    def _closed_loop(self, start: int) -> None:
        for number in range(1, int(self._plan.value) + 1):
            self._connect()
            self._keep_busy(until=start + number * CONNECTIONS_APART_NS)
        self._keep_busy(until=start + int(self._plan.duration_s * 1e9))

    def _keep_busy(self, until: int) -> None:
        free = self._free
        while now() < until and self._next < len(self._sent):
            while free and self._next < len(self._sent):
                self._send(free.popleft())
            self._receive(min(0.05, max(0.0, (until - now()) / 1e9)))

    def _open_loop(self, start: int) -> None:
        due, free = self._due, self._free
        while self._next < len(due):
            wait = start + due[self._next] - now()
            if wait > 0:
                # epoll waits whole milliseconds; select on the epoll itself waits microseconds.
                if select.select((self._epoll,), (), (), wait / 1e9)[0]:
                    self._receive(0)
            elif free:
                self._send(free.popleft())
            elif len(self._open) < MOST_CONNECTIONS:
                self._connect()
            else:
                self._receive(1)

    def _connect(self) -> None:
        """One more free connection."""
        try:
            connection = Connection(self._address)
        except OSError as error:
            raise LoadError(f"nothing answers at {self._address}: {error}") from error
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        self._free.append(connection)

    def _send(self, connection: Connection) -> None:
        number = self._next
        self._next = number + 1
        connection.request = number
        data = self._requests[(self._first + number) % len(self._requests)]
        self._sent[number] = now()
        try:
            connection.socket.sendall(data)
        except OSError:
            self._replace(connection)

    def _receive(self, timeout_s: float) -> None:
        for descriptor, _ in self._epoll.poll(timeout_s):
            connection = self._open[descriptor]
            try:
                data = connection.socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                self._replace(connection)
                continue
            connection.buffer = data = connection.buffer + data
            if (code := status(data)) is not None:
                connection.buffer, self._lost = b"", 0
                self._finish(connection, code)
                self._free.append(connection)

    def _finish(self, connection: Connection, code: int) -> None:
        number, connection.request = connection.request, -1
        if number < 0:
            raise LoadError(f"an answer {code} came without a request")
        self._done[number], self._status[number] = now(), code
        self._answers += 1

    def _replace(self, connection: Connection) -> None:
        """The server hung up: what was under way is lost, the next goes over a new connection."""
        descriptor = connection.socket.fileno()
        self._epoll.unregister(descriptor)
        del self._open[descriptor]
        connection.socket.close()
        if connection.request < 0:
            self._free.remove(connection)
        else:
            self._finish(connection, LOST)
            self._lost += 1
        if self._lost > MOST_LOST:
            raise LoadError(f"{self._address} hung up on {MOST_LOST} requests in a row")
        self._connect()


def go_first() -> None:
    """Take the highest priority that is allowed. Behind a server that keeps every core busy, `nice`
    alone still sent one request of twelve late."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def run(address: str, requests: Sequence[bytes], plan: Plan) -> Trace:
    """Put one load on a server, HOST:PORT, from a process of its own. Raises LoadError."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        return process.submit(_generate, address, list(requests), plan).result()


def _generate(address: str, requests: list[bytes], plan: Plan) -> Trace:
    host, _, port = address.rpartition(":")
    generator = Generator((host, int(port)), requests, plan)
    go_first()
    gc.freeze()
    gc.disable()  # a collection would delay the next request
    return generator.run()
