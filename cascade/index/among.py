"""Searching some of the items only: FAISS's selectors, and the effort that they ask for.

An index was tuned to find the best K of all N items. Of M allowed ones the best K lie further away
from the user on average, so N / M times as many lists are probed. What that costs is to look
whether an item is allowed; the number of inner products stays about the same.
"""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from cascade.index.kinds import RECIPES, Kind

Mask = npt.NDArray[np.bool_]

HNSW_LEAST_SHARE = 1 / 8  # a graph computes what it walks past, allowed or not: scan below this
MOST_FETCHED = 2048  # FAISS finds no more on a GPU
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


def deeper(
    raw: Any, kind: Kind, parameters: dict[str, int], k: int, spares: int
) -> tuple[Any, dict[str, Any]]:
    """The same for the best K of all items but E, where nobody knows yet which these are. They are
    among the best K + E of all; that the whole E lie among those is rare, and half of the effort
    for it is spent."""
    return _selecting(raw, kind, parameters, None, k / (k + spares / 2))


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


def fetched(k: int, spares: int) -> int:
    """How many to ask for where FAISS takes no parameters, or a search was recorded for a fixed
    number: in few steps."""
    return max(k, min(MOST_FETCHED, k + (1 << (spares - 1).bit_length() if spares else 0)))
