"""The stages of a repository without a server: called directly, one process per core.

No server that runs these stages here, a user at a time, can answer more. The difference is the
price of network, queues, copies between processes and of the clients that share the machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np

from cascade.pbtxt import process_settings
from cascade.spec import STAGES
from cascade.stages.pipeline import Pipeline
from perf.harness.measurement import OK, Load, Measurement, Times, Trace, summarise
from perf.harness.payload import Payload

Recommend = Callable[[Any, Any], Any]

LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CASCADE_THREADS")
ONE_THREAD = dict.fromkeys(LIMITS, "1")  # environment of a process of stages
COSTS = ("total_us", *(f"{stage}_us" for stage in STAGES))
WARM_UP_REQUESTS, LOAD_TIMEOUT_S = 50, 300
USERS_A_ROUND = 48


@dataclass(frozen=True)
class Job:
    """For so many seconds: `open` a repository, and call what that gives for `batch` users."""

    open: Callable[[Path], Recommend]
    repository: Path
    users: Payload
    batch: int
    seconds: float


def open_pipeline(repository: Path) -> Pipeline:
    """The stages, chained in this process, run as the server would but on one thread."""
    serving = next(iter(process_settings(repository).values())).serving
    return Pipeline.load(repository, serving=replace(serving, threads=1))


def measure(job: Job, processes: int) -> Measurement:
    """Run the job in so many processes at once, one thread each. Raises what the stages raise."""
    os.environ |= ONE_THREAD
    context = get_context("spawn")  # a fork would inherit the threads of libraries half-started
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _share, (barrier,)) as pool:
        futures = [pool.submit(_work, job, number) for number in range(processes)]
    errors = [error for future in futures if (error := future.exception())]
    if errors:  # that of a broken barrier is merely the echo of another process's
        raise next((e for e in errors if not isinstance(e, BrokenBarrierError)), errors[0])
    trace = merged([future.result() for future in futures], job.seconds)
    return summarise(trace, Load("concurrency", processes), "in-process", job.batch)


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
    starts = count(number * len(job.users) // 8, job.batch)
    try:
        recommend = job.open(job.repository)
        for start in islice(starts, WARM_UP_REQUESTS):
            recommend(*job.users.rows(start, job.batch))
    except BaseException:
        _barrier.abort()  # the others would wait for ever
        raise
    _barrier.wait(LOAD_TIMEOUT_S)
    moments = [time.monotonic_ns()]
    # A little longer than asked: the processes do not start in the same microsecond.
    while moments[-1] < moments[0] + (job.seconds + 0.2) * 1e9:
        recommend(*job.users.rows(next(starts), job.batch))
        moments.append(time.monotonic_ns())
    return np.array([moments[:-1], moments[1:]], np.int64)


@dataclass(frozen=True)
class Setting:
    """One size of a sweep: what is asked, and for how many users at once."""

    pipeline: Pipeline
    users: Payload
    batch: int = 1

    def request_ns(self, start: int, clock: Callable[[], int]) -> Any:
        """Nanoseconds [3] that each stage takes for the users from `start` on."""
        moments = [clock()]
        dense, ids, candidates = self.pipeline.retrieve(*self.users.rows(start, self.batch))
        moments.append(clock())
        survivors = self.pipeline.prerank(dense, ids, candidates)
        moments.append(clock())
        self.pipeline.rank(dense, ids, survivors)
        return np.diff([*moments, clock()])


def costs(
    settings: Mapping[Any, Setting], rounds: int, device: str = "cpu"
) -> dict[Any, dict[str, float]]:
    """Median microseconds of a request: those of each stage and `total_us`."""
    clock = time.thread_time_ns if device == "cpu" else time.perf_counter_ns
    taken: dict[Any, list[Any]] = {key: [] for key in settings}
    at = {k: i * len(s.users) // len(settings) for i, (k, s) in enumerate(settings.items())}
    for _ in range(rounds):
        for key, setting in settings.items():
            for turn in range(1 + max(2, USERS_A_ROUND // setting.batch)):
                ns = setting.request_ns(at[key], clock)
                at[key] += setting.batch
                if turn:  # the first of a turn finds the instructions of others in the cache
                    taken[key].append([ns.sum(), *ns])
    found = {key: np.median(ns, axis=0) / 1e3 for key, ns in taken.items()}
    return {key: dict(zip(COSTS, us.tolist(), strict=True)) for key, us in found.items()}
