"""What one search costs: one query at a time on one thread, as a server's stage asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import faiss
import numpy as np

from cascade.index.kinds import Floats
from cascade.index.search import Index

EXACT_QUERIES = 5  # a round; each reads the whole matrix


def timing(indexes: Sequence[Index], queries: Floats, k: int, rounds: int = 5) -> list[float]:
    """Median microseconds of one query on one thread, of each index.

    The indexes take turns, and within a round every query [B, D] is another one: no index finds
    in the cache what it asked for a moment ago, and a slow second of the machine hits all alike.
    """
    asked = [_asking(index, k) for index in indexes]
    return _alternate(asked, [queries] * len(indexes), rounds)


def exact_us(vectors: Floats, queries: Floats, k: int, rounds: int = 3) -> float:
    """Median microseconds of exact search over all items [N, D], one query on one thread."""
    return beside_exact([], vectors, queries, k, rounds)[1]


def beside_exact(
    indexes: Sequence[Index], vectors: Floats, queries: Floats, k: int, rounds: int
) -> tuple[list[float], float]:
    """As `timing`, and what exact search takes in the same turns: their ratio is the speedup."""
    least = min(k, len(vectors))

    def exact(query: Floats) -> None:
        faiss.knn(query, vectors, least, metric=faiss.METRIC_INNER_PRODUCT)

    asked = [*(_asking(index, k) for index in indexes), exact]
    *times_us, exact_us = _alternate(
        asked, [queries] * len(indexes) + [queries[:EXACT_QUERIES]], rounds
    )
    return times_us, exact_us


def _asking(index: Index, k: int) -> Callable[[Floats], None]:
    def ask(query: Floats) -> None:
        index.search(query, k)

    return ask


def _alternate(
    asked: Sequence[Callable[[Floats], None]], queries: Sequence[Floats], rounds: int
) -> list[float]:
    """Rounds of every asker over its queries, the first one of each unmeasured -> medians."""
    times_ns: list[list[int]] = [[] for _ in asked]
    with one_thread():
        for _ in range(rounds):
            for ask, mine, taken_ns in zip(asked, queries, times_ns, strict=True):
                ask(mine[:1])
                for row in range(len(mine)):
                    began = time.perf_counter_ns()
                    ask(mine[row : row + 1])
                    taken_ns.append(time.perf_counter_ns() - began)
    return [float(np.median(taken_ns)) / 1000 for taken_ns in times_ns]


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS on one thread; what it was before comes back."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
