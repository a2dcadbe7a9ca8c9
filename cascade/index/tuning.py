"""The effort that a recall target takes, against exact search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import faiss
import numpy as np

from cascade.index.clock import timing
from cascade.index.kinds import EFFORT, RECIPES, Floats, Ids
from cascade.index.search import Index

HNSW_LARGEST_EFFORT = 16  # times k: beyond that exact search is faster
REFINEMENTS = (100, 125, 150, 200, 300, 400)  # percent of k that are looked at twice
TIMED_QUERIES = 48  # to choose between two settings of one index


@dataclass(frozen=True)
class Truth:
    """Queries and what exact search answers: what recall is measured against.

    Args:
        vectors: [N, D]. queries: [B, D].
        best: rows int64 [B, min(k, N)] of the exact answer.
        kth_best: [B], the inner product of the last of them.
    """

    vectors: Floats
    queries: Floats
    k: int
    best: Ids
    kth_best: Floats

    @classmethod
    def of(cls, vectors: Floats, queries: Floats, k: int) -> Truth:
        """Exact search, all queries at once."""
        wanted = min(k, len(vectors))
        scores, best = faiss.knn(queries, vectors, wanted, metric=faiss.METRIC_INNER_PRODUCT)
        return cls(vectors, queries, k, best, scores[:, -1])

    def halves(self) -> tuple[Truth, Truth]:
        """Every other query: those to tune on, and those to judge by."""
        first, second = (
            replace(
                self,
                queries=self.queries[i::2],
                best=self.best[i::2],
                kth_best=self.kth_best[i::2],
            )
            for i in (0, 1)
        )
        return first, second

    def recall(self, index: Index) -> float:
        """Share of the exact top k that the index finds."""
        return self.share(index.search(self.queries, self.k))

    def share(self, found: Ids) -> float:
        """Share of the exact top k that is among `found` [B, k]; see `recall_at`."""
        wanted = self.best.shape[1]
        hits = 0
        for row, query in enumerate(self.queries):
            mine = np.unique(found[row][found[row] >= 0])
            others = np.setdiff1d(mine, self.best[row], assume_unique=True)
            # Only what exact search did not name has to be compared by its inner product. The two
            # sums run in different orders: allow for float32's rounding.
            threshold = float(self.kth_best[row])
            least = threshold - 1e-5 * max(1.0, abs(threshold))
            equals = int((self.vectors[others] @ query >= least).sum())
            hits += min(wanted, len(mine) - len(others) + equals)
        return hits / (wanted * len(self.queries))


def recall_at(found: Ids, vectors: Floats, queries: Floats, k: int) -> float:
    """Share of the exact top k that `found` [B, >= k] holds, over all queries.

    Tie-aware: an item counts when its inner product is as good as the exact k-th best, whichever
    of several equal items it is. Pads never count; of a catalogue with N < k, all N can be found.
    """
    return Truth.of(vectors, queries, k).share(found[:, :k])


def tune(index: Index, vectors: Floats, queries: Floats, k: int, target: float = 0.95) -> float:
    """Set the least effort whose recall@k on these queries reaches the target.

    Where an index has two knobs, there is a least effort for each value of the second; the
    fastest of these pairs is taken, by measurement.

    Args:
        vectors: [N, D], what the index was built over: the exact answer is computed from them.
        queries: [B, D], user vectors that were not trained on; a few hundred are enough.

    Returns:
        The recall reached. Below the target only where the largest effort does not reach it; the
        facts say so. They record the recall either way.
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
    """Set the fastest knobs that reach the target; the largest where none does."""
    if index.facts.kind not in EFFORT:
        return
    if not RECIPES[index.facts.kind].refines:
        _reach_effort(index, truth, target)
        return
    settings = list(_settings(index, truth, target))
    if len(settings) > 1:
        settings.sort(key=lambda setting: _time(index, truth, setting))
    _apply(index, settings[0])


def _settings(index: Index, truth: Truth, target: float) -> Iterator[tuple[int, int]]:
    """(percent looked at twice, least lists probed) that reach the target; one pair at least.

    A second look at more items can only cost more time once it no longer saves lists.
    """
    lists = index.facts.parameters["lists"]
    before = None
    for percent in REFINEMENTS:
        index.set_refinement(percent)
        index.set_effort(before or lists)
        if truth.recall(index) < target:
            continue  # not even so: nothing to look for below
        _reach_effort(index, truth, target)
        effort = index.facts.parameters["nprobe"]
        yield percent, effort
        if before is not None and effort > 0.97 * before:
            return
        before = effort
    if before is None:
        yield REFINEMENTS[-1], lists


def _apply(index: Index, setting: tuple[int, int]) -> None:
    index.set_refinement(setting[0])
    index.set_effort(setting[1])


def _time(index: Index, truth: Truth, setting: tuple[int, int]) -> float:
    _apply(index, setting)
    return timing([index], truth.queries[:TIMED_QUERIES], truth.k, rounds=2)[0]


def _reach_effort(index: Index, truth: Truth, target: float) -> None:
    """Set the least effort that reaches the target, or the largest."""

    def enough(effort: int) -> bool:
        index.set_effort(effort)
        return truth.recall(index) >= target

    lists = index.facts.parameters.get("lists")
    largest = max(truth.k, min(len(truth.vectors), HNSW_LARGEST_EFFORT * truth.k))
    low, high = (1, lists) if lists else (truth.k, largest)
    index.set_effort(_least(low, high, enough))


def _least(low: int, high: int, enough: Callable[[int], bool]) -> int:
    """The least value in [low, high] that is enough, `high` if none: doubling, then halving."""
    value = low
    while value < high and not enough(value):
        low, value = value + 1, min(2 * value, high)
    high = value
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high
