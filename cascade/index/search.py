"""Searching an index, also among some of the items only.

An index was tuned to find the best K of all N items. The best K of M allowed items lie further from
the user on average, so N / M times as many lists are probed. The added cost is a check per item
whether it is allowed; the number of inner products stays about the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Kind = str
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
library: Any = faiss  # FAISS's type stubs leave much of it out

EFFORTS = ("nprobe", "efSearch")  # what buys recall with time: of lists, of an HNSW graph
HNSW_LEAST_SHARE = 1 / 8  # a graph computes what it walks past, allowed or not: scan below this
MOST_FETCHED = 2048  # FAISS finds no more on a GPU


@dataclass(frozen=True)
class IndexFacts:
    """The content of index.json about an index."""

    kind: Kind  # that was built; `flat` if the catalogue is too small for the kind asked for
    items: int  # N
    width: int  # D
    parameters: dict[str, int]  # the sizes that were chosen, the search effort among them
    # Share of the exact top `recall_k` found, on the queries of `tune` or those `auto` kept for it.
    recall: float | None = None
    recall_k: int | None = None
    note: str = ""  # what a person should know: a kind replaced, a recall target missed
    latency_us: float | None = None  # of one query on one thread, if `auto` measured it
    exact_us: float | None = None  # of exact search, in the same minutes

    def noted(self, text: str) -> IndexFacts:
        """The same facts with one more note."""
        return replace(self, note=f"{self.note}; {text}" if self.note else text)


class Index:
    """A FAISS index and its facts. Made by `build`, `auto` or `load`.

    FAISS on a GPU has no selectors and no parameters of one search.
    """

    def __init__(self, raw: Any, facts: IndexFacts, *, writable: bool = True) -> None:
        self.raw = raw
        self.writable = writable  # False: FAISS looks into a file that is mapped read-only
        self.facts = facts
        self._selects = not type(raw).__name__.startswith("Gpu")
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
        some; -1 where the index finds no more. On a GPU these are the allowed ones among the best k
        of all."""
        if not self._selects:
            rows = self.search(queries, k)
            return np.where((rows >= 0) & allowed[rows], rows, -1)
        selector = library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        return self._select(queries, k, selector, np.count_nonzero(allowed) / len(allowed))

    def search_oversampled(self, queries: Floats, k: int, extra: int) -> Ids:
        """[B, D] -> the best rows int64 [B, >= k], so that k remain after `extra` of them are left
        out; -1 where the index finds no more. It is rare that all `extra` lie among the best, so
        half of the effort for them is spent."""
        if not self._selects:
            return self.search(queries, fetched(k, extra))
        return self._select(queries, k + extra, None, k / (k + extra / 2))

    def _select(self, queries: Floats, k: int, selector: Any, share: float) -> Ids:
        """The best k of those selected, with the effort for a `share` of the items."""
        queries = checked(queries, self.facts.width, k)
        raw, parameters = _selecting(self.raw, self.facts.parameters, selector, share)
        found: Ids = raw.search(queries, k, params=parameters)[1]
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


def _selecting(
    raw: Any, parameters: dict[str, int], selector: Any, share: float
) -> tuple[Any, Any]:
    """The FAISS index to search for the best of a `share` of the items, and FAISS's parameters."""
    wrapped = base(raw) is not raw
    if "nprobe" in parameters:
        probed = min(parameters["lists"], math.ceil(parameters["nprobe"] / share))
        found = library.SearchParametersIVF(sel=selector, nprobe=probed)
    elif "efSearch" in parameters and (wrapped or share >= HNSW_LEAST_SHARE):
        effort = math.ceil(parameters["efSearch"] / share)
        found = library.SearchParametersHNSW(sel=selector, efSearch=effort)
    else:
        found = library.SearchParameters(sel=selector)
        raw = library.downcast_index(raw.storage) if "efSearch" in parameters else raw
    if hasattr(raw, "base_index"):
        again = parameters["refine_percent"] / 100
        found = library.IndexRefineSearchParameters(k_factor=again, base_index_params=found)
    elif hasattr(raw, "chain"):
        found = library.SearchParametersPreTransform(index_params=found)
    return raw, found


def adopt(raw: Any, vectors: Floats, queries: Floats, k: int) -> Index:
    """A FAISS index that was built elsewhere over vectors [N, D], with the search effort that it
    came with; its recall at k is measured on queries [B, D], by its own metric."""
    inner, parameters = base(raw), {}
    if hasattr(inner, "nprobe"):
        parameters = {"lists": inner.nlist, "nprobe": inner.nprobe}
    elif hasattr(inner, "hnsw"):
        parameters = {"efSearch": inner.hnsw.efSearch}
    if hasattr(raw, "k_factor"):
        parameters["refine_percent"] = round(100 * raw.k_factor)
    _, best = faiss.knn(queries, vectors, k, metric=raw.metric_type)
    _, found = raw.search(queries, k)
    pairs = zip(found.tolist(), best.tolist(), strict=True)
    recall = float(np.mean([len({*own} & {*wanted}) / k for own, wanted in pairs]))
    kind = f"own {type(faiss.downcast_index(raw)).__name__}"
    facts = IndexFacts(kind, raw.ntotal, raw.d, parameters, recall, k, "built elsewhere")
    return Index(raw, facts)


def fetched(k: int, extra: int) -> int:
    """How many items to ask for so that k remain, where FAISS takes no parameters or a search was
    recorded for a fixed number: k plus a power of two, so that few different numbers occur."""
    return max(k, min(MOST_FETCHED, k + (1 << (extra - 1).bit_length() if extra else 0)))


def base(raw: Any) -> Any:
    """The index that holds the codes: under refinement or projection, if there is any."""
    if hasattr(raw, "base_index"):
        return base(faiss.downcast_index(raw.base_index))
    return base(faiss.downcast_index(raw.index)) if hasattr(raw, "chain") else raw


def checked(queries: Floats, width: int, k: int) -> Floats:
    """The queries [B, D] of a search for k rows, float32 and contiguous.

    ValueError: the queries are not [B, D], or k is not positive.
    """
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(
            f"queries have shape {list(queries.shape)}; expected [B, {width}], the width of the "
            "item vectors"
        )
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one item")
    return np.ascontiguousarray(queries, np.float32)


def set_parameter(raw: Any, name: str, value: int) -> None:
    """Give FAISS one of the values that may change after building; others are only facts."""
    if name == "refine_percent":
        raw.k_factor = value / 100
    elif name == "efSearch":
        base(raw).hnsw.efSearch = value
    elif name == "nprobe":
        base(raw).nprobe = value
