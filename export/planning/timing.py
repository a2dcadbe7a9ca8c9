"""What a request costs at every setting of a plan.

The stages of a request run one after the other, so its time is the sum of theirs. Each stage is
timed once for each of the sizes that it depends on, and all of these take turns: in a round each
runs once, in a drawn order and on other users, so a slow second of the machine hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cascade.artifact import Array
from cascade.spec import PRERANK, RANK, RETRIEVE
from export.planning.grid import Setting
from export.planning.opened import Opened
from export.planning.quality import retrieval

K = TypeVar("K")
Users = tuple[Array, Array]  # raw: dense [U, F_dense], categorical [U, F_cat]
Prepare = Callable[[Array], Callable[[], Any]]  # the numbers of users -> what is timed

BATCH = 16
ROUNDS, BATCH_ROUNDS, WARM_UP = 60, 15, 3
HEAD_TO_HEAD_ROUNDS = 300


def requests_us(
    opened: Opened, settings: Sequence[Setting], users: Users, at_once: int, rounds: int
) -> list[float]:
    """Median microseconds of the three stages, for each setting: of one batch of users."""
    largest = max(settings, key=lambda s: s.candidates)
    dense, ids, candidates, _ = opened.set_effort(largest)(*users)
    survivors = opened.prerank(max(s.survivors for s in settings))(dense, ids, candidates)[0]

    def retrieve(setting: Setting) -> Prepare:
        def prepare(some: Array) -> Callable[[], Any]:
            stage, asked = opened.set_effort(setting), [values[some] for values in users]
            return lambda: stage(*asked)

        return prepare

    def scored(stage: Any, rows: Array) -> Prepare:
        def prepare(some: Array) -> Callable[[], Any]:
            asked = dense[some], ids[some], rows[some]
            return lambda: stage(*asked)

        return prepare

    calls: dict[Any, Prepare] = {}
    for s in settings:
        calls[RETRIEVE, retrieval(s)] = retrieve(s)
        pair = s.candidates, s.survivors
        calls[PRERANK, pair] = scored(opened.prerank(s.survivors), candidates[:, : s.candidates])
        calls[RANK, s.survivors] = scored(opened.rank, survivors[:, : s.survivors])
    taken = in_turns(calls, len(dense), at_once, rounds)
    medians = {name: float(np.median(times)) for name, times in taken.items()}
    return [
        medians[RETRIEVE, retrieval(s)]
        + medians[PRERANK, (s.candidates, s.survivors)]
        + medians[RANK, s.survivors]
        for s in settings
    ]


def in_turns(
    calls: Mapping[K, Prepare], users: int, at_once: int, rounds: int
) -> dict[K, npt.NDArray[np.float64]]:
    """Microseconds [rounds] of each call, on batches of `at_once` of the users."""
    random, names = np.random.default_rng(0), [*calls]
    taken = {name: np.empty(WARM_UP + rounds) for name in names}
    for turn in tqdm(range(WARM_UP + rounds), desc=f"time of {at_once} users", unit="round"):
        for place in random.permutation(len(names)):
            some = (np.arange(at_once) + (turn + place) * at_once) % users
            call = calls[names[place]](some)
            began = time.perf_counter_ns()
            call()
            taken[names[place]][turn] = (time.perf_counter_ns() - began) / 1000
    return {name: times[WARM_UP:] for name, times in taken.items()}


def head_to_head(first: Prepare, second: Prepare, users: int, at_once: int) -> dict[str, float]:
    """Whole requests of two cascades in turn: medians in microseconds, and of the first's time
    over the second's."""
    rounds = HEAD_TO_HEAD_ROUNDS // at_once + BATCH_ROUNDS
    taken = in_turns({"default": first, "chosen": second}, users, at_once, rounds)
    medians = {f"{name}_us": float(np.median(times)) for name, times in taken.items()}
    return {**medians, "speedup": float(np.median(taken["default"] / taken["chosen"]))}


def whole(opened: Opened, setting: Setting, users: Users) -> Prepare:
    """Requests of raw users at a setting, from the first stage to the last."""
    stages = opened.prerank(setting.survivors), opened.rank

    def prepare(some: Array) -> Callable[[], Any]:
        retrieve, asked = opened.set_effort(setting), [values[some] for values in users]

        def run() -> Any:
            dense, ids, candidates, _ = retrieve(*asked)
            survivors = stages[0](dense, ids, candidates)[0]
            return stages[1](dense, ids, survivors)

        return run

    return prepare
