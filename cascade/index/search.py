"""Building an index and searching it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cascade.index.filtered import Mask, among, can_select, fetched, oversampled
from cascade.index.kinds import (
    Floats,
    Ids,
    IndexKindError,
    Kind,
    affordable,
    base,
    checked,
    empty,
    has_lists,
    set_parameter,
    train_projection,
)

EFFORTS = ("nprobe", "efSearch")  # what buys recall with time: of lists, of an HNSW graph


@dataclass(frozen=True)
class IndexFacts:
    """The content of index.json about an index.

    Args:
        kind: what was built; `flat` if the catalogue is too small for the kind asked for.
        items: N. width: D.
        parameters: the sizes that were chosen, the search effort among them.
        recall: share of the exact top `recall_k` that it finds, on the queries of `tune`, or on
            those that `auto` kept for it; None before that.
        note: what a person should know: a kind replaced, a recall target missed.
        latency_us: one query on one thread, if `auto` measured it; `exact_us`: of exact search, in
            the same minutes.
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
        """The same facts with one more note."""
        return replace(self, note=f"{self.note}; {text}" if self.note else text)


class Index:
    """A FAISS index and its facts. Made by `build`, `auto` or `load`."""

    def __init__(self, raw: Any, facts: IndexFacts, *, writable: bool = True) -> None:
        self.raw = raw
        self.writable = writable  # False: FAISS looks into a file that is mapped read-only
        self.facts = facts
        for name, value in facts.parameters.items():
            set_parameter(raw, name, value)

    def __len__(self) -> int:
        return self.facts.items

    def search(self, queries: Floats, k: int) -> Ids:
        """[B, D] -> catalogue rows int64 [B, k], best first, -1 where there are no more."""
        found: Ids = self.raw.search(checked(queries, self.facts.width, k), k)[1]
        return found

    def search_among(self, queries: Floats, k: int, allowed: Mask) -> Ids:
        """[B, D] -> the best rows int64 [B, k] among the `allowed` items [N], of which there are
        some; -1 where the index finds no more. FAISS on a GPU has no selectors: there the answer is
        the allowed ones among the best k of all."""
        queries = checked(queries, self.facts.width, k)
        if not can_select(self.raw):
            rows = self.search(queries, k)
            return np.where((rows >= 0) & allowed[rows], rows, -1)
        raw, options = among(self.raw, self.facts.parameters, allowed)
        found: Ids = raw.search(queries, k, **options)[1]
        return found

    def search_oversampled(self, queries: Floats, k: int, extra: int) -> Ids:
        """[B, D] -> the best rows int64 [B, >= k], so that k remain after `extra` of them are left
        out; -1 where the index finds no more."""
        queries = checked(queries, self.facts.width, k)
        if not can_select(self.raw):
            return self.search(queries, fetched(k, extra))
        raw, options = oversampled(self.raw, self.facts.parameters, k, extra)
        found: Ids = raw.search(queries, k + extra, **options)[1]
        return found

    @property
    def effort(self) -> str | None:
        """The parameter that trades time for recall: the lists that an IVF index probes, or the
        length of the queue of HNSW; None for an index that looks at every item."""
        return next((name for name in EFFORTS if name in self.facts.parameters), None)

    def set_effort(self, value: int) -> None:
        """Set the parameter `effort`; `tune` finds the value."""
        if self.effort is None:
            raise ValueError(f"{self.facts.kind} looks at every item: it has no effort to set")
        set_parameter(self.raw, self.effort, value)
        parameters = {**self.facts.parameters, self.effort: value}
        self.facts = replace(self.facts, parameters=parameters)


def build(
    vectors: Floats,
    kind: Kind,
    *,
    seed: int = 0,
    lists: int | None = None,
    centroids: Floats | None = None,
) -> Index:
    """Index item vectors [N, D] for the inner product.

    The number of lists follows FAISS's guidelines: 4 sqrt(N), never fewer than 39 items to a list.
    A catalogue too small for that gets a flat index, and the facts say so. The effort is a guess
    until `tune` replaces it. HNSW draws its levels from a seed of its own and, built by several
    threads, differs a little from run to run.

    Args:
        kind: a name of `KINDS`, or a factory string of FAISS.
        lists: how many lists, if not 4 sqrt(N); other kinds than the named ones ignore it.
        centroids: [lists, D] of an index over the same items: k-means is then not run again.

    Raises:
        IndexKindError: FAISS has no such kind, or the items are too few to train it.
        ValueError: no vectors, or not finite.
    """
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
    if centroids is not None and has_lists(made):
        centroids = np.ascontiguousarray(centroids, np.float32)
        base(raw).quantizer.add(projection.apply(centroids) if projection else centroids)
    try:
        raw.train(vectors)
    except RuntimeError as error:  # FAISS's one error
        reason = str(error).splitlines()[-1].strip()
        raise IndexKindError(f"{items} items cannot train {kind!r}: {reason}") from error
    raw.add(vectors)
    return Index(raw, IndexFacts(made, items, width, parameters, note=note))


def _check_finite(vectors: Floats) -> None:
    """Reject NaN and infinity. In blocks: a mask of the whole is as large as the codes."""
    block = 1 << 16
    for start in range(0, len(vectors), block):
        finite = np.isfinite(vectors[start : start + block]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ValueError(f"the vector of item row {row} is not finite: the item tower diverged")
