"""Measures how many users a process should compute at once. They share the fixed cost of a call and
the weights that it reads, but the candidates of many users together leave the processor's cache, so
the best size depends on the machine."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from cascade.artifact import Array
from cascade.config import Serving, of_release
from cascade.release import read_release
from cascade.server.threads import threads_per_process
from cascade.spec import PROCESSES, STAGES, sizes_from, stage_path
from cascade.stages.load import Chain, LoadedStage, load_stage

SIZES = (1, 2, 4, 8, 16, 32)
ROUNDS = 9
USERS = 256
NO_SLOWER = 1.03  # a smaller run that costs hardly more per user shortens the wait of the others


def measure(
    repository: Path, version: int, users: tuple[Array, Array], serving: Serving
) -> dict[str, dict[int, float]]:
    """Time the processes of every topology, which are made of the same stages, on raw users -> by
    process, microseconds per user by the number of users computed at once."""
    release = read_release(repository, version)
    candidates = sizes_from(release["sizes"]).candidates
    threaded = replace(serving, threads=serving.threads or threads_per_process(repository))
    known = {"dense": users[0][:USERS], "categorical": users[1][:USERS]}
    stages: dict[str, LoadedStage] = {}
    _, product = of_release(release)
    for name in STAGES:
        folder = repository / stage_path(release["topology"], name, version)
        stages[name] = load_stage(name, folder, threaded, candidates, product=product)
        parts = _parts([known[name] for name in stages[name].inputs], SIZES[-1])
        outputs = zip(*(stages[name](*part) for part in parts), strict=True)
        known.update(zip(stages[name].outputs, map(np.concatenate, outputs), strict=True))
    found = {}
    for model, made_of in PROCESSES.items():
        process = Chain([stages[name] for name in made_of.stages])
        found[model] = _time(process, [known[name] for name in process.inputs])
    return found


def best(us_by_size: dict[int, float]) -> int:
    """The smallest number of users at once that is nearly as fast as the fastest."""
    fastest = min(us_by_size.values())
    return min(size for size, us in us_by_size.items() if us <= NO_SLOWER * fastest)


def _time(stage: LoadedStage, inputs: list[Array]) -> dict[int, float]:
    """Medians; the sizes take turns, and each turn runs other users."""
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    users = len(inputs[0])
    for turn in range(ROUNDS):
        for size in SIZES:
            some = np.arange(turn * SIZES[-1], (turn + 1) * SIZES[-1]) % users
            parts = _parts([x[some] for x in inputs], size)
            start = time.perf_counter_ns()
            for part in parts:
                stage(*part)
            times[size].append((time.perf_counter_ns() - start) / 1e3 / len(some))
    return {size: float(np.median(t)) for size, t in times.items()}


def _parts(inputs: list[Array], size: int) -> list[tuple[Array, ...]]:
    return [tuple(x[i : i + size] for x in inputs) for i in range(0, len(inputs[0]), size)]
