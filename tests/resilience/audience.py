"""Clients that ask all the time and check every answer against the release that it names.

They run in a process of their own, so that publishing takes nothing from them but the processor.
Each waits for its answer before it asks again. An answer is right if it equals the in-process
answer of the release that it names; release n holds the export at n modulo the number of exports.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.client import Recommender, RecommendError, Retry

SLACK = 1e-4
DEADLINE_S = 10.0
POLL_S = 0.1
CLIENTS = 8

_signals: dict[str, Any] = {}  # of the clients' process


@dataclass(frozen=True, eq=False)
class Trace:
    """All requests by the time of sending: when each was sent and answered (ns, monotonic), the
    release that the answer names (0: no answer), and whether it is that release's answer."""

    sent_ns: npt.NDArray[np.int64]
    answered_ns: npt.NDArray[np.int64]
    release: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]

    @property
    def failed(self) -> int:
        return int((self.release == 0).sum())

    @property
    def mixed(self) -> int:
        """Answers that came, and are of no release."""
        return int(((self.release > 0) & ~self.right).sum())

    def p99_ms(self, start_ns: int, stop_ns: int) -> float:
        """99th percentile of the latency of the requests sent in this time."""
        some = (self.sent_ns >= start_ns) & (self.sent_ns < stop_ns)
        return float(np.percentile((self.answered_ns - self.sent_ns)[some], 99)) / 1e6


@contextmanager
def audience(
    url: str, users: list[dict[str, Any]], scores: npt.NDArray[np.float32]
) -> Iterator[Future[Trace]]:
    """Ask while the block runs -> the trace, once the block has ended.

    Args:
        users: as clients send them. scores: what each export answers them, [exports, users, R].
    """
    spawn = get_context("spawn")  # a fork would copy this process's threads' locks
    signals = {"asking": spawn.Event(), "over": spawn.Event()}
    with ProcessPoolExecutor(1, spawn, _receive, (signals,)) as pool:
        trace = pool.submit(_ask_all, url, users, scores)
        try:
            while not signals["asking"].wait(POLL_S):
                if trace.done():
                    trace.result()  # raises the error of the clients' process
            yield trace
        finally:
            signals["over"].set()


def _receive(signals: dict[str, Any]) -> None:
    _signals.update(signals)


def _ask_all(url: str, users: list[dict[str, Any]], scores: npt.NDArray[np.float32]) -> Trace:
    over = threading.Event()
    step = max(1, len(users) // CLIENTS)
    with ThreadPoolExecutor(CLIENTS) as pool:
        ask = partial(_keep_asking, url, users, scores, over)
        clients = [pool.submit(ask, number * step) for number in range(CLIENTS)]
        try:
            _signals["asking"].set()
            _signals["over"].wait()
        finally:
            over.set()
        rows = sorted(row for client in clients for row in client.result())
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return Trace(*columns[:3], columns[3].astype(bool))


def _keep_asking(
    url: str,
    users: list[dict[str, Any]],
    scores: npt.NDArray[np.float32],
    over: threading.Event,
    turn: int,
) -> list[tuple[int, int, int, bool]]:
    """One client -> the rows of its trace."""
    rows = []
    with Recommender(url, deadline_s=DEADLINE_S, retry=Retry(tries=1)) as client:
        while not over.is_set():
            user, turn = turn % len(users), turn + 1
            sent, release, right = time.monotonic_ns(), 0, False
            try:
                answer = client.recommend(users[user])
            except RecommendError as error:
                print(f"failed: {error}", file=sys.stderr, flush=True)
            else:
                release = answer.release or 0
                expected = scores[release % len(scores), user]
                same = len(answer.scores) == len(expected)
                right = same and np.allclose(answer.scores, expected, rtol=0, atol=SLACK)
            rows.append((sent, time.monotonic_ns(), release, right))
    return rows
