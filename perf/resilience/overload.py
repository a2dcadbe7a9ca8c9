"""Five times as many requests as the server can answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perf.contenders.wire import TRITON
from perf.load import Generator, Plan
from perf.payload import Payload
from perf.resilience.served import serve
from perf.trace import OK, Trace

TIMES = 5.0
DEADLINE_S = 0.25  # what the users of these requests wait
FULL = 16  # requests in flight at which the server is fully used
WINDOW_S = 0.25
FULL_SPEED = 0.9  # of what it was before
UNAVAILABLE = 503


@dataclass(frozen=True)
class Overload:
    """What came of it.

    Args:
        capacity: answers per second before, of `FULL` in flight.
        accepted, refused, lost: requests of the overload.
        accepted_p99_s, refused_p99_s: how long they took.
        recovery_s: from the last request of the overload to the first quarter of a second at full
            speed.
        growth_mb: anonymous memory after it, less before.
    """

    capacity: float
    accepted: int
    refused: int
    lost: int
    accepted_p99_s: float
    refused_p99_s: float
    recovery_s: float
    growth_mb: float


def measure(repository: Path, users: Payload, work: Path, seconds: float) -> Overload:
    """Load it fully, overload it, load it fully again."""
    requests = TRITON.requests(users)
    with serve(repository, work / "overload.log") as served:
        host, _, port = served.http_url.rpartition(":")

        def run(plan: Plan) -> Trace:
            return Generator((host, int(port)), requests, plan).run()

        before = run(Plan("concurrency", FULL, seconds, warm_up_s=1.0))
        capacity = _rate(before, before.from_ns, before.until_ns)
        run(Plan("rate", TIMES * capacity, 1.0))  # queues and buffers at their largest
        before_mb = served.anonymous_mb()
        crowd = run(Plan("rate", TIMES * capacity, seconds))
        growth_mb = served.anonymous_mb() - before_mb
        after = run(Plan("concurrency", FULL, seconds, warm_up_s=0.0))
    took_s = (crowd.done_ns - crowd.due_ns) / 1e9
    good, refused = crowd.status == OK, crowd.status == UNAVAILABLE
    return Overload(
        capacity=capacity,
        accepted=int(good.sum()),
        refused=int(refused.sum()),
        lost=int((~good & ~refused).sum()),
        accepted_p99_s=_p99(took_s[good]),
        refused_p99_s=_p99(took_s[refused]),
        recovery_s=_recovery_s(after, int(crowd.sent_ns.max()), capacity),
        growth_mb=growth_mb,
    )


def _p99(values: np.ndarray) -> float:
    return float(np.percentile(values, 99)) if len(values) else 0.0


def _rate(trace: Trace, from_ns: int, until_ns: int) -> float:
    done = trace.done_ns[trace.status == OK]
    return float(((done >= from_ns) & (done < until_ns)).sum() / ((until_ns - from_ns) / 1e9))


def _recovery_s(after: Trace, ended_ns: int, capacity: float) -> float:
    """The end of the first window at full speed; infinite where there is none."""
    window_ns = int(WINDOW_S * 1e9)
    start = int(after.sent_ns.min())
    while start + window_ns <= after.until_ns:
        if _rate(after, start, start + window_ns) >= FULL_SPEED * capacity:
            return (start - ended_ns) / 1e9
        start += window_ns // 5
    return float("inf")
