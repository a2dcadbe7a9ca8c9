"""Five times as many requests as the server can answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np

from perf.contenders.servers import TRITON
from perf.harness import load
from perf.harness.measurement import OK, Mode, Trace
from perf.harness.payload import Payload
from tests.served import Served

TIMES = 5.0
USERS_PER_REQUEST = 4  # so that the generator, which shares the cores, can send five times as many
FULL = 16  # requests in flight at which the server is fully used
WINDOW_S = 0.25
FULL_SPEED = 0.9  # of the rate before the overload
UNAVAILABLE = 503


@dataclass(frozen=True)
class Overload:
    """What became of the requests.

    Args:
        capacity: answers per second before, of `FULL` in flight.
        accepted, refused: requests of the overload.
        lost: the others, by HTTP status, or as of `perf.harness.measurement`.
        accepted_p99_s, refused_p50_s: how long they took. A full queue rejects at once; of the
            requests that it admitted, it rejects some when they have waited too long.
        recovery_s: from the last request of the overload to the first quarter of a second at full
            speed.
        growth_mb: anonymous memory after it, less before.
    """

    capacity: float
    accepted: int
    refused: int
    lost: Counter[int]
    accepted_p99_s: float
    refused_p50_s: float
    recovery_s: float
    growth_mb: float


def overload(served: Served, users: Payload, seconds: float) -> Overload:
    """Load a server fully, overload it, load it fully again; each for so many seconds."""
    rows = (slice(r, r + USERS_PER_REQUEST) for r in range(0, len(users), USERS_PER_REQUEST))
    requests = [TRITON.request(users.dense[r], users.categorical[r]) for r in rows]
    ask = partial(_load, served.http_url, requests)
    before = ask("concurrency", FULL, seconds)
    capacity = _rate(before, before.from_ns, before.until_ns)
    ask("rate", TIMES * capacity, 1.0)  # queues and buffers at their largest
    before_mb = served.anonymous_mb()
    crowd = ask("rate", TIMES * capacity, seconds)
    growth_mb = served.anonymous_mb() - before_mb
    after = ask("concurrency", FULL, seconds)
    took_s = (crowd.done_ns - crowd.due_ns) / 1e9
    good, refused = crowd.status == OK, crowd.status == UNAVAILABLE
    return Overload(
        capacity=capacity,
        accepted=int(good.sum()),
        refused=int(refused.sum()),
        lost=Counter(crowd.status[~good & ~refused].tolist()),
        accepted_p99_s=_percentile(took_s[good], 99),
        refused_p50_s=_percentile(took_s[refused], 50),
        recovery_s=_recovery_s(after, int(crowd.sent_ns.max()), capacity),
        growth_mb=growth_mb,
    )


def _load(address: str, requests: list[bytes], mode: Mode, value: float, seconds: float) -> Trace:
    """One run of the load generator, in a process that goes before the server's."""
    return load.run(address, requests, load.Plan(mode, value, seconds))


def _percentile(values: np.ndarray, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else 0.0


def _rate(trace: Trace, from_ns: int, until_ns: int) -> float:
    done = trace.done_ns[trace.status == OK]
    return float(((done >= from_ns) & (done < until_ns)).sum() / ((until_ns - from_ns) / 1e9))


def _recovery_s(after: Trace, ended_ns: int, capacity: float) -> float:
    """The start of the first window at full speed; infinite where there is none."""
    window_ns = int(WINDOW_S * 1e9)
    first = int(after.sent_ns.min())
    for start in range(first, after.until_ns - window_ns + 1, window_ns // 5):
        if _rate(after, start, start + window_ns) >= FULL_SPEED * capacity:
            return (start - ended_ns) / 1e9
    return float("inf")
