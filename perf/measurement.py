"""What one measurement is: the load, how long it was looked at, and what was seen.

`python -m perf` measures the server and `python -m perf.bound` the same code without one; both
write this form, so that the report can divide one by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Mode = Literal["concurrency", "rate"]
PERCENTILES = {"p5_ms": 5, "p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "p99_9_ms": 99.9}


@dataclass(frozen=True)
class Load:
    """What the clients do.

    Args:
        mode: `concurrency` keeps that many requests in flight (closed loop: a slow server is asked
            less often); `rate` sends so many a second at Poisson times whatever comes back (open
            loop: what independent users do).
        value: requests in flight, or requests per second.
    """

    mode: Mode
    value: float

    def __str__(self) -> str:
        unit = "" if self.mode == "concurrency" else " requests/s"
        return f"{self.mode} {self.value:g}{unit}"


@dataclass(frozen=True)
class Effort:
    """How long to look. Windows are counted in requests, not in seconds, so that a percentile
    rests on as many requests at every load.

    Args:
        name: goes into the record.
        window_requests: fewest requests in a window; a figure rests on the last three windows.
        stability_percent: the three windows agree when the largest is within so many percent of
            the smallest.
        trials: windows after which the measurement is called unstable.
    """

    name: str
    window_requests: int
    stability_percent: float
    trials: int


FULL = Effort("full", window_requests=2000, stability_percent=15, trials=8)
QUICK = Effort("quick", window_requests=300, stability_percent=30, trials=4)


@dataclass(frozen=True)
class StageTimes:
    """What a member of the ensemble did, from the server's own statistics.

    The times are means per request, in microseconds. A request that shared its batch with others
    counts the time of the whole batch: that is how long it waited.
    """

    queue_us: float
    input_us: float
    infer_us: float
    output_us: float
    inference_count: int
    execution_count: int

    @property
    def mean_batch(self) -> float:
        return self.inference_count / self.execution_count if self.execution_count else 0.0

    @property
    def compute_us(self) -> float:
        return self.input_us + self.infer_us + self.output_us


@dataclass(frozen=True)
class Measurement:
    """One run.

    Args:
        model: what was asked; `in-process` for the bound.
        batch: users in a request.
        requests: requests that were answered in the windows that count.
        failed: requests that the server refused or failed, by its own count.
        duration_s: length of these windows.
        throughput: users per second.
        latency_ms: percentiles, mean and max, by name; empty where the run failed.
        p99_range_ms: lowest and highest p99 among the windows: how far to trust the p99.
        stable: the windows agreed.
        delayed_percent: share of the requests that the client sent late, so that the load was not
            the one asked for.
        windows: how it was measured: mode, requests a window, tolerance and number of windows.
        stages: by member, over the whole run.
        error: what went wrong, in the words of perf_analyzer.
    """

    model: str
    batch: int
    load: Load
    requests: int = 0
    failed: int = 0
    duration_s: float = 0.0
    throughput: float = 0.0
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    p99_range_ms: tuple[float, float] | None = None
    stable: bool = True
    delayed_percent: float = 0.0
    windows: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, StageTimes] = field(default_factory=dict)
    error: str | None = None

    @property
    def delayed(self) -> bool:
        return self.delayed_percent > 0

    def to_dict(self) -> dict[str, Any]:
        """Flat and JSON-ready: `mode` and `value` for the load, `p50_ms` and so on."""
        value = asdict(self)
        del value["load"], value["latency_ms"]
        stages = {
            name: {**asdict(stage), "mean_batch": stage.mean_batch}
            for name, stage in self.stages.items()
        }
        load = {"mode": self.load.mode, "value": self.load.value}
        return {
            **value,
            **load,
            **self.latency_ms,
            "delayed": self.delayed,
            "stages": stages,
        }


def latency_summary(latency_ms: npt.NDArray[np.float64]) -> dict[str, float]:
    """Percentiles (linear interpolation), mean and max of at least one request, in ms."""
    values = np.percentile(latency_ms, list(PERCENTILES.values()))
    summary = dict(zip(PERCENTILES, map(float, values), strict=True))
    return {**summary, "mean_ms": float(latency_ms.mean()), "max_ms": float(latency_ms.max())}
