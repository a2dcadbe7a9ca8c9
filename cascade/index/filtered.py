"""Filtered search: FAISS's selectors, and the effort they need.

An index was tuned to find the best K of all N items. The best K of M allowed items lie further from
the user on average, so N / M times as many lists are probed. The added cost is a check per item
whether it is allowed; the number of inner products stays about the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.index.kinds import base, library

Mask = npt.NDArray[np.bool_]

HNSW_LEAST_SHARE = 1 / 8  # a graph computes what it walks past, allowed or not: scan below this
MOST_FETCHED = 2048  # FAISS finds no more on a GPU


def can_select(raw: Any) -> bool:
    """FAISS on a GPU has no selectors."""
    return not type(raw).__name__.startswith("Gpu")


def among(raw: Any, parameters: dict[str, int], allowed: Mask) -> tuple[Any, dict[str, Any]]:
    """What to search in place of an index, and further arguments of its search.

    Args:
        raw: the FAISS index. parameters: of its facts.
        allowed: [N], some of it true.
    """
    selector = library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    return _selecting(raw, parameters, selector, np.count_nonzero(allowed) / len(allowed))


def oversampled(
    raw: Any, parameters: dict[str, int], k: int, extra: int
) -> tuple[Any, dict[str, Any]]:
    """The same for the best K after up to E items are left out that are not known yet. These K are
    among the best K + E of all items. It is rare that all E lie among those, so half of the effort
    for them is spent."""
    return _selecting(raw, parameters, None, k / (k + extra / 2))


def _selecting(
    raw: Any, parameters: dict[str, int], selector: Any, share: float
) -> tuple[Any, dict[str, Any]]:
    """The effort for the best of a `share` of the items."""
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
    return raw, {"params": found}


def fetched(k: int, extra: int) -> int:
    """How many items to ask for so that k remain, where FAISS takes no parameters or a search was
    recorded for a fixed number: k plus a power of two, so that few different numbers occur."""
    return max(k, min(MOST_FETCHED, k + (1 << (extra - 1).bit_length() if extra else 0)))
