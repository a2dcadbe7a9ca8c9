"""One measurement: the load, the times of its requests, and the figures that they give.

A `Trace` holds the times of all requests of a run, whichever program sent them; `summarise` turns
it into a `Measurement`, one line of perf/results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil

Mode = Literal["concurrency", "rate"]
Times = npt.NDArray[np.int64]

PERCENTILES = {"p5_ms": 5, "p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "p99_9_ms": 99.9}
OK = 200
LOST, UNANSWERED = -1, 0  # instead of a status: the server hung up; no answer until the end
LATE_NS = 1_000_000
WINDOWS, STABILITY_PERCENT = 3, 15.0


@dataclass(frozen=True)
class Load:
    """`concurrency` keeps `value` requests in flight (closed loop), `rate` sends `value` a second
    at Poisson times, answered or not (open loop)."""

    mode: Mode
    value: float

    def __str__(self) -> str:
        unit = "" if self.mode == "concurrency" else " requests/s"
        return f"{self.mode} {self.value:g}{unit}"


@dataclass(frozen=True)
class StageTimes:
    """What a member of the ensemble did, by the server's statistics: means per request, each of
    which counts the time of its whole batch."""

    queue_us: float
    input_us: float
    infer_us: float
    output_us: float
    inference_count: int
    execution_count: int

    @property
    def mean_batch(self) -> float:
        return self.inference_count / self.execution_count if self.execution_count else 0.0


@dataclass(frozen=True)
class Measurement:
    """One run; a failed one has an error and no latency."""

    model: str
    batch: int  # users in a request
    load: Load
    requests: int = 0  # answered in the time that counts
    failed: int = 0  # refused, failed, lost or unanswered
    duration_s: float = 0.0  # of the time that counts
    throughput: float = 0.0  # users per second
    latency_ms: Mapping[str, float] = field(default_factory=dict)  # percentiles, mean and max
    p99_range_ms: tuple[float, float] | None = None  # of its thirds: how far to trust the p99
    stable: bool = True  # the thirds agree
    delayed_percent: float = 0.0  # of the requests, sent late: the load was less than asked
    stages: Mapping[str, StageTimes] = field(default_factory=dict)  # over the whole run
    error: str | None = None  # in the words of the program that sent the requests

    def to_dict(self) -> dict[str, Any]:
        """Flat and JSON-ready: `mode` and `value` for the load, `p50_ms` and so on."""
        value = asdict(self)
        del value["load"], value["latency_ms"]
        stages = {n: {**asdict(s), "mean_batch": s.mean_batch} for n, s in self.stages.items()}
        return {**value, **asdict(self.load), **self.latency_ms, "stages": stages}

    def __str__(self) -> str:
        if self.error is not None:
            return f"FAILED ({self.failed} requests): {self.error}"
        p50, p99 = self.latency_ms["p50_ms"], self.latency_ms["p99_ms"]
        figures = f"{self.throughput:.0f} users/s, p50 {p50:.2f}, p99 {p99:.2f} ms"
        late = f" DELAYED ({self.delayed_percent:g} % of the requests)"
        return figures + " UNSTABLE" * (not self.stable) + late * (self.delayed_percent > 0)


@dataclass(frozen=True, eq=False)
class Trace:
    """The requests of one run in the order in which they left, [N] each; times in ns of the
    monotonic clock. In a closed loop a request is due when sent."""

    due_ns: Times
    sent_ns: Times
    done_ns: Times
    status: Times
    from_ns: int  # the time that counts
    until_ns: int
    cpu_us: float = 0.0  # mean of the load generator per request

    def late(self) -> int:
        """Requests of an open loop that left more than 1 ms after they were due."""
        return int((self.sent_ns - self.due_ns > LATE_NS).sum())

    def answered(self, at_ns: Times) -> npt.NDArray[np.bool_]:
        """Which requests were answered well and have this time in the time that counts."""
        return (at_ns >= self.from_ns) & (at_ns < self.until_ns) & (self.status == OK)

    def counted(self, load: Load) -> tuple[npt.NDArray[np.float64], Times]:
        """Latency in ms and moment of the requests that count. Closed loop: those that ended in
        time. Open loop: those that were due in it, because the slowest ones end after it."""
        moments = self.done_ns if load.mode == "concurrency" else self.due_ns
        some = self.answered(moments)
        return (self.done_ns - self.due_ns)[some] / 1e6, moments[some]


def summarise(trace: Trace, load: Load, model: str, batch: int = 1) -> Measurement:
    """One run in figures. Its throughput counts the answers that came in the counted time."""
    seconds = (trace.until_ns - trace.from_ns) / 1e9
    failed, (latency_ms, moments) = int((trace.status != OK).sum()), trace.counted(load)
    if not len(latency_ms):
        error = f"no request was answered in {seconds:g} s ({failed} of them failed)"
        return Measurement(model, batch, load, failed=failed, stable=False, error=error)
    bounds = np.linspace(trace.from_ns, trace.until_ns, WINDOWS + 1)[1:-1]
    window = np.searchsorted(bounds, moments)
    windows = [latency_ms[window == number] for number in range(WINDOWS)]
    p99 = [float(np.percentile(part, 99)) for part in windows if len(part)]
    # In an open loop the counts are random: there the latencies alone have to agree.
    agreeing = [[part.mean() for part in windows if len(part)]]
    agreeing += [list(map(len, windows))] if load.mode == "concurrency" else []
    return Measurement(
        model=model,
        batch=batch,
        load=load,
        requests=len(latency_ms),
        failed=failed,
        duration_s=seconds,
        throughput=int(trace.answered(trace.done_ns).sum()) * batch / seconds,
        latency_ms=latency_summary(latency_ms),
        p99_range_ms=(min(p99), max(p99)),
        stable=all(map(len, windows))
        and all(max(v) <= min(v) * (1 + STABILITY_PERCENT / 100) for v in agreeing),
        delayed_percent=100 * trace.late() / len(trace.sent_ns),
    )


def latency_summary(latency_ms: npt.NDArray[np.float64]) -> dict[str, float]:
    """Percentiles (linear interpolation), mean and max of at least one request, in ms."""
    values = np.percentile(latency_ms, list(PERCENTILES.values()))
    summary = dict(zip(PERCENTILES, map(float, values), strict=True))
    return {**summary, "mean_ms": float(latency_ms.mean()), "max_ms": float(latency_ms.max())}


class Memory(NamedTuple):
    """What processes hold, in MB of 10^6 bytes (man 5 proc, smaps). The proportional share (PSS)
    divides a page among those that hold it: its sum is what the processes cost together, if no
    other server maps the same release."""

    rss_mb: float
    pss_mb: float
    shared_mb: float  # another process holds it, too
    anonymous_mb: float  # in no file


def memory(pids: Iterable[int]) -> Memory:
    """The sum over these processes. Raises psutil.NoSuchProcess."""
    maps = [held for pid in pids for held in psutil.Process(pid).memory_maps(grouped=True)]
    held_bytes = [(m.rss, m.pss, m.shared_clean + m.shared_dirty, m.anonymous) for m in maps]
    return Memory(*(sum(column) / 1e6 for column in zip(*held_bytes, strict=True)))
