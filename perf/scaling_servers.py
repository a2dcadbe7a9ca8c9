"""The sweeps of `perf.scaling` that need servers: against instances, and against large tables."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cascade.server.launcher import Server
from export.releases.rewire import rewire, serving_of
from perf.harness import analyzer, processes
from perf.harness.analyzer import Effort, Target
from perf.harness.artifacts import Artifacts
from perf.harness.measurement import Load, Measurement
from perf.harness.payload import Payload

TOUCHING_USERS = 2000
EFFORT = Effort(window_requests=500, stability_percent=50, trials=4)


def wired(made: Artifacts, instances: int, work: Path) -> Path:
    """The release in the fused topology with so many processes; its files are linked."""
    repository = work / f"{made.repository.parent.name}-{instances}"
    serving = replace(serving_of(made.repository), instances=instances, topology="fused")
    rewire(made.repository, repository, serving)
    return repository


def serve(stack: ExitStack, repository: Path, users: Payload) -> tuple[Target, Server]:
    """A server that many users have touched, and how to ask it."""
    server = stack.enter_context(Server(repository))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    target = Target(server.url, folder / "users.json")
    users.write(target.input_data)
    analyzer.warm_up(target, TOUCHING_USERS)
    return target, server


def measure(made: Artifacts, instances: int, work: Path, effort: Effort = EFFORT) -> dict[str, Any]:
    """Users a second with 16 requests in flight, and the memory of the server's Python processes.
    One server after the other: side by side they would share pages and cores."""
    began = time.monotonic()
    with ExitStack() as stack:
        target, server = serve(stack, wired(made, instances, work), made.users())
        start_s = time.monotonic() - began
        measured = analyzer.measure(target, Load("concurrency", 16), effort)
        held = processes.memory(processes.stubs(server.name))
    figures = {key: measured.latency_ms.get(key) for key in ("p50_ms", "p99_ms")}
    seen = {"throughput": measured.throughput, **figures, "error": measured.error}
    return {"start_s": start_s, **seen, **asdict(held)}


def compare(
    paper: Artifacts, small: Artifacts, work: Path, rounds: int, effort: Effort = EFFORT
) -> float:
    """p99 with large tables over p99 with small ones, one request at a time, in turns; medians of
    the rounds."""
    with ExitStack() as stack:
        targets = [serve(stack, wired(made, 1, work), made.users())[0] for made in (paper, small)]
        alone = Load("concurrency", 1)
        runs = [[analyzer.measure(t, alone, effort) for t in targets] for _ in range(rounds)]
    large_ms, small_ms = np.median([[p99_ms(run) for run in pair] for pair in runs], axis=0)
    return float(large_ms / small_ms)


def p99_ms(measured: Measurement) -> float:
    """Raises AnalyzerError: the run failed."""
    if measured.error:
        raise analyzer.AnalyzerError(f"the server did not answer: {measured.error}")
    return measured.latency_ms["p99_ms"]
