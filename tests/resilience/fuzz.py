"""Malformed requests, thousands of them, beside good ones whose answers are known."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

import grpc
from hypothesis import HealthCheck, Phase, given, seed, settings

from cascade.server import workers
from perf.harness.payload import Payload
from tests.resilience.malformed import REQUESTS, Malformed
from tests.resilience.traffic import OK, WRONG, traffic
from tests.served import Served

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 2.0
ANSWER_S = 0.05  # an HTTP request that promises more than it sends gets no answer
ROUND = 250  # requests between looks at the processes
WARM_UP = 0.25  # of the requests: what they grow is buffers
GOOD_PAUSE_S = 0.05

Send = Callable[[Malformed], None]


@dataclass(frozen=True)
class Fuzz:
    """What became of the server and of the good requests.

    Args:
        requests: malformed ones that were sent.
        crashes: processes of the server that ended.
        wrong: good requests with another answer than before. refused: those with an error; a string
            longer than its tensor fails the requests that share its batch.
        good: number of good requests.
        growth_mb: anonymous memory at the end, less that after the warm-up.
    """

    requests: int
    crashes: int
    wrong: int
    refused: int
    good: int
    growth_mb: float


def fuzz(served: Served, users: Payload, requests: int, seconds: float = float("inf")) -> Fuzz:
    """Send so many malformed requests, or as many as the time allows."""
    beside = traffic(served.url, users, at_once=2, timeout_s=5.0, pause_s=GOOD_PAUSE_S, check=True)
    with _sender(served) as send, beside as good:
        sent, growth_mb, crashes = _storm(served, send, requests, seconds)
    with traffic(served.url, users, at_once=1, check=True) as calm:
        time.sleep(1.0)
    return Fuzz(
        requests=sent,
        crashes=crashes,
        wrong=sum(o.error == WRONG for o in good) + sum(o.error != OK for o in calm),
        refused=sum(o.error not in (OK, WRONG) for o in good),
        good=len(good),
        growth_mb=growth_mb,
    )


@contextmanager
def _sender(served: Served) -> Iterator[Send]:
    """Sends a request over a connection that the server may close, and ignores the answer."""
    host, _, port = served.http_url.rpartition(":")
    with grpc.insecure_channel(served.url) as channel:
        infer = channel.unary_unary(METHOD)  # bytes as they are

        def send(request: Malformed) -> None:
            if request.protocol == "grpc":
                with suppress(grpc.RpcError):
                    infer(request.content, timeout=TIMEOUT_S)
                return
            address = host, int(port)
            with suppress(OSError), closing(socket.create_connection(address, TIMEOUT_S)) as wire:
                wire.sendall(request.content)
                wire.settimeout(ANSWER_S)
                wire.recv(65536)

        yield send


def _storm(served: Served, send: Send, requests: int, seconds: float) -> tuple[int, float, int]:
    """Requests sent, growth in MB, processes that ended."""
    start, sent, crashes = time.monotonic(), 0, 0
    warm_mb = None
    name = served.name
    alive = workers.alive(name)
    while sent < requests and served.running and time.monotonic() < start + seconds:
        sent += _round(send, sent)
        now = workers.alive(name)  # empty after a restart: the new server has another name
        crashes += len(alive - now)
        alive = now
        spent = max(sent / requests, (time.monotonic() - start) / seconds)
        if warm_mb is None and spent > WARM_UP:
            warm_mb = served.anonymous_mb()
    if not served.running:
        return sent, 0.0, crashes + 1
    return sent, served.anonymous_mb() - (warm_mb or 0.0), crashes


def _round(send: Send, number: int) -> int:
    """Send `ROUND` requests, the same for the same number -> how many it were."""
    sent = 0

    @seed(number)
    @settings(
        max_examples=ROUND,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(REQUESTS)
    def each(request: Malformed) -> None:
        nonlocal sent
        sent += 1
        send(request)

    each()
    return sent
