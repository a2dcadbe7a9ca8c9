"""Building an index, and asking it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

from cascade.index.among import Mask, among, can_select, deeper, fetched
from cascade.index.kinds import (
    EFFORT,
    KINDS,
    Floats,
    Ids,
    Kind,
    affordable,
    base,
    empty,
    set_knob,
    train_projection,
)


@dataclass(frozen=True)
class IndexFacts:
    """What index.json tells about an index.

    Args:
        kind: what was built; `flat` where the catalogue is too small for what was asked.
        items: N. width: D.
        parameters: the sizes that were chosen, the search effort among them.
        recall: share of the exact top `recall_k` that it finds, on the queries of `tune`, or on
            those that `auto` kept for it; None before that.
        note: what a person should know: a kind replaced, a recall target missed.
        latency_us: one query on one thread, where `auto` measured it.
        exact_us: exact search beside it, in the same minutes.
    """

    kind: Kind
    items: int
    width: int
    parameters: dict[str, int]
    recall: float | None = None
    recall_k: int | None = None
    note: str = ""
    latency_us: float | None = None
    exact_us: float | None = None

    def noted(self, text: str) -> IndexFacts:
        """The same with one more thing to know."""
        return replace(self, note=f"{self.note}; {text}" if self.note else text)


class Index:
    """A FAISS index and what is known about it. Made by `build`, `auto` or `load`."""

    def __init__(self, raw: Any, facts: IndexFacts, *, writable: bool = True) -> None:
        self.raw = raw
        self.writable = writable  # False: FAISS looks into a file that is mapped read-only
        self.facts = facts
        for name in ("nprobe", "efSearch", "refine_percent"):
            if name in facts.parameters:
                set_knob(raw, name, facts.parameters[name])

    def __len__(self) -> int:
        return self.facts.items

    def search(self, queries: Floats, k: int) -> Ids:
        """[B, D] -> catalogue rows int64 [B, k], best first, -1 where there are no more."""
        return self._search(queries, k)[0]

    def search_among(self, queries: Floats, k: int, allowed: Mask) -> Ids:
        """[B, D] -> the rows int64 [B, k] that are best among the `allowed` ones [N], -1 where the
        index finds no more. Some of it is true. On a GPU, which knows no selectors, they are those
        of the best of all that are allowed."""
        queries = self._checked(queries, k)
        if not can_select(self.raw):
            rows = self.search(queries, k)
            return np.where((rows >= 0) & allowed[rows], rows, -1)
        raw, options = among(self.raw, self.facts.kind, self.facts.parameters, allowed)
        found: Ids = raw.search(queries, k, **options)[1]
        return found

    def search_with_spares(self, queries: Floats, k: int, spares: int) -> Ids:
        """[B, D] -> the best rows int64 [B, >= k], where so many of them may be left out later and
        k are to remain, -1 where the index finds no more."""
        queries = self._checked(queries, k)
        if not can_select(self.raw):
            return self.search(queries, fetched(k, spares))
        raw, options = deeper(self.raw, self.facts.kind, self.facts.parameters, k, spares)
        found: Ids = raw.search(queries, k + spares, **options)[1]
        return found

    def search_with_scores(self, queries: Floats, k: int) -> tuple[Ids, Floats]:
        """[B, D] -> rows int64 [B, k] and inner products float32 [B, k]; a pad has -inf.

        Raises:
            ValueError: the queries are not [B, D], or k is not positive.
        """
        rows, scores = self._search(queries, k)
        return rows, np.where(rows < 0, np.float32(-np.inf), scores)

    def set_effort(self, value: int) -> None:
        """Trade time for recall: the lists that an IVF index probes, or the length of the queue
        that HNSW keeps. `tune` finds the value."""
        if self.facts.kind not in EFFORT:
            raise ValueError(f"{self.facts.kind} looks at every item: it has no effort to set")
        self._set(EFFORT[self.facts.kind], value)

    def set_refinement(self, percent: int) -> None:
        """How many items are looked at again by their longer codes, in percent of k (>= 100)."""
        if "refine_percent" not in self.facts.parameters:
            raise ValueError(f"{self.facts.kind} has no second look to set")
        self._set("refine_percent", percent)

    def _set(self, name: str, value: int) -> None:
        set_knob(self.raw, name, value)
        self.facts = replace(self.facts, parameters={**self.facts.parameters, name: value})

    def _search(self, queries: Floats, k: int) -> tuple[Ids, Floats]:
        scores, rows = self.raw.search(self._checked(queries, k), k)
        return rows, scores

    def _checked(self, queries: Floats, k: int) -> Floats:
        if queries.ndim != 2 or queries.shape[1] != self.facts.width:
            raise ValueError(
                f"queries have shape {list(queries.shape)}; expected [B, {self.facts.width}], the "
                "width of the item vectors"
            )
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least one item")
        return np.ascontiguousarray(queries, np.float32)


def set_threads(count: int) -> None:
    """Threads that FAISS may use, for the whole process. A server shares its cores out by this."""
    faiss.omp_set_num_threads(count)


def build(
    vectors: Floats,
    kind: Kind,
    *,
    seed: int = 0,
    lists: int | None = None,
    centroids: Floats | None = None,
) -> Index:
    """Index item vectors [N, D] for the inner product.

    Sizes follow FAISS's guidelines: 4 sqrt(N) lists, never fewer than 39 items to a list; product
    quantisers over 4 or more dimensions each, 8 bits where there are items enough to train them
    (fast scan: 2 dimensions, 4 bits); 32 links per HNSW node. A catalogue too small for any of
    that gets a flat index, and the facts say so. The effort is a guess until `tune` replaces it.
    HNSW draws its levels from a seed of its own and, built by several threads, differs a little
    from run to run.

    Args:
        lists: how many lists, where it is not 4 sqrt(N). Kinds without lists take no notice.
        centroids: [lists, D] of an index over the same items: k-means is then not run again.

    Raises:
        ValueError: no vectors, not finite, or an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no index kind {kind!r}; choose one of {list(KINDS)}")
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"item vectors have shape {list(vectors.shape)}; expected [N, D], N > 0")
    _check_finite(vectors)
    vectors = np.ascontiguousarray(vectors, np.float32)
    items, width = vectors.shape
    made, note = affordable(kind, items)
    raw, parameters = empty(
        made, items, width, seed, len(centroids) if centroids is not None else lists
    )
    projection = train_projection(raw, vectors)
    if centroids is not None and "lists" in parameters:
        centroids = np.ascontiguousarray(centroids, np.float32)
        base(raw).quantizer.add(projection.apply(centroids) if projection else centroids)
    raw.train(vectors)
    raw.add(vectors)
    return Index(raw, IndexFacts(made, items, width, parameters, note=note))


def _check_finite(vectors: Floats) -> None:
    """Refuse a NaN or an infinity. In blocks: a mask of the whole is as large as the codes."""
    block = 1 << 16
    for start in range(0, len(vectors), block):
        finite = np.isfinite(vectors[start : start + block]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ValueError(f"the vector of item row {row} is not finite: the item tower diverged")
