"""One run of one contender: over HTTP by `perf.load`, over gRPC by perf_analyzer, or in process.

All three give a `Measurement`, and beside it what the run cost: how many cores each kind of process
was busy on, the load generator among them, because here they share the machine.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from cascade.server.binaries import perf_analyzer
from perf import analyzer, bound
from perf.contenders.servers import Endpoint
from perf.load import LoadError
from perf.measurement import Effort, Load, Measurement
from perf.payload import Payload
from perf.record import ROOT
from perf.trace import Trace, summarise

Protocol = Literal["http", "grpc", "in-process"]
FEWEST_REQUESTS = 50  # in a window of perf_analyzer
FIRST_GUESS = 200.0  # requests per second, before anything is known
CURVE = np.array([5, *range(10, 100, 5), 96, 97, 98, 99, 99.5, 99.9])  # percentiles for the plots


@dataclass(frozen=True)
class Contender:
    """Something that is measured.

    Args:
        name: `ensemble`, `paired`, `fused`, `flat`, `fastapi`, `pytriton`, `bound`, `bound_plain`.
        endpoint: where the server is; None for the bound, which has none.
        requests: file of prebuilt HTTP requests, or perf_analyzer's input data.
        repository: what it serves.
        batch: users per call (the bound alone).
    """

    name: str
    protocol: Protocol
    repository: Path
    endpoint: Endpoint | None = None
    requests: Path = Path()
    batch: int = 1

    @property
    def label(self) -> str:
        """For tables and plots."""
        if self.protocol == "in-process":
            return self.name if self.batch == 1 else f"{self.name}, batch {self.batch}"
        return f"{self.name} {self.protocol}"


@dataclass(frozen=True)
class Run:
    """What was seen.

    Args:
        cores_busy: by kind of process, mean over the time in which requests were under way.
        sent: requests that left, those of the warm-up too.
        late: those of an open loop that left more than 1 ms after they were due.
        generator_us: CPU time of the load generator per request.
        curve_ms: latencies at the percentiles of `CURVE`; empty where single times are not known.
    """

    measurement: Measurement
    cores_busy: Mapping[str, float] = field(default_factory=dict)
    sent: int = 0
    late: int = 0
    generator_us: float | None = None
    curve_ms: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What stands in the record beside the measurement."""
        busy = {name: round(value, 3) for name, value in self.cores_busy.items()}
        return {
            "sent": self.sent,
            "late": self.late,
            "generator_us": self.generator_us,
            "cores_busy": busy,
            "curve_ms": [round(value, 4) for value in self.curve_ms],
        }


class Runner:
    """Makes runs of some length with the same users in the same order for everybody.

    Args:
        users: what the bound is asked; servers get theirs from `Contender.requests`.
    """

    def __init__(self, users: Payload, seconds: float) -> None:
        self._users, self._seconds = users, seconds
        self._analyzer: analyzer.Program | None = None
        self._known: dict[str, float] = {}  # requests per second when last asked

    def warm_up(self, contender: Contender) -> None:
        """Requests whose times nobody keeps: the first touch of pages, caches and batch sizes."""
        if contender.protocol == "http":
            self.run(contender, Load("concurrency", 8), 0)

    def run(self, contender: Contender, load: Load, number: int) -> Run:
        """Put a load on one contender.

        Args:
            number: of the round: it decides the first user and the Poisson times.
        """
        if contender.endpoint is None:
            job = bound.Job(
                bound.open_pipeline,
                contender.repository,
                self._users,
                contender.batch,
                self._seconds,
            )
            return Run(bound.measure(job, int(load.value)))
        return self._served(contender, contender.endpoint, load, number)

    def _served(self, contender: Contender, endpoint: Endpoint, load: Load, number: int) -> Run:
        before = _cpu_seconds(endpoint.pid)
        if contender.protocol == "http":
            run, took = self._http(contender, endpoint, load, number)
        else:
            run, took = self._grpc(contender, endpoint, load)
        spent = _cpu_seconds(endpoint.pid) - before
        servers = {name: seconds / took for name, seconds in spent.items()}
        if run.measurement.requests:
            self._known[contender.name] = run.measurement.throughput
        return replace(run, cores_busy={**servers, **run.cores_busy})

    def _http(
        self, contender: Contender, endpoint: Endpoint, load: Load, number: int
    ) -> tuple[Run, float]:
        """-> what was seen, seconds from the first request to the last answer."""
        with tempfile.TemporaryDirectory(prefix="load-") as folder:
            out = Path(folder) / "trace.npz"
            ran = subprocess.run(
                [
                    *(sys.executable, "-m", "perf.load", "--address", endpoint.address),
                    *("--requests", str(contender.requests), "--out", str(out)),
                    *("--mode", load.mode, "--value", str(load.value)),
                    *("--seconds", str(self._seconds)),
                    *("--first", str(number * 997), "--seed", str(number)),
                ],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            if ran.returncode:
                raise LoadError(f"{contender.label}, {load}: {ran.stderr.strip()}")
            trace = Trace.read(out)
        measurement = summarise(trace, load, contender.name)
        latency_ms = trace.latency_ms(load)
        run = Run(
            measurement,
            {"load generator": trace.cpu_us / 1e6 * len(trace.sent_ns) / trace.seconds},
            len(trace.sent_ns),
            trace.late(),
            trace.cpu_us,
            tuple(np.percentile(latency_ms, CURVE).tolist()) if len(latency_ms) else (),
        )
        return run, trace.seconds

    def _grpc(self, contender: Contender, endpoint: Endpoint, load: Load) -> tuple[Run, float]:
        """As `_http`; perf_analyzer says of its windows alone how long they were."""
        assert endpoint.grpc is not None
        self._analyzer = self._analyzer or analyzer.Program(*perf_analyzer())
        rate = self._known.get(contender.name, FIRST_GUESS)
        # The spread is seen over rounds: three windows that make up the length are enough.
        window = max(FEWEST_REQUESTS, int(rate * self._seconds / analyzer.COUNTED_WINDOWS))
        effort = Effort("compare", window, analyzer.ANY_SPREAD_PERCENT, analyzer.COUNTED_WINDOWS)
        target = analyzer.Target(endpoint.grpc, contender.requests)
        before = _children_seconds()
        measurement = analyzer.measure(self._analyzer, target, load, effort)
        spent_s, took = _children_seconds() - before, measurement.duration_s or self._seconds
        per_request = spent_s * 1e6 / measurement.requests if measurement.requests else None
        busy = {"perf_analyzer": spent_s / took}
        return Run(measurement, busy, generator_us=per_request), took


def in_process(name: str, repository: Path, batch: int = 1) -> Contender:
    """The stages of a repository without a server."""
    return Contender(name, "in-process", repository, batch=batch)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu_seconds(pid: int) -> Counter[str]:
    """CPU time of a process and all that descend from it, by the program's name."""
    first = psutil.Process(pid)
    spent: Counter[str] = Counter()
    for member in (first, *first.children(recursive=True)):
        try:
            times = member.cpu_times()
            spent[member.name()] += times.user + times.system
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
    return spent
