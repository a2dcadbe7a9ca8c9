"""The fastest index that reaches a recall, found by building and timing the kinds there are.

What wins depends on the catalogue's size, on how the vectors lie and on the machine, so nothing is
assumed but how the cost of a kind grows: all kinds run on a sample of the items, the few that can
win are built over all of them, and those are timed in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cascade.index.candidates import Built, Candidate, Plan, build_all, progress
from cascade.index.clock import beside_exact, timing
from cascade.index.kinds import EFFORT, Floats, Kind, list_count
from cascade.index.screen import screen
from cascade.index.search import Index
from cascade.index.tuning import Truth, reach

# What can be the fastest: `ivfpq` is slower than fast scan at the same codes, `sqfp16` than `sq8`.
CONTENDERS: tuple[Kind, ...] = (
    "flat",
    "sq8",
    "ivf",
    "ivfsq8",
    "ivfsq8u",
    "pcaivfsq8",
    "ivffs",
    "hnsw",
    "hnswsq8",
)
DENSITIES = (2.0, 4.0)  # lists per sqrt(N); the first at every size
MOST_LISTS = 4096  # k-means of more takes many minutes, and gains little
LEVELS = (0.8, 0.9, 0.98, 0.99)  # recalls of the frontier, beside the one that is wanted
MAPPED_GAIN = 1.2  # codes that every process holds for itself must be faster than shared by this
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
        The index, its facts with recall, latency and that of exact search beside it; and all that
        was measured, the chosen one marked. Where nothing else reaches the target, it is flat.

    Raises:
        ValueError: as `build`, or fewer than two queries.
    """
    if len(queries) < 2:
        raise ValueError(f"{len(queries)} queries cannot both tune an index and judge it; give two")
    if k >= len(vectors):  # every item is an answer: an approximation could only lose some
        return _flat(vectors, queries, k, seed)
    finalists, dropped = screen(_plans(kinds, len(vectors)), vectors, queries, k, target, seed)
    index, frontier = _final(finalists, vectors, queries, k, target, seed)
    if index is None:
        index, more = _flat(vectors, queries, k, seed)
        frontier += more
    return index, frontier + dropped


def _plans(kinds: Sequence[Kind], items: int) -> list[Plan]:
    """Each kind once; those with lists once for each number of them that is worth its k-means."""
    few, many = DENSITIES
    densities = (few, many) if list_count(items, many) <= MOST_LISTS else (few,)
    plans: list[Plan] = []
    for kind in kinds:
        plans += [(kind, d) for d in (densities if EFFORT.get(kind) == "nprobe" else (0.0,))]
    return plans


def _final(
    plans: Sequence[Plan], vectors: Floats, queries: Floats, k: int, target: float, seed: int
) -> tuple[Index | None, list[Candidate]]:
    """Build over all items, tune, time in turns -> the fastest that reaches, and the frontier."""
    tuned_on, judged_on = Truth.of(vectors, queries, k).halves()
    built = build_all(plans, vectors, seed, "build")
    queries = judged_on.queries[:TIMED_QUERIES]
    indexes = [each.index for each in built]
    frontier: list[Candidate] = []
    for level in progress([level for level in LEVELS if level != target], "frontier"):
        recalls = [_reach_judged(index, tuned_on, judged_on, level) for index in indexes]
        frontier += _points(built, recalls, timing(indexes, queries, k, rounds=2))
    # Last, so that these knobs stay set.
    recalls = [_reach_judged(index, tuned_on, judged_on, target) for index in indexes]
    times_us, exact_us = beside_exact(indexes, vectors, queries, k, ROUNDS)
    wanted = _points(built, recalls, times_us)
    chosen = _choose(wanted, target)
    if chosen is None:
        return None, frontier + wanted
    best = wanted[chosen]
    index = built[chosen].index
    index.facts = replace(
        index.facts,
        recall=best.recall,
        recall_k=k,
        latency_us=best.latency_us,
        exact_us=round(exact_us, 1),
    )
    if not best.mapped:
        index.facts = index.facts.noted(_unmapped_note(best, wanted, target))
    wanted[chosen] = replace(best, chosen=True)
    return index, frontier + wanted


def _points(
    built: Sequence[Built], recalls: Sequence[float], times_us: Sequence[float]
) -> list[Candidate]:
    return [
        each.candidate(recall, time_us)
        for each, recall, time_us in zip(built, recalls, times_us, strict=True)
    ]


def _reach_judged(index: Index, tuned_on: Truth, judged_on: Truth, target: float) -> float:
    """Tune until the other queries reach the target too -> the recall on those.

    An effort that just reaches it on one half misses it on the other half as often as not: a
    little more is asked for, by as much as was missing.
    """
    wanted = target
    for _ in range(4):
        reach(index, tuned_on, wanted)
        reached = judged_on.recall(index)
        if reached >= target or wanted >= 1:
            break
        # Over what it has by now, too: one list more may be a larger step than what is missing.
        wanted = min(1.0, max(wanted + 1.2 * (target - reached), tuned_on.recall(index) + 1e-5))
    return reached


def _choose(wanted: Sequence[Candidate], target: float) -> int | None:
    """The fastest that reaches the target; a mapped one unless the gain is large."""
    reaching = [i for i, candidate in enumerate(wanted) if candidate.recall >= target]

    def cost(i: int) -> float:
        return wanted[i].latency_us * (1 if wanted[i].mapped else MAPPED_GAIN)

    return min(reaching, key=cost, default=None)


def _unmapped_note(best: Candidate, wanted: Sequence[Candidate], target: float) -> str:
    mapped = [c.latency_us for c in wanted if c.mapped and c.recall >= target]
    rival = (
        f"the fastest kind that is mapped whole takes {min(mapped):.0f} us"
        if mapped
        else "no kind that is mapped whole was in the final"
    )
    return f"the short codes of {best.kind} are read by every process, not mapped; {rival}"


def _flat(vectors: Floats, queries: Floats, k: int, seed: int) -> tuple[Index, list[Candidate]]:
    [built] = build_all([("flat", 0.0)], vectors, seed, "build")
    _, judged_on = Truth.of(vectors, queries, k).halves()
    times_us = timing([built.index], judged_on.queries[:TIMED_QUERIES], k, ROUNDS)
    [point] = _points([built], [judged_on.recall(built.index)], times_us)
    index = built.index
    index.facts = replace(
        index.facts,
        recall=point.recall,
        recall_k=k,
        latency_us=point.latency_us,
        exact_us=point.latency_us,
    )
    return index, [replace(point, chosen=True)]
