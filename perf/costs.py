"""What one request costs in this process, on one thread, stage by stage.

A cost is the processor time of that thread: ONNX Runtime and FAISS have no other here, and what
else runs on the machine is not in it. Waiting for memory is; waiting for a disk or for a turn is
not, and shows in the time by the clock beside it. On a GPU all costs are times by the clock.

Settings that are compared take turns, and every request is of another user: nobody finds in the
cache what was asked for a moment ago, and a slow second of the machine hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from cascade import index
from cascade.artifact import Array, Description
from cascade.config import Serving, one_thread
from cascade.index.kinds import base
from cascade.pbtxt import process_settings
from cascade.release import newest_version, read_release
from cascade.spec import PRERANK, RANK, RETRIEVE, STAGES, sizes_from, stage_path
from cascade.stages.load import load_stage
from cascade.stages.retrieve import Retrieve
from cascade.stages.stage import Stage
from export.artifacts.stage_files import ITEM_STATE
from perf import work
from perf.payload import Payload

Setting = TypeVar("Setting")
Times = npt.NDArray[np.float64]

ROUNDS, REQUESTS = 6, 48  # users a round; a larger batch has fewer requests
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Opened:
    """The three stages of a release, and where their files are."""

    stages: Mapping[str, Stage]
    folders: Mapping[str, Path]
    candidates: int
    serving: Serving

    def request(self, dense: Array, categorical: Array) -> Times:
        """Ask once -> nanoseconds [4]: the cost of every stage, and the whole by the clock."""
        cost_ns = time.thread_time_ns if self.serving.device == "cpu" else time.perf_counter_ns
        retrieve, prerank, rank = (self.stages[name] for name in STAGES)
        start, began = time.perf_counter_ns(), cost_ns()
        *user, candidates = retrieve(dense, categorical)
        retrieved = cost_ns()
        (survivors,) = prerank(*user, candidates)
        preranked = cost_ns()
        rank(*user, survivors)
        ranked, end = cost_ns(), time.perf_counter_ns()
        stages = (retrieved - began, preranked - retrieved, ranked - preranked)
        return np.array([*stages, end - start], np.float64)


def folders_of(repository: Path) -> dict[str, Path]:
    """Where the newest release keeps the files of each stage."""
    version = newest_version(repository)
    topology = read_release(repository, version)["topology"]
    return {name: repository / stage_path(topology, name, version) for name in STAGES}


def serving_of(repository: Path) -> Serving:
    """As the repository is served, but on one thread."""
    return one_thread(next(iter(process_settings(repository).values())).serving)


def open_stages(
    repository: Path,
    candidates: int | None = None,
    folders: Mapping[str, Path] | None = None,
) -> Opened:
    """Load the newest release.

    Args:
        candidates: how many to retrieve, where it is not what was exported.
        folders: of stages that are to be taken from elsewhere, by name.
    """
    release = read_release(repository, newest_version(repository))
    wanted = candidates or sizes_from(release["sizes"]).candidates
    places = {**folders_of(repository), **(folders or {})}
    serving = serving_of(repository)
    stages = {name: load_stage(name, places[name], serving, wanted) for name in STAGES}
    return Opened(stages, places, wanted, serving)


def alternate(
    opened: Mapping[Setting, Opened],
    users: Mapping[Setting, Payload],
    batches: Mapping[Setting, int] | None = None,
    rounds: int = ROUNDS,
) -> dict[Setting, dict[str, float]]:
    """Medians of what a request costs, in microseconds: `retrieve_us`, `prerank_us`, `rank_us` and
    `total_us`, the last with the middle half of the requests from `total_p25_us` to `total_p75_us`;
    `clock_us` is the whole by the clock.

    Args:
        opened: by the setting, what is asked.
        users: by the setting; the settings begin at different ones of them.
        batches: users in a request, by the setting; 1 where it is left out.
    """
    batches = batches or {}
    times: dict[Setting, list[Times]] = {setting: [] for setting in opened}
    at = {key: i * len(users[key]) // len(opened) for i, key in enumerate(opened)}
    for _ in range(rounds):
        for setting, stages in opened.items():
            batch, some = batches.get(setting, 1), users[setting]
            for request in range(1 + max(2, REQUESTS // batch)):
                rows = np.arange(at[setting], at[setting] + batch) % len(some)
                at[setting] += batch
                taken = stages.request(some.dense[rows], some.categorical[rows])
                if request:  # the first of a turn finds the instructions of others in the cache
                    times[setting].append(taken)
    return {setting: _summary(np.stack(taken) / 1e3) for setting, taken in times.items()}


def _summary(taken_us: Times) -> dict[str, float]:
    total = taken_us[:, :-1].sum(1)
    *stages, clock = np.median(taken_us, axis=0)
    found = {f"{name}_us": float(us) for name, us in zip(STAGES, stages, strict=True)}
    low, middle, high = (float(us) for us in np.percentile(total, (25, 50, 75)))
    spread = {"total_p25_us": low, "total_p75_us": high}
    return {**found, "total_us": middle, **spread, "clock_us": float(clock)}


def work_of(opened: Opened, users: Payload, count: int = 32) -> dict[str, float]:
    """What a request has to touch: a growth that is not in here is the memory's, not the work's.

    Returns:
        distances: inner products of one search. retrieve_bytes: codes and centroids behind them.
        prerank_bytes, rank_bytes: item states that are gathered. prerank_multiply_adds and
        rank_multiply_adds: of the matrix products. gather_ns and gather_again_ns: to copy the item
        state of one candidate of prerank, for a new user, and for the same user once more.
    """
    some = slice(0, min(count, len(users)))
    *user, candidates = opened.stages[RETRIEVE](users.dense[some], users.categorical[some])
    (survivors,) = opened.stages[PRERANK](*user, candidates)
    found = search_work(opened, users, count)
    for name, rows in ((PRERANK, candidates), (RANK, survivors)):
        one = work.of_graph(opened.folders[name], (*(x[:1] for x in user), rows[:1]))
        found[f"{name}_bytes"] = float(one.read_bytes)
        found[f"{name}_multiply_adds"] = float(one.multiply_adds)
    first_ns, again_ns = gather_ns(opened.folders[PRERANK], candidates)
    return {**found, "gather_ns": first_ns, "gather_again_ns": again_ns}


def search_work(opened: Opened, users: Payload, count: int) -> dict[str, float]:
    """Inner products of a search by FAISS's own counters, and the bytes behind them."""
    retrieve = opened.stages[RETRIEVE]
    assert isinstance(retrieve, Retrieve)
    searched: Any = retrieve.index
    if not isinstance(searched, index.Index):  # exact search on a device reads everything
        return {"distances": float(searched.facts.items)}
    library: Any = faiss  # FAISS's type stubs leave out its counters
    counters = (library.cvar.indexIVF_stats, library.cvar.hnsw_stats)
    for counter in counters:
        counter.reset()
    asked = min(count, len(users))
    retrieve(users.dense[:asked], users.categorical[:asked])
    inner = base(searched.raw)
    scanned = sum(counter.ndis for counter in counters) / asked
    lists, width = searched.facts.parameters.get("lists", 0), inner.d
    if not lists and "efSearch" not in searched.facts.parameters:
        scanned = float(searched.facts.items)
    codes = library.downcast_index(inner.storage) if hasattr(inner, "storage") else inner
    read = scanned * codes.code_size + lists * width * FLOAT_BYTES
    if percent := searched.facts.parameters.get("refine_percent"):
        second = opened.candidates * percent / 100
        scanned += second
        read += second * library.downcast_index(searched.raw.refine_index).code_size
    return {"distances": scanned + lists, "retrieve_bytes": read}


def gather_ns(folder: Path, rows: Array) -> tuple[float, float]:
    """Nanoseconds to copy the state of one row, for rows [B, K] that were not read just before,
    and for the same ones again: the difference is what a cache would save."""
    state = Description.load(folder).mapped[ITEM_STATE].open(folder)
    first: list[float] = []
    again: list[float] = []
    for wanted in np.sort(np.maximum(rows, 0), axis=1):
        for times in (first, again):
            began = time.perf_counter_ns()
            np.take(state, wanted, axis=0)
            times.append((time.perf_counter_ns() - began) / len(wanted))
    return float(np.median(first)), float(np.median(again))
