"""The fastest index that reaches a recall, found by building and timing several kinds.

Which kind wins depends on the catalogue's size, on how the vectors lie and on the machine. So all
contenders run on a sample of the items (`cascade.index.shortlist`), the few that can win are built
over all of them, and those are timed in turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cascade.index.files import FRONTIER
from cascade.index.kinds import Floats, Kind, has_lists, list_count
from cascade.index.search import Index
from cascade.index.shortlist import Built, Candidate, Contender, build_all, progress, shortlist
from cascade.index.tuning import Truth, beside_exact, reach, timing

# `sqfp16` is slower than `sq8`. perf/tried.md has the kinds that lost elsewhere: HNSW, fast scan.
CONTENDERS: tuple[Kind, ...] = ("flat", "sq8", "ivf", "ivfsq8", "ivfsq8u", "pcaivfsq8")
DENSITIES = (2.0, 4.0)  # lists per sqrt(N); the first at every size
MOST_LISTS = 4096  # k-means of more takes many minutes, and gains little
LEVELS = (0.8, 0.9, 0.98, 0.99)  # recalls of the frontier, besides the wanted one
TIMED_QUERIES, ROUNDS = 128, 5


def auto(
    vectors: Floats,
    queries: Floats,
    k: int,
    target: float = 0.95,
    *,
    kinds: Sequence[Kind] = CONTENDERS,
    seed: int = 0,
) -> tuple[Index, list[Candidate]]:
    """The fastest index over item vectors [N, D] whose recall@k reaches the target.

    Args:
        queries: [B, D], user vectors that were not trained on, a few hundred. Efforts are set on
            every other one; recall is reported, and the target judged, on the rest.

    Returns:
        The index, with recall, latency and the latency of exact search in its facts; and all that
        was measured, the chosen one marked. If no other kind reaches the target, it is flat.

    Raises:
        ValueError: as `build`, or fewer than two queries.
    """
    if len(queries) < 2:
        raise ValueError(f"{len(queries)} queries cannot both tune an index and judge it; give two")
    if k >= len(vectors):  # every item is an answer: an approximation could only lose some
        return _flat(vectors, queries, k, seed)
    finalists, dropped = shortlist(
        _contenders(kinds, len(vectors)), vectors, queries, k, target, seed
    )
    index, frontier = _final(finalists, vectors, queries, k, target, seed)
    if index is None:
        index, more = _flat(vectors, queries, k, seed)
        frontier += more
    return index, frontier + dropped


def save_frontier(folder: Path, index: Index, target: float, found: Sequence[Candidate]) -> None:
    """Write frontier.json: what `auto` measured, and the recall it was asked for."""
    facts = index.facts
    text = {
        "items": facts.items,
        "k": facts.recall_k,
        "target": target,
        "exact_us": facts.exact_us,
        "candidates": [asdict(candidate) for candidate in found],
    }
    (folder / FRONTIER).write_text(json.dumps(text, indent=1) + "\n")


def _contenders(kinds: Sequence[Kind], items: int) -> list[Contender]:
    """Each kind once; kinds with lists once for each number of them that is worth its k-means."""
    few, many = DENSITIES
    densities = (few, many) if list_count(items, many) <= MOST_LISTS else (few,)
    return [(kind, d) for kind in kinds for d in (densities if has_lists(kind) else (0.0,))]


def _final(
    contenders: Sequence[Contender],
    vectors: Floats,
    queries: Floats,
    k: int,
    target: float,
    seed: int,
) -> tuple[Index | None, list[Candidate]]:
    """Build over all items, tune, time in turns -> the fastest that reaches the target, and the
    frontier."""
    tuned_on, judged_on = Truth.of(vectors, queries, k).halves()
    built = build_all(contenders, vectors, seed, "build")
    queries = judged_on.queries[:TIMED_QUERIES]
    indexes = [each.index for each in built]
    frontier: list[Candidate] = []
    for level in progress([level for level in LEVELS if level != target], "frontier"):
        recalls = [_reach_judged(index, tuned_on, judged_on, level) for index in indexes]
        frontier += map(Built.point, built, recalls, timing(indexes, queries, k, rounds=2))
    # Last, so that these efforts stay set.
    recalls = [_reach_judged(index, tuned_on, judged_on, target) for index in indexes]
    times_us, exact_us = beside_exact(indexes, vectors, queries, k, ROUNDS)
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


def _flat(vectors: Floats, queries: Floats, k: int, seed: int) -> tuple[Index, list[Candidate]]:
    [built] = build_all([("flat", 0.0)], vectors, seed, "build")
    _, judged_on = Truth.of(vectors, queries, k).halves()
    [time_us] = timing([built.index], judged_on.queries[:TIMED_QUERIES], k, ROUNDS)
    point = built.point(judged_on.recall(built.index), time_us)
    return _measured(built.index, point, k, point.latency_us), [replace(point, chosen=True)]
