"""`python -m perf.load`: one cheap HTTP load generator for every server that is compared.

It shares the cores with the server, so that what it costs is taken from what it measures: a loop
over epoll, with requests built beforehand. Its timers are finer than the whole milliseconds of an
event loop over libuv. It runs in a process of its own, in real time wherever it may (or at the
highest `nice`), as if the clients were on another machine.

Closed loop: every connection has one request in flight. Open loop: requests leave at Poisson times
drawn beforehand, whatever comes back, each on a connection that is free; a latency counts from the
time at which the request was due. A request that is refused, cut off or not answered is counted as
failed. Nothing is sent twice.

Connections are opened one after the other while requests are under way. Worker processes that share
a listening socket are given a connection when they are free to take it: of many that came at once,
the first to wake would take nearly all.
"""

from __future__ import annotations

import argparse
import gc
import os
import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade.errors import CascadeError
from perf.measurement import Mode
from perf.trace import LOST, UNANSWERED, Trace, read_requests

NICE = -20
MOST_CONNECTIONS = 1024
CONNECTIONS_APART_NS = 5_000_000  # closed loop; an open one opens more when all are busy
MOST_PER_SECOND = 50_000  # answers that there is room for in a closed loop
MOST_LOST = 100  # in a row: then nobody listens any more
DRAIN_S = 10.0
now = time.monotonic_ns


class LoadError(CascadeError):
    """The server cannot be asked at all, or answers in a form that is not understood."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Args:
        mode, value: `perf.measurement.Load`: requests in flight, or requests per second.
        seconds: how long to measure, after `warm_up_s` that do not count.
        first: the user to begin with; the others follow in order and come again after the last.
        seed: of the Poisson times.
    """

    mode: Mode
    value: float
    seconds: float
    warm_up_s: float = 0.5
    first: int = 0
    seed: int = 0

    @property
    def duration_s(self) -> float:
        return self.warm_up_s + self.seconds


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
    """The status code of an HTTP/1.1 answer, None while some of it is still to come.

    Raises:
        LoadError: it does not say how long it is.
    """
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
        self._first = plan.first % len(requests)
        self._due = _due(plan)
        room = len(self._due) or int(MOST_PER_SECOND * plan.duration_s)
        self._sent, self._done, self._status = [0] * room, [0] * room, [UNANSWERED] * room
        self._next = self._answers = self._waited = self._lost = 0
        self._open: dict[int, Connection] = {}
        self._free: deque[Connection] = deque()
        self._epoll = select.epoll()

    def run(self) -> Trace:
        """Do it. Raises LoadError; see there."""
        closed = self._plan.mode == "concurrency"
        cpu_s, start = time.process_time(), now()
        if closed:
            self._closed_loop(start)
        else:
            self._open_loop(start)
        cpu_s = time.process_time() - cpu_s
        for connection in self._open.values():
            connection.socket.close()
        count = self._next
        sent = np.array(self._sent[:count], np.int64)
        return Trace(
            due_ns=sent if closed else np.array(self._due[:count], np.int64) + start,
            sent_ns=sent,
            done_ns=np.array(self._done[:count], np.int64),
            status=np.array(self._status[:count], np.int64),
            from_ns=start + int(self._plan.warm_up_s * 1e9),
            until_ns=start + int(self._plan.duration_s * 1e9),
            waited=self._waited,
            cpu_us=cpu_s * 1e6 / max(1, count),
        )

    def _closed_loop(self, start: int) -> None:
        for number in range(1, int(self._plan.value) + 1):
            self._free.append(self._connect())
            self._keep_busy(until=start + number * CONNECTIONS_APART_NS)
        self._keep_busy(until=start + int(self._plan.duration_s * 1e9))
        self._drain()

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
            elif free or self._grow():
                self._send(free.popleft())
            else:
                self._waited += 1
                self._receive(1)
        self._drain()

    def _drain(self) -> None:
        deadline = now() + int(DRAIN_S * 1e9)
        while self._answers < self._next and now() < deadline:
            self._receive(0.1)

    def _grow(self) -> bool:
        if len(self._open) >= MOST_CONNECTIONS:
            return False
        self._free.append(self._connect())
        return True

    def _connect(self) -> Connection:
        try:
            connection = Connection(self._address)
        except OSError as error:
            raise LoadError(f"nothing answers at {self._address}: {error}") from error
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        return connection

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
            if connection.buffer:
                data = connection.buffer + data
            code = status(data)
            if code is None:
                connection.buffer = data
            else:
                connection.buffer = b""
                self._lost = 0
                self._finish(connection, code)

    def _finish(self, connection: Connection, code: int) -> None:
        number = connection.request
        if number < 0:
            raise LoadError(f"an answer {code} came that nobody had asked for")
        self._done[number] = now()
        self._status[number] = code
        self._answers += 1
        connection.request = -1
        self._free.append(connection)

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
            self._free.pop()
            self._lost += 1
        if self._lost > MOST_LOST:
            raise LoadError(f"{self._address} hung up on {MOST_LOST} requests in a row")
        self._free.append(self._connect())


def _due(plan: Plan) -> list[int]:
    """Open loop: when each request is due, in ns after the start. Empty for a closed loop."""
    if plan.mode == "concurrency":
        return []
    random = np.random.default_rng(plan.seed)
    count = int(plan.value * plan.duration_s * 1.5 + 100)
    times_s = random.exponential(1 / plan.value, count).cumsum()
    return [int(s * 1e9) for s in times_s[times_s < plan.duration_s]]


def go_first() -> str:
    """Run before others as far as that is allowed, and say how it went. Behind a server that keeps
    every core busy, the best of the ordinary priorities still sent one request of twelve late."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        return "real time"
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    return f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"


def main(arguments: list[str] | None = None) -> int:
    """Put one load on a server and write the trace."""
    options = _parser().parse_args(arguments)
    host, _, port = options.address.rpartition(":")
    plan = Plan(
        options.mode,
        options.value,
        options.seconds,
        options.warm_up,
        options.first,
        options.seed,
    )
    generator = Generator((host, int(port)), read_requests(options.requests), plan)
    priority = go_first()
    gc.freeze()
    gc.disable()  # a collection would hold up whatever is due
    try:
        trace = generator.run()
    except LoadError as error:
        print(f"perf.load: {error}", file=sys.stderr)
        return 2
    trace.write(options.out)
    print(f"{len(trace.sent_ns)} requests, {trace.cpu_us:.1f} us of CPU each, {priority}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.load", description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT")
    parser.add_argument("--requests", type=Path, required=True, help="see perf.trace")
    parser.add_argument("--mode", choices=("concurrency", "rate"), required=True)
    parser.add_argument("--value", type=float, required=True, help="in flight, or per second")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds that do not count")
    parser.add_argument("--first", type=int, default=0, help="user to begin with")
    parser.add_argument("--seed", type=int, default=0, help="of the Poisson times")
    parser.add_argument("--out", type=Path, required=True, help="file for the trace (.npz)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
