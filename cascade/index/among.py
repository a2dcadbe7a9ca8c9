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


def restricted(
    raw: Any, kind: Kind, parameters: dict[str, int], allowed: Mask
) -> tuple[Any, dict[str, Any]]:
    """What to search in place of an index, and further arguments of its search.

    Args:
        raw: the FAISS index. kind, parameters: its facts.
        allowed: [N], some of it true.
    """
    library: Any = faiss  # FAISS's type stubs leave most of this out
    if not hasattr(library, "IDSelectorBitmap") or type(raw).__name__.startswith("Gpu"):
        return raw, {}
    selector = library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    share = np.count_nonzero(allowed) / len(allowed)
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
