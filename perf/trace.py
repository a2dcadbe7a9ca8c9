"""What passes between the load generator and who started it: requests in, times out; and what the
times of all requests say together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perf.measurement import Load, Measurement, latency_summary

LATE_NS = 1_000_000
OK = 200
LOST, UNANSWERED = -1, 0  # in place of a status: hung up; no answer by the end
PARTS = 3  # of a run that should agree
STABILITY_PERCENT = 15.0

Times = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trace:
    """The requests of one run in the order in which they left; times in ns of the monotonic clock.

    Args:
        due_ns, sent_ns, done_ns, status: [N] each. In a closed loop a request is due when sent.
        from_ns, until_ns: what counts: answers of that time, or requests due in it (open loop).
        waited: how often a request was due and no connection was left to be opened.
        cpu_us: what the generator itself spent on a request, mean.
    """

    due_ns: Times
    sent_ns: Times
    done_ns: Times
    status: Times
    from_ns: int
    until_ns: int
    waited: int
    cpu_us: float

    def write(self, path: Path) -> None:
        np.savez(path, **asdict(self))

    @classmethod
    def read(cls, path: Path) -> Trace:
        with np.load(path) as file:
            values = {field.name: file[field.name] for field in fields(cls)}
        return cls(**{k: v if v.ndim else v.item() for k, v in values.items()})

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return float(max(self.done_ns.max(initial=0), self.until_ns) - self.sent_ns.min()) / 1e9

    def late(self) -> int:
        """Requests of an open loop that left more than 1 ms after they were due."""
        return int((self.sent_ns - self.due_ns > LATE_NS).sum())

    def latency_ms(self, load: Load) -> npt.NDArray[np.float64]:
        """Of the requests that count and were answered well, in the order of their sending."""
        return (self.done_ns - self.due_ns)[self._counted(load)] / 1e6

    def _counted(self, load: Load) -> npt.NDArray[np.bool_]:
        at = self._moments(load)
        counted: npt.NDArray[np.bool_] = (at >= self.from_ns) & (at < self.until_ns)
        return counted & (self.status == OK)

    def _moments(self, load: Load) -> Times:
        """Closed loop: what ended in the time counts. Open: what was due in it, or the slowest,
        which end after it, would be left out."""
        return self.done_ns if load.mode == "concurrency" else self.due_ns


def summarise(trace: Trace, load: Load, model: str) -> Measurement:
    """One run in figures. Its throughput is that of the answers that came in the counted time."""
    seconds = (trace.until_ns - trace.from_ns) / 1e9
    failed = int((trace.status != OK).sum())
    late = trace.late()
    counted = trace._counted(load)
    if not counted.any():
        error = f"no request was answered in {seconds:g} s ({failed} of them failed)"
        return Measurement(model, 1, load, failed=failed, stable=False, error=error)
    latency_ms = (trace.done_ns - trace.due_ns)[counted] / 1e6
    bounds = np.linspace(trace.from_ns, trace.until_ns, PARTS + 1)[1:-1]
    part = np.searchsorted(bounds, trace._moments(load)[counted])
    parts = [latency_ms[part == number] for number in range(PARTS)]
    done = trace.done_ns[trace.status == OK]
    answered = int(((done >= trace.from_ns) & (done < trace.until_ns)).sum())
    p99 = [float(np.percentile(p, 99)) for p in parts if len(p)]
    return Measurement(
        model=model,
        batch=1,
        load=load,
        requests=len(latency_ms),
        failed=failed,
        duration_s=seconds,
        throughput=answered / seconds,
        latency_ms=latency_summary(latency_ms),
        p99_range_ms=(min(p99), max(p99)),
        stable=all(map(len, parts)) and _agree(parts, load),
        delayed_percent=100 * late / len(trace.sent_ns),
        windows={"mode": "time_windows", "seconds": seconds / PARTS, "counted": PARTS},
    )


def _agree(parts: Sequence[npt.NDArray[np.float64]], load: Load) -> bool:
    """Closed loop: the parts' counts. Open: the counts are drawn, so their mean latencies."""
    values = [len(p) if load.mode == "concurrency" else float(p.mean()) for p in parts]
    return max(values) <= min(values) * (1 + STABILITY_PERCENT / 100)


def write_requests(path: Path, requests: Sequence[bytes]) -> None:
    """Write complete HTTP requests, one per user, as one array of bytes and their ends."""
    ends = np.cumsum([len(request) for request in requests])
    np.savez(path, ends=ends, data=np.frombuffer(b"".join(requests), np.uint8))


def read_requests(path: Path) -> list[bytes]:
    """Read them back."""
    with np.load(path) as file:
        data, ends = file["data"].tobytes(), file["ends"].tolist()
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]
