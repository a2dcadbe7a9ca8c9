"""Searching some of the items only: FAISS's selectors, and the effort that they ask for.

An index was tuned to find the best K of all N items. Of M allowed ones the best K lie further away
from the user on average, so N / M times as many lists are probed. What that costs is to look
whether an item is allowed; the number of inner products stays about the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from cascade.index.kinds import RECIPES, Floats, Ids, Kind

Mask = npt.NDArray[np.bool_]

HNSW_LEAST_SHARE = 1 / 8  # a graph computes what it walks past, allowed or not: scan below this
MOST_FETCHED = 2048  # FAISS finds no more on a GPU
_ALL_BUT = ~(1 << np.arange(8)).astype(np.uint8)  # bits of a byte
library: Any = faiss  # FAISS's type stubs leave most of this out


def can_select(raw: Any) -> bool:
    """FAISS on a GPU knows no selectors."""
    return not type(raw).__name__.startswith("Gpu")


def among(
    raw: Any, kind: Kind, parameters: dict[str, int], allowed: Mask
) -> tuple[Any, dict[str, Any]]:
    """What to search in place of an index, and further arguments of its search.

    Args:
        raw: the FAISS index. kind, parameters: its facts.
        allowed: [N], some of it true.
    """
    selector = library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    share = np.count_nonzero(allowed) / len(allowed)
    return _selecting(raw, kind, parameters, selector, share)


def without(
    raw: Any, kind: Kind, parameters: dict[str, int], excluded: Ids, k: int
) -> tuple[Any, dict[str, Any]]:
    """The same for all but E rows. The best K of the others are among the best K + E of all; that
    the whole E lie among those is rare, and half of the effort for it is spent.

    A bit for every item is made and asked faster than FAISS's set of ids.
    """
    left = np.full(-(-raw.ntotal // 8), 255, np.uint8)
    np.bitwise_and.at(left, excluded >> 3, _ALL_BUT[excluded & 7])
    selector = library.IDSelectorBitmap(left)
    return _selecting(raw, kind, parameters, selector, k / (k + len(excluded) / 2))


def _selecting(
    raw: Any, kind: Kind, parameters: dict[str, int], selector: Any, share: float
) -> tuple[Any, dict[str, Any]]:
    """The effort for the best of a `share` of the items."""
    if "nprobe" in parameters:
        probed = min(parameters["lists"], math.ceil(parameters["nprobe"] / share))
        found = library.SearchParametersIVF(sel=selector, nprobe=probed)
        if RECIPES[kind].refines:
            again = parameters["refine_percent"] / 100
            found = library.IndexRefineSearchParameters(k_factor=again, base_index_params=found)
        elif hasattr(raw, "chain"):
            found = library.SearchParametersPreTransform(index_params=found)
        return raw, {"params": found}
    if "efSearch" in parameters and share >= HNSW_LEAST_SHARE:
        effort = math.ceil(parameters["efSearch"] / share)
        return raw, {"params": library.SearchParametersHNSW(sel=selector, efSearch=effort)}
    scanned = library.downcast_index(raw.storage) if "efSearch" in parameters else raw
    return scanned, {"params": library.SearchParameters(sel=selector)}


def fetch_more(
    search: Callable[[Floats, int], Ids], queries: Floats, k: int, excluded: Sequence[Ids]
) -> Ids:
    """Where nothing can be selected: fetch more, and drop what is excluded. In few steps, for a
    recorded search is one of a fixed k."""
    most = max(map(len, excluded))
    fetched = max(k, min(MOST_FETCHED, k + (1 << (most - 1).bit_length() if most else 0)))
    found = np.full((len(queries), k), -1, np.int64)
    for mine, rows, some in zip(found, search(queries, fetched), excluded, strict=True):
        kept = rows[(rows >= 0) & ~np.isin(rows, some)][:k]
        mine[: len(kept)] = kept
    return found
