"""Malformed requests, thousands of them, beside good ones whose answers are known."""

from __future__ import annotations

import socket
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from hypothesis import HealthCheck, Phase, given, seed, settings

from cascade.server import workers
from perf.payload import Payload
from tests.resilience.malformed import REQUESTS, Malformed
from tests.resilience.traffic import OK, WRONG, Traffic
from tests.served import Served, serve

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 2.0
ANSWER_S = 0.05  # an HTTP request that promises more than it sends gets no answer
ROUND = 250  # requests between looks at the processes
WARM_UP = 0.25  # of the requests: what they grow is buffers
GOOD_PAUSE_S = 0.05


@dataclass(frozen=True)
class Fuzz:
    """What came of it.

    Args:
        requests: malformed ones that were sent.
        crashes: processes of the server that ended.
        wrong: good requests with another answer than before. refused: with an error; a string
            longer than its tensor costs those that share its batch, see the README.
        good: of how many.
        growth_mb: anonymous memory at the end, less that after the warm-up.
    """

    requests: int
    crashes: int
    wrong: int
    refused: int
    good: int
    growth_mb: float


class Sender:
    """Sends what is malformed, over connections that the server may end."""

    def __init__(self, served: Served) -> None:
        host, _, port = served.http_url.rpartition(":")
        self._http = host, int(port)
        self._channel = grpc.insecure_channel(served.url)
        self._infer = self._channel.unary_unary(METHOD)  # bytes as they are

    def send(self, request: Malformed) -> None:
        """Send it, and take whatever comes."""
        if request.protocol == "grpc":
            with suppress(grpc.RpcError):
                self._infer(request.content, timeout=TIMEOUT_S)
            return
        with suppress(OSError), closing(socket.create_connection(self._http, TIMEOUT_S)) as wire:
            wire.sendall(request.content)
            wire.settimeout(ANSWER_S)
            wire.recv(65536)

    def close(self) -> None:
        self._channel.close()


def measure(
    repository: Path, users: Payload, work: Path, requests: int, seconds: float = float("inf")
) -> Fuzz:
    """Send so many malformed requests, or as many as the time allows."""
    with serve(repository, work / "fuzz.log") as served:
        sender = Sender(served)
        with Traffic(
            served.url, users, at_once=2, timeout_s=5.0, pause_s=GOOD_PAUSE_S, check=True
        ) as traffic:
            sent, growth_mb, crashes = _storm(served, sender, requests, seconds)
        sender.close()
        with Traffic(served.url, users, at_once=1, check=True) as calm:
            time.sleep(1.0)
    good = traffic.outcomes
    return Fuzz(
        requests=sent,
        crashes=crashes,
        wrong=sum(o.error == WRONG for o in good) + sum(o.error != OK for o in calm.outcomes),
        refused=sum(o.error not in (OK, WRONG) for o in good),
        good=len(good),
        growth_mb=growth_mb,
    )


def _storm(served: Served, sender: Sender, requests: int, seconds: float) -> tuple[int, float, int]:
    """Requests sent, growth in MB, processes that ended."""
    start, sent, crashes = time.monotonic(), 0, 0
    warm_mb = None
    name = served.name
    alive = workers.alive(name)
    while sent < requests and served.running and time.monotonic() < start + seconds:
        sent += _round(sender, sent)
        now = workers.alive(name)  # none of another server, where the launcher had to start one
        crashes += len(alive - now)
        alive = now
        spent = max(sent / requests, (time.monotonic() - start) / seconds)
        if warm_mb is None and spent > WARM_UP:
            warm_mb = served.anonymous_mb()
    if not served.running:
        return sent, 0.0, crashes + 1
    return sent, served.anonymous_mb() - (warm_mb or 0.0), crashes


def _round(sender: Sender, number: int) -> int:
    """`ROUND` requests, the same for the same number."""
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
    def send(request: Malformed) -> None:
        nonlocal sent
        sent += 1
        sender.send(request)

    send()
    return sent
