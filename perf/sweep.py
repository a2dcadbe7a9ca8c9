"""A sweep: one server, one payload, rising load; each run becomes a line as soon as it is there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tritonclient.grpc as grpc

from cascade.server.binaries import perf_analyzer
from perf import payload, record
from perf.analyzer import AnalyzerError, Program, Target, measure, warm_up
from perf.measurement import FULL, QUICK, Effort, Load, Measurement
from perf.payload import Features
from perf.stages import configuration_name, members

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a sweep measures.

    Args:
        concurrencies: requests in flight, one run each.
        rate_shares: shares of the highest throughput that these runs found; one run each, at
            Poisson times. Nearer to 1 the queue grows without end and so does every figure.
        rates: further rates in requests per second.
        effort: how long each run looks.
    """

    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rate_shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    rates: tuple[float, ...] = ()
    effort: Effort = FULL

    def __len__(self) -> int:
        return len(self.concurrencies) + len(self.rate_shares) + len(self.rates)


QUICK_PLAN = Plan(concurrencies=(1, 4, 16), rate_shares=(), effort=QUICK)


def sweep(
    url: str,
    *,
    plan: Plan = Plan(),
    users: Path | None = None,
    results: Path | None = None,
    repository: Path | None = None,
    configuration: str | None = None,
    model: str = "recommend",
    batch: int = 1,
    say: Say = print,
) -> list[Measurement]:
    """Measure a running server by a plan and append a line per run.

    Args:
        url: HOST:PORT of its gRPC service.
        users: users.jsonl; without it users are generated.
        results: file of the lines; by default perf/results/CONFIGURATION.jsonl.
        repository: where the server's models are, for the hash of their configuration.
        configuration: name under which the report compares; by default read off the server.
        model: what to ask.
        batch: users per request.
        say: gets each line of progress.

    Raises:
        PayloadError: the users do not fit the model.
        AnalyzerError: perf_analyzer or the server is of no use.
        BinaryError: there is no perf_analyzer.
    """
    program = Program(*perf_analyzer())
    with grpc.InferenceServerClient(url) as client, tempfile.TemporaryDirectory() as folder:
        ensemble = client.get_model_config(model).config
        rows = _users(users, Features.of(ensemble), say)
        steps = [client.get_model_config(step).config for step in members(ensemble)]
        kind = "ensemble" if model == "recommend" else model
        configuration = configuration or configuration_name(kind, steps)
        server = client.get_server_metadata().version
        environment = record.environment(
            configuration=configuration,
            repository=repository,
            payload=rows.describe(),
            versions={"server": server, "perf_analyzer": program.version()},
        )
        results = results or record.RESULTS / f"{configuration}.jsonl"
        say(f"{configuration}: {len(plan)} runs with {len(rows)} users, recorded in {results}")
        target = Target(url, Path(folder) / "users.json", model, batch)
        rows.write(target.input_data)
        warm_up(program, target)
        return _measure_all(
            program, target, plan, partial(record.append, results, environment), say
        )


def _users(path: Path | None, features: Features, say: Say) -> payload.Payload:
    rows = payload.load(path, features) if path else payload.generated(features)
    if len(rows) < payload.FEW_ROWS:
        say(f"only {len(rows)} different users: the caches will flatter the server")
    return rows


def run_quick(
    url: str,
    users: Path | None,
    results: Path,
    *,
    repository: Path | None = None,
    say: Say = print,
) -> list[Measurement]:
    """A few short runs, for a first impression: concurrency 1, 4 and 16 within 40 seconds."""
    return sweep(url, plan=QUICK_PLAN, users=users, results=results, repository=repository, say=say)


def _measure_all(
    program: Program,
    target: Target,
    plan: Plan,
    keep: Callable[[Measurement], object],
    say: Say,
) -> list[Measurement]:
    done: list[Measurement] = []
    started = time.monotonic()

    def run(load: Load) -> None:
        say(f"[{len(done) + 1}/{len(plan)}] {load} …")
        measurement = measure(program, target, load, plan.effort)
        done.append(measurement)
        keep(measurement)
        left_s = (time.monotonic() - started) / len(done) * (len(plan) - len(done))
        say(f"    {summary(measurement)}" + (f"; about {left_s:.0f} s left" if left_s else ""))

    for concurrency in plan.concurrencies:
        run(Load("concurrency", concurrency))
    if plan.rate_shares:
        highest = highest_throughput(done) / target.batch
        for share in plan.rate_shares:
            run(Load("rate", round(share * highest, 1)))
    for rate in plan.rates:
        run(Load("rate", rate))
    return done


def highest_throughput(measurements: Sequence[Measurement]) -> float:
    """Users per second at the best concurrency, of stable runs where there are any.

    Raises:
        AnalyzerError: no run succeeded, so there is nothing to take a share of.
    """
    runs = [m for m in measurements if m.error is None and m.load.mode == "concurrency"]
    if not runs:
        errors = "; ".join(m.error for m in measurements if m.error) or "none was made"
        raise AnalyzerError(
            f"rates are shares of the highest throughput, but no run gave one: {errors}"
        )
    return max(m.throughput for m in [m for m in runs if m.stable] or runs)


def summary(measurement: Measurement) -> str:
    """One run in a line."""
    if measurement.error is not None:
        return f"FAILED ({measurement.failed} requests): {measurement.error}"
    latency = measurement.latency_ms
    marks = [] if measurement.stable else ["UNSTABLE"]
    if measurement.delayed:
        marks.append(f"DELAYED ({measurement.delayed_percent:g} % of the requests)")
    return (
        f"{measurement.throughput:.0f} users/s, p50 {latency['p50_ms']:.2f}, "
        f"p99 {latency['p99_ms']:.2f} ms{' ' if marks else ''}{', '.join(marks)}"
    )
