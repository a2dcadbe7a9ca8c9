"""The search effort that a recall target needs, and the time of a search."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import faiss
import numpy as np

from cascade.index.search import Floats, Ids, Index
from cascade.index.topk import reaches

HNSW_LARGEST_EFFORT = 16  # times k: beyond that exact search is faster
EXACT_QUERIES = 5  # a round; each reads the whole matrix
Timed = tuple[Callable[[Floats], Any], Floats]  # a search, and its queries


@dataclass(frozen=True)
class Truth:
    """Queries [B, D] and the answers of exact search, which recall is measured against: the best
    rows int64 [B, min(k, N)], and the inner product [B] of the last of them."""

    vectors: Floats
    queries: Floats
    k: int
    best: Ids
    kth_best: Floats

    @classmethod
    def of(cls, vectors: Floats, queries: Floats, k: int) -> Truth:
        """Exact search, all queries at once."""
        scores, best = _exact(queries, vectors, k)
        return cls(vectors, queries, k, best, scores[:, -1])

    def halves(self) -> tuple[Truth, Truth]:
        """Every other query: those to tune on, and those to judge by."""
        first, second = (
            Truth(self.vectors, self.queries[i::2], self.k, self.best[i::2], self.kth_best[i::2])
            for i in (0, 1)
        )
        return first, second

    def recall(self, index: Index) -> float:
        """Share of the exact top k that the index finds."""
        return self.share(index.search(self.queries, self.k))

    def share(self, found: Ids) -> float:
        """See `recall_at`."""
        wanted = self.best.shape[1]
        hits = 0
        for row, query in enumerate(self.queries):
            mine = np.unique(found[row][found[row] >= 0])
            others = np.setdiff1d(mine, self.best[row], assume_unique=True)
            # Only rows that exact search did not return need their inner product compared.
            equals = int(reaches(self.vectors[others] @ query, self.kth_best[row]).sum())
            hits += min(wanted, len(mine) - len(others) + equals)
        return hits / (wanted * len(self.queries))


def recall_at(found: Ids, vectors: Floats, queries: Floats, k: int) -> float:
    """Share of the exact top k that `found` [B, >= k] holds, tie-aware, over all queries. Pads
    never count; of a catalogue with N < k, all N can be found."""
    return Truth.of(vectors, queries, k).share(found[:, :k])


def tune(index: Index, vectors: Floats, queries: Floats, k: int, target: float = 0.95) -> float:
    """Set the least effort whose recall@k reaches the target -> the recall, also in the facts.

    It is below the target only if the largest effort does not reach it; the facts say so.

    Args:
        vectors: [N, D], what the index was built over: the exact answer is computed from them.
        queries: [B, D], user vectors that were not trained on; a few hundred are enough.
    """
    truth = Truth.of(vectors, queries, k)
    reach(index, truth, target)
    reached = truth.recall(index)
    index.facts = replace(index.facts, recall=reached, recall_k=k)
    if reached < target:
        missed = f"recall@{k} is {reached:.3f} at the largest effort; {target} was wanted"
        index.facts = index.facts.noted(missed)
    return reached


def reach(index: Index, truth: Truth, target: float) -> None:
    """Set the least effort that reaches the target, or the largest if none does."""
    if index.effort is None:
        return

    def enough(effort: int) -> bool:
        index.set_effort(effort)
        return truth.recall(index) >= target

    if index.effort == "nprobe":
        low, high = 1, index.facts.parameters["lists"]
    else:
        low, high = truth.k, max(truth.k, min(len(truth.vectors), HNSW_LARGEST_EFFORT * truth.k))
    index.set_effort(_least(low, high, enough))


def _least(low: int, high: int, enough: Callable[[int], bool]) -> int:
    """The least value in [low, high] that is enough, `high` if none: doubling, then halving."""
    value = low
    while value < high and not enough(value):
        low, value = value + 1, min(2 * value, high)
    return low + bisect_left(range(low, value), True, key=enough)


def timing(
    indexes: Sequence[Index],
    queries: Floats,
    k: int,
    rounds: int = 5,
    exact_over: Floats | None = None,
) -> list[float]:
    """Median microseconds of one query on one thread, of each index; then, given the vectors
    [N, D], of exact search over them.

    The searches take turns, and within a round every query [B, D] is another one: no index finds
    the data of its previous search in the cache, and a slow second of the machine hits all alike.
    The first search of each in a round is not measured.
    """
    timed: list[Timed] = [(partial(index.search, k=k), queries) for index in indexes]
    if exact_over is not None:
        timed.append((partial(_exact, vectors=exact_over, k=k), queries[:EXACT_QUERIES]))
    times_ns: list[list[int]] = [[] for _ in timed]
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        for _ in range(rounds):
            for (search, queries), taken_ns in zip(timed, times_ns, strict=True):
                search(queries[:1])
                for row in range(len(queries)):
                    began = time.perf_counter_ns()
                    search(queries[row : row + 1])
                    taken_ns.append(time.perf_counter_ns() - began)
    finally:
        faiss.omp_set_num_threads(threads)
    return [float(np.median(taken_ns)) / 1000 for taken_ns in times_ns]


def _exact(queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Ids]:
    """Inner products and rows [B, min(k, N)] of exact search."""
    best: tuple[Floats, Ids] = faiss.knn(
        queries, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT
    )
    return best
