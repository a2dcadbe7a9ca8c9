"""`python -m perf.bound`: the same stages called directly, one process per core, without a server.

No server that runs these stages on this machine can answer more. What it loses against this bound
is the price of network, queues, copies between processes and, when they share the machine, of the
clients. The lines have the form of `python -m perf`, so the report can divide one by the other.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from cascade.artifact import ArtifactError
from cascade.config import one_thread
from cascade.pbtxt import process_settings
from cascade.server.threads import cores
from cascade.stages.pipeline import Pipeline
from perf import payload, record
from perf.measurement import Load, Measurement, latency_summary
from perf.payload import Features, Payload, PayloadError
from perf.stages import configuration_name, members

Recommend = Callable[[npt.NDArray[Any], npt.NDArray[Any]], Any]
Open = Callable[[Path], Recommend]

MODEL = "in-process"
WINDOWS = 3
WARM_UP_REQUESTS = 50
LOAD_TIMEOUT_S = 300
STABILITY_PERCENT = 15.0


@dataclass(frozen=True)
class Job:
    """What every process does: load the stages, then ask them again and again.

    Args:
        open: repository -> the function to be timed.
        repository: the model repository.
        users: payload; each process starts at another row.
        batch: users per call.
        seconds: how long to measure.
    """

    open: Open
    repository: Path
    users: Payload
    batch: int
    seconds: float


@dataclass(frozen=True)
class Times:
    """One process: when its measurement began and when each call began and ended, all in ns of
    the monotonic clock, which all processes of a machine share."""

    start_ns: int
    began_ns: npt.NDArray[np.int64]
    ended_ns: npt.NDArray[np.int64]


def open_pipeline(repository: Path) -> Pipeline:
    """The stages of a repository, chained in this process, run as the server would run them."""
    settings = next(iter(process_settings(repository).values()))
    return Pipeline.load(repository, serving=one_thread(settings.serving))


def measure(job: Job, processes: int) -> Measurement:
    """Run the job in so many processes at once, one thread each.

    Raises:
        whatever loading or calling the stages raises.
    """
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    os.environ["CASCADE_THREADS"] = "1"
    context = get_context("spawn")  # a fork would inherit the threads of libraries half-started
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _share, (barrier,)) as pool:
        futures = [pool.submit(_work, job, number) for number in range(processes)]
        times = _results(futures)
    return summarise(times, job.batch, job.seconds)


def summarise(times: list[Times], batch: int, seconds: float) -> Measurement:
    """Put the processes together: calls that ended while all of them were at work."""
    start = max(t.start_ns for t in times)
    bounds = np.linspace(start, start + seconds * 1e9, WINDOWS + 1).astype(np.int64)
    began = np.concatenate([t.began_ns for t in times])
    ended = np.concatenate([t.ended_ns for t in times])
    latency_ms = (ended - began) / 1e6
    window = np.searchsorted(bounds, ended, side="right") - 1
    windows = [latency_ms[window == number] for number in range(WINDOWS)]
    if not all(map(len, windows)):
        raise ValueError(
            f"a window of {seconds / WINDOWS:.2g} s passed without an answer; measure for longer "
            f"than {seconds:g} s"
        )
    counted = np.concatenate(windows)
    p99 = [float(np.percentile(w, 99)) for w in windows]
    return Measurement(
        model=MODEL,
        batch=batch,
        load=Load("concurrency", len(times)),
        requests=len(counted),
        duration_s=seconds,
        throughput=len(counted) * batch / seconds,
        latency_ms=latency_summary(counted),
        p99_range_ms=(min(p99), max(p99)),
        stable=_agree([len(w) for w in windows]) and _agree([float(w.mean()) for w in windows]),
        windows={
            "effort": "full",
            "mode": "time_windows",
            "seconds": seconds / WINDOWS,
            "stability_percent": STABILITY_PERCENT,
            "counted": WINDOWS,
        },
    )


def _agree(values: list[int] | list[float]) -> bool:
    return max(values) <= min(values) * (1 + STABILITY_PERCENT / 100)


_barrier: Any = None  # of this process: only a process's start can hand over a barrier


def _share(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _work(job: Job, number: int) -> Times:
    try:
        recommend = job.open(job.repository)
        rows = len(job.users)
        at = np.arange(job.batch) + number * rows // 8

        def call() -> None:
            nonlocal at
            recommend(job.users.dense[at % rows], job.users.categorical[at % rows])
            at += job.batch

        for _ in range(WARM_UP_REQUESTS):
            call()
    except BaseException:
        _barrier.abort()  # the others would wait for ever
        raise
    _barrier.wait(LOAD_TIMEOUT_S)
    began, ended = [], []
    start = now = time.monotonic_ns()
    # A little longer than asked: the processes do not start in the same microsecond.
    while now < start + (job.seconds + 0.2) * 1e9:
        began.append(now)
        call()
        now = time.monotonic_ns()
        ended.append(now)
    return Times(start, np.array(began, np.int64), np.array(ended, np.int64))


def _results(futures: list[Future[Times]]) -> list[Times]:
    """All results, or the first error that is not merely the echo of another process's."""
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((e for e in errors if not isinstance(e, BrokenBarrierError)), errors[0])
    return [future.result() for future in futures]


def configs(repository: Path, model: str = "recommend") -> tuple[Any, list[Any]]:
    """The ModelConfig of an ensemble and those of its members, from their files.

    Raises:
        PayloadError: there is no such model in the repository.
    """
    ensemble = _config(repository, model)
    return ensemble, [_config(repository, member) for member in members(ensemble)]


def _config(repository: Path, model: str) -> Any:
    path = repository / model / "config.pbtxt"
    if not path.exists():
        raise PayloadError(f"{path} is missing: {repository} is not an exported repository")
    config = model_config_pb2.ModelConfig()
    text_format.Parse(path.read_text(), config, allow_unknown_field=True)
    config.name = config.name or model
    return config


def main(arguments: list[str] | None = None) -> int:
    """Measure the bound with one process and with one per core."""
    options = _parser().parse_args(arguments)
    try:
        _measure_all(options)
    except (ArtifactError, PayloadError) as error:
        print(f"perf.bound: {error}", file=sys.stderr)
        return 2
    return 0


def _measure_all(options: argparse.Namespace) -> None:
    ensemble, stages = configs(options.repository)
    features = Features.of(ensemble)
    users = payload.load(options.users, features) if options.users else payload.generated(features)
    name = configuration_name(MODEL, stages)
    results = options.results or record.RESULTS / f"{name}.jsonl"
    environment = record.environment(
        configuration=name, repository=options.repository, payload=users.describe(), versions={}
    )
    keep = partial(record.append, results, environment)
    job = Job(open_pipeline, options.repository, users, options.batch, options.seconds)
    for processes in sorted({1, cores()}):
        measurement = measure(job, processes)
        keep(measurement)
        p50, p99 = measurement.latency_ms["p50_ms"], measurement.latency_ms["p99_ms"]
        print(
            f"{processes} process(es): {measurement.throughput:.0f} users/s, p50 {p50:.2f}, "
            f"p99 {p99:.2f} ms{'' if measurement.stable else ' UNSTABLE'}",
            flush=True,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.bound", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="exported model repository")
    parser.add_argument("--users", type=Path, help="users.jsonl (default: generated users)")
    parser.add_argument(
        "--results", type=Path, help="file to append to (default: by configuration)"
    )
    parser.add_argument("--batch", type=int, default=1, help="users per call (default: 1)")
    parser.add_argument("--seconds", type=float, default=15.0, help="per run (default: 15)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
