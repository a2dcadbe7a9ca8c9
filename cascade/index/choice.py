"""The fastest index that reaches a recall, found by building and timing several kinds.

Which kind wins depends on the catalogue's size, on how the vectors lie and on the machine. The cost
of one search grows with the catalogue in a known way (`GROWTH`). So all contenders run on a sample
of the items, the few that can win are built over all of them, and those are timed in turns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cascade.index.files import FRONTIER
from cascade.index.kinds import build, has_lists, list_count
from cascade.index.search import Floats, Index, Kind, base, library
from cascade.index.tuning import Truth, reach, timing

# `sqfp16` is slower than `sq8`. perf/tried.md has the kinds that lost elsewhere: HNSW, fast scan.
CONTENDERS: tuple[Kind, ...] = ("flat", "sq8", "ivf", "ivfsq8", "ivfsq8u", "pcaivfsq8")
DENSITIES = (2.0, 4.0)  # lists per sqrt(N); the first at every size
MOST_LISTS = 4096  # k-means of more takes many minutes, and gains little
LEVELS = (0.8, 0.9, 0.98, 0.99)  # recalls of the frontier, besides the wanted one
TIMED_QUERIES, ROUNDS = 128, 5
SAMPLE = 1 << 16  # items that all kinds are tried on
FINALISTS, STILL_IN = 3, 1.3  # go on to all items: so many, at most so many times the best guess
# Exponent of the cost of one search against N at equal recall, by the effort parameter.
GROWTH = {"nprobe": 0.5, "efSearch": 0.1, None: 1.0}

Contender = tuple[Kind, float]  # a kind and its lists per sqrt(N); 0 if it has none


@dataclass(frozen=True)
class Candidate:
    """One measured point: a kind at one setting. One over the whole catalogue is a point of the
    frontier."""

    kind: Kind
    parameters: dict[str, int]
    items: int  # it was measured over; fewer than N if a sample was enough to drop it
    recall: float  # on other queries than those its effort was set on
    latency_us: float  # median of one query on one thread
    bytes_per_item: float  # of the file
    build_s: float  # of training and adding
    chosen: bool = False
    note: str = ""


@dataclass(frozen=True)
class Built:
    """An index, its size and its build time."""

    index: Index
    bytes_per_item: float
    build_s: float

    def point(self, recall: float, latency_us: float, note: str = "") -> Candidate:
        """The measured point at the present setting."""
        facts = self.index.facts
        return Candidate(
            facts.kind,
            facts.parameters,
            facts.items,
            round(recall, 5),
            round(latency_us, 1),
            self.bytes_per_item,
            self.build_s,
            note=note,
        )


def auto(
    vectors: Floats,
    queries: Floats,
    k: int,
    target: float = 0.95,
    kinds: Sequence[Kind] = CONTENDERS,
) -> tuple[Index, list[Candidate]]:
    """The fastest index over item vectors [N, D] whose recall@k reaches the target, flat if none
    does, with what was measured in its facts; and all candidates, the chosen one marked.

    `queries`: [B, D], user vectors that were not trained on, a few hundred. Efforts are set on
    every other one; recall is reported, and the target judged, on the rest.

    ValueError: as `build`, or fewer than two queries.
    """
    if len(queries) < 2:
        raise ValueError(f"{len(queries)} queries cannot both tune an index and judge it; give two")
    if k >= len(vectors):  # every item is an answer: an approximation could only lose some
        return _flat(vectors, queries, k)
    contenders = _contenders(kinds, len(vectors))
    finalists, dropped = _shortlist(contenders, vectors, queries, k, target)
    index, frontier = _final(finalists, vectors, queries, k, target)
    if index is None:
        index, more = _flat(vectors, queries, k)
        frontier += more
    return index, frontier + dropped


def save_frontier(folder: Path, index: Index, target: float, found: Sequence[Candidate]) -> None:
    """Write frontier.json: what `auto` measured, and the recall it was asked for."""
    facts = index.facts
    asked = {"items": facts.items, "k": facts.recall_k, "target": target}
    measured = {"exact_us": facts.exact_us, "candidates": [*map(asdict, found)]}
    (folder / FRONTIER).write_text(json.dumps({**asked, **measured}, indent=1) + "\n")


def _contenders(kinds: Sequence[Kind], items: int) -> list[Contender]:
    """Each kind once; kinds with lists once for each number of them that is worth its k-means."""
    few, many = DENSITIES
    densities = (few, many) if list_count(items, many) <= MOST_LISTS else (few,)
    return [(kind, d) for kind in kinds for d in (densities if has_lists(kind) else (0.0,))]


def _final(
    contenders: Sequence[Contender], vectors: Floats, queries: Floats, k: int, target: float
) -> tuple[Index | None, list[Candidate]]:
    """Build over all items, tune, time in turns -> the fastest that reaches the target, and the
    frontier."""
    tuned_on, judged_on = Truth.of(vectors, queries, k).halves()
    built = _build_all(contenders, vectors, "build")
    queries = judged_on.queries[:TIMED_QUERIES]
    indexes = [each.index for each in built]
    frontier: list[Candidate] = []
    for level in _progress([level for level in LEVELS if level != target], "frontier"):
        recalls = [_reach_judged(index, tuned_on, judged_on, level) for index in indexes]
        frontier += map(Built.point, built, recalls, timing(indexes, queries, k, rounds=2))
    # Last, so that these efforts stay set.
    recalls = [_reach_judged(index, tuned_on, judged_on, target) for index in indexes]
    *times_us, exact_us = timing(indexes, queries, k, ROUNDS, exact_over=vectors)
    wanted = [*map(Built.point, built, recalls, times_us)]
    chosen = _choose(wanted, target)
    if chosen is None:
        return None, frontier + wanted
    wanted[chosen] = replace(wanted[chosen], chosen=True)
    return _measured(built[chosen].index, wanted[chosen], k, exact_us), frontier + wanted


def _reach_judged(index: Index, tuned_on: Truth, judged_on: Truth, target: float) -> float:
    """Tune until the other queries reach the target too -> the recall on those.

    An effort that just reaches it on one half misses it on the other half half of the time: a
    little more is asked for, by as much as was missing.
    """
    wanted = target
    for _ in range(4):
        reach(index, tuned_on, wanted)
        reached = judged_on.recall(index)
        if reached >= target or wanted >= 1:
            break
        # Above the present recall, too: one list more may be a larger step than what is missing.
        wanted = min(1.0, max(wanted + 1.2 * (target - reached), tuned_on.recall(index) + 1e-5))
    return reached


def _choose(wanted: Sequence[Candidate], target: float) -> int | None:
    """The fastest that reaches the target."""
    reaching = [i for i, candidate in enumerate(wanted) if candidate.recall >= target]
    return min(reaching, key=lambda i: wanted[i].latency_us, default=None)


def _measured(index: Index, point: Candidate, k: int, exact_us: float) -> Index:
    """The index with what was measured in its facts."""
    index.facts = replace(
        index.facts,
        recall=point.recall,
        recall_k=k,
        latency_us=point.latency_us,
        exact_us=round(exact_us, 1),
    )
    return index


def _flat(vectors: Floats, queries: Floats, k: int) -> tuple[Index, list[Candidate]]:
    [built] = _build_all([("flat", 0.0)], vectors, "build")
    _, judged_on = Truth.of(vectors, queries, k).halves()
    [time_us] = timing([built.index], judged_on.queries[:TIMED_QUERIES], k, ROUNDS)
    point = built.point(judged_on.recall(built.index), time_us)
    return _measured(built.index, point, k, point.latency_us), [replace(point, chosen=True)]


def _build_all(contenders: Sequence[Contender], vectors: Floats, title: str) -> list[Built]:
    """Build the contenders; those with the same number of lists share one k-means."""
    centroids: dict[int, Floats] = {}
    built: list[Built] = []
    for kind, density in _progress(contenders, title):
        began = time.monotonic()
        lists = list_count(len(vectors), density) if density else None
        shared = centroids.get(lists) if lists else None
        index = build(vectors, kind, lists=lists, centroids=shared)
        seconds = round(time.monotonic() - began, 1)
        inner = base(index.raw)
        if lists and has_lists(index.facts.kind) and inner.d == index.facts.width:
            centroids[lists] = inner.quantizer.reconstruct_n(0, lists)
        built.append(Built(index, round(_file_bytes(index) / len(vectors), 1), seconds))
    return built


def _file_bytes(index: Index) -> int:
    """The size of the file that `save` would write."""
    blocks: list[int] = []
    writer = library.PyCallbackIOWriter(lambda block: blocks.append(len(block)))
    library.write_index(index.raw, writer)
    return sum(blocks)


def _progress(steps: Sequence[Any], title: str) -> Any:
    """The same steps behind a bar that disappears when they are done."""
    from tqdm import tqdm  # no part of what a server needs to load an index

    return tqdm(steps, desc=f"index: {title}", leave=False)


def _shortlist(
    contenders: Sequence[Contender], vectors: Floats, queries: Floats, k: int, target: float
) -> tuple[list[Contender], list[Candidate]]:
    """All contenders on a sample of the items -> those that can win, and the measured others."""
    items = min(SAMPLE, len(vectors))
    rows = np.random.default_rng(0).choice(len(vectors), items, replace=False)
    sample = vectors[np.sort(rows)]
    truth = Truth.of(sample, queries[:TIMED_QUERIES], min(k, SAMPLE // 2))
    tuned_on, judged_on = truth.halves()
    built = _build_all(contenders, sample, "sample")
    for each in _progress(built, "tune on the sample"):
        reach(each.index, tuned_on, target)
    # Whether a kind can reach the target is judged on the queries it was tuned on: on the others,
    # a kind that just reaches it is below it half of the time.
    tuned = [tuned_on.recall(each.index) for each in built]
    recalls = [judged_on.recall(each.index) for each in built]
    times_us = timing([each.index for each in built], judged_on.queries, truth.k, rounds=2)
    guesses_us = [
        time_us * float((len(vectors) / items) ** GROWTH[each.index.effort])
        if reached >= target
        else np.inf
        for each, reached, time_us in zip(built, tuned, times_us, strict=True)
    ]
    kept = finalists([kind for kind, _ in contenders], guesses_us)
    dropped = []
    for i in sorted({*range(len(built))} - {*kept}):
        reason = f"about {guesses_us[i]:.0f} us expected at {len(vectors)} items"
        if np.isinf(guesses_us[i]):
            reason = f"recall {tuned[i]:.3f} at the largest effort"
        note = f"dropped on a sample: {reason}"
        dropped.append(built[i].point(recalls[i], times_us[i], note))
    return [contenders[i] for i in kept], dropped


def finalists(kinds: Sequence[Kind], guesses_us: Sequence[float]) -> list[int]:
    """Which contenders can win: the best of each kind, of those the few that are near the best."""
    ranked = sorted(range(len(kinds)), key=guesses_us.__getitem__)
    limit_us = STILL_IN * guesses_us[ranked[0]]
    best_of_kind: dict[Kind, int] = {}
    for i in ranked:
        if np.isfinite(guesses_us[i]) and guesses_us[i] <= limit_us:
            best_of_kind.setdefault(kinds[i], i)
    return list(best_of_kind.values())[:FINALISTS]
