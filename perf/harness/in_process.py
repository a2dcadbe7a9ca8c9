"""The stages of a repository without a server: called directly, one process per core.

No server that runs these stages on this machine, a user at a time, can answer more. The difference
is the price of network, queues, copies between processes and of the clients that share the machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np

from cascade.config import Serving
from cascade.pbtxt import process_settings
from cascade.stages.pipeline import Pipeline
from perf.harness.measurement import OK, Load, Measurement, Times, Trace, summarise
from perf.harness.payload import Payload

Recommend = Callable[[Any, Any], Any]

MODEL = "in-process"
WARM_UP_REQUESTS, LOAD_TIMEOUT_S = 50, 300


@dataclass(frozen=True)
class Job:
    """What every process does: load the stages, then ask them again and again.

    Args:
        open: repository -> the function to be timed.
        batch: users per call.
        seconds: how long to measure.
    """

    open: Callable[[Path], Recommend]
    repository: Path
    users: Payload
    batch: int
    seconds: float


def serving_of(repository: Path) -> Serving:
    """How the processes of a repository run their stages, but on one thread."""
    return replace(next(iter(process_settings(repository).values())).serving, threads=1)


def open_pipeline(repository: Path) -> Pipeline:
    """The stages of a repository, chained in this process, run as the server would run them."""
    return Pipeline.load(repository, serving=serving_of(repository))


def measure(job: Job, processes: int) -> Measurement:
    """Run the job in so many processes at once, one thread each.

    Raises:
        Exception: whatever loading or calling the stages raises.
    """
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    os.environ["CASCADE_THREADS"] = "1"
    context = get_context("spawn")  # a fork would inherit the threads of libraries half-started
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _share, (barrier,)) as pool:
        times = _results([pool.submit(_work, job, number) for number in range(processes)])
    trace = merged(times, job.seconds)
    return summarise(trace, Load("concurrency", processes), MODEL, job.batch)


def merged(times: list[Times], seconds: float) -> Trace:
    """One trace of all processes, [2, calls] each: when their calls began and ended. Calls count
    that ended while all processes were at work."""
    began, ended = np.concatenate(times, axis=1)
    from_ns = max(int(one[0, 0]) for one in times)
    until_ns = from_ns + int(seconds * 1e9)
    return Trace(began, began, ended, np.full(len(began), OK), from_ns, until_ns)


_barrier: Any = None  # of this process: only a process's start can hand over a barrier


def _share(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _work(job: Job, number: int) -> Times:
    try:
        recommend, at = job.open(job.repository), number * len(job.users) // 8

        def call() -> None:
            nonlocal at
            recommend(*job.users.rows(at, job.batch))
            at += job.batch

        for _ in range(WARM_UP_REQUESTS):
            call()
    except BaseException:
        _barrier.abort()  # the others would wait for ever
        raise
    _barrier.wait(LOAD_TIMEOUT_S)
    moments = [time.monotonic_ns()]
    # A little longer than asked: the processes do not start in the same microsecond.
    while moments[-1] < moments[0] + (job.seconds + 0.2) * 1e9:
        call()
        moments.append(time.monotonic_ns())
    return np.array([moments[:-1], moments[1:]], np.int64)


def _results(futures: list[Future[Times]]) -> list[Times]:
    """All results, or the first error that is not merely the echo of another process's."""
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((e for e in errors if not isinstance(e, BrokenBarrierError)), errors[0])
    return [future.result() for future in futures]
