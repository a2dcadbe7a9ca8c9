"""One run of perf_analyzer -> one `Measurement`.

The figures come from its profile export, which holds the times of every request in nanoseconds. It
covers all windows; perf_analyzer's own summary, and so this module, counts those requests that
ended in the last three. The server's part comes from the server (`perf.stages`).

What version 2.51 does, as tried:

- It gives up with exit code 2 when the windows do not agree, and then writes neither CSV nor
  profile export. So an unstable load is measured a second time with the tolerance wide open, and
  marked.
- A single failed request ends it with exit code 99. The record then has the message, no latency.
- It refuses to overwrite a profile export.
- Told how many requests to send, it has been seen to wait for ever after the last answer.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as grpc

from cascade.errors import CascadeError
from perf.measurement import Effort, Load, Measurement, latency_summary
from perf.stages import counters, members

UNSTABLE = 2
COUNTED_WINDOWS = 3
ANY_SPREAD_PERCENT = 1_000_000.0
# Threads that send at the Poisson times. With few, one is still busy sending when the next request
# is due: in a trial on two busy cores one thread sent a fifth of 1200 requests/s late, 16 none.
RATE_THREADS = 16
TIMEOUT_S = 900
WARM_UP_S, WARM_UPS = 60, 2  # seconds each, and tries


class AnalyzerError(CascadeError):
    """perf_analyzer did something that says nothing about the server's performance."""


@dataclass(frozen=True)
class Program:
    """Where perf_analyzer is: `cascade.server.binaries.perf_analyzer()`."""

    path: Path
    environment: dict[str, str]

    def run(
        self, arguments: list[str], timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            [str(self.path), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )

    def version(self) -> str:
        ran = self.run(["--version"])
        found = re.search(r"\d+\.\d+\.\d+", ran.stdout + ran.stderr)
        return found[0] if found else "unknown"


@dataclass(frozen=True)
class Target:
    """What is measured: a model of a server, and the file of its requests."""

    url: str
    input_data: Path
    model: str = "recommend"
    batch: int = 1

    def arguments(self) -> list[str]:
        return [
            *("-m", self.model, "-i", "grpc", "-u", self.url, "-b", str(self.batch)),
            *("--input-data", str(self.input_data)),
        ]


@dataclass(frozen=True)
class Profile:
    """What a profile export says about the counted windows."""

    latency_ms: npt.NDArray[np.float64]
    window_latency_ms: tuple[npt.NDArray[np.float64], ...]
    duration_s: float

    @property
    def p99_range_ms(self) -> tuple[float, float]:
        p99 = [float(np.percentile(w, 99)) for w in self.window_latency_ms if len(w)]
        return min(p99), max(p99)


def measure(program: Program, target: Target, load: Load, effort: Effort) -> Measurement:
    """Put a load on the server and say what was seen.

    Raises:
        AnalyzerError: perf_analyzer could not be used at all (wrong flag, unreadable payload).
    """
    with (
        grpc.InferenceServerClient(target.url) as client,
        tempfile.TemporaryDirectory(prefix="perf-") as folder,
    ):
        steps = members(client.get_model_config(target.model).config)
        models = {target.model, *steps}
        export = Path(folder) / "profile.json"
        before = counters(client, models)
        ran = _run(program, target, load, effort, effort.stability_percent, export)
        stable = ran.returncode != UNSTABLE
        if not stable:
            before = counters(client, models)
            ran = _run(program, target, load, effort, ANY_SPREAD_PERCENT, export)
        after = counters(client, models)
        failed = after[target.model].failed - before[target.model].failed
        profile, error = _result(ran, export, failed)
    measurement = Measurement(
        model=target.model,
        batch=target.batch,
        load=load,
        failed=failed,
        stable=stable and error is None,
        delayed_percent=delayed_percent(ran.stdout + ran.stderr),
        windows=_windows(effort),
        stages={step: after[step].since(before[step]) for step in steps},
        error=error,
    )
    return measurement if profile is None else _with_times(measurement, profile)


def _with_times(measurement: Measurement, profile: Profile) -> Measurement:
    requests = len(profile.latency_ms)
    return replace(
        measurement,
        requests=requests,
        duration_s=profile.duration_s,
        throughput=requests * measurement.batch / profile.duration_s,
        latency_ms=latency_summary(profile.latency_ms),
        p99_range_ms=profile.p99_range_ms,
    )


def _windows(effort: Effort) -> dict[str, Any]:
    return {
        "effort": effort.name,
        "mode": "count_windows",
        "requests": effort.window_requests,
        "stability_percent": effort.stability_percent,
        "counted": COUNTED_WINDOWS,
    }


def warm_up(program: Program, target: Target, requests: int = 200) -> None:
    """Send some requests whose times nobody keeps: the first touch of pages and caches.

    Raises:
        AnalyzerError: the server does not answer them; there is no point in measuring.
    """
    flags = ["--concurrency-range", "8", "--request-count", str(requests)]
    for _ in range(WARM_UPS):
        try:
            ran = program.run([*target.arguments(), *flags], WARM_UP_S)
        except subprocess.TimeoutExpired:
            continue
        if ran.returncode:
            raise AnalyzerError(
                f"the server at {target.url} did not get through {requests} requests to "
                f"{target.model}: {_complaint(ran)}"
            )
        return
    raise AnalyzerError(
        f"{requests} requests to {target.model} at {target.url} took perf_analyzer more than "
        f"{WARM_UP_S} s, {WARM_UPS} times"
    )


def _run(
    program: Program,
    target: Target,
    load: Load,
    effort: Effort,
    spread_percent: float,
    export: Path,
) -> subprocess.CompletedProcess[str]:
    windows = [
        *("--measurement-mode", "count_windows"),
        *("--measurement-request-count", str(effort.window_requests)),
        *("-s", str(spread_percent), "-r", str(effort.trials)),
        *("--profile-export-file", str(export)),
    ]
    if load.mode == "concurrency":
        how = ["--sync", "--concurrency-range", str(int(load.value))]
    else:
        # Synchronous calls would wait for the answer and so hide that a request was sent late.
        how = [
            *("--async", "--request-rate-range", str(load.value)),
            *("--request-distribution", "poisson", "--max-threads", str(RATE_THREADS)),
        ]
    return program.run([*target.arguments(), *windows, *how])


def _result(
    ran: subprocess.CompletedProcess[str], export: Path, failed: int
) -> tuple[Profile | None, str | None]:
    """The profile, or in its place why the server's requests came to nothing."""
    if ran.returncode == 0:
        return read_profile(export), None
    if failed or "Thread [" in ran.stderr + ran.stdout:  # a request's own error, in its words
        return None, _complaint(ran)
    if ran.returncode == UNSTABLE:
        return None, "no measurement even with any spread allowed: " + _complaint(ran)
    raise AnalyzerError(f"perf_analyzer ended with {ran.returncode}: {_complaint(ran)}")


def _complaint(ran: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
    return " ".join(lines[:3])[:500] or f"exit code {ran.returncode}"


def delayed_percent(output: str) -> float:
    """Share of requests that perf_analyzer itself says it sent late."""
    found = re.search(r"([\d.]+)% of the requests were delayed", output)
    return float(found[1]) if found else 0.0


def read_profile(path: Path) -> Profile:
    """Read a profile export.

    Raises:
        AnalyzerError: it is empty or holds no request.
    """
    # The inputs are repeated in it as raw bytes, length prefixes and all, which are not UTF-8.
    text = path.read_text(errors="replace") if path.exists() else ""
    if not text.strip():
        raise AnalyzerError(
            f"{path.name} is {'empty' if path.exists() else 'missing'}. perf_analyzer cannot write "
            "a request or an answer that holds NaN or infinity: are there fewer items than results?"
        )
    experiment: dict[str, Any] = json.loads(text)["experiments"][0]
    answered = [r for r in experiment["requests"] if r["response_timestamps"]]
    sent = np.array([r["timestamp"] for r in answered], np.int64)
    ended = np.array([r["response_timestamps"][0] for r in answered], np.int64)
    bounds = np.array(experiment["window_boundaries"][-COUNTED_WINDOWS - 1 :], np.int64)
    latency_ms = (ended - sent) / 1e6
    windows = tuple(
        latency_ms[(ended >= start) & (ended < stop)] for start, stop in pairwise(bounds)
    )
    if not sum(map(len, windows)):
        raise AnalyzerError(f"{path.name} holds no request that was answered in a window")
    return Profile(np.concatenate(windows), windows, float(bounds[-1] - bounds[0]) / 1e9)
