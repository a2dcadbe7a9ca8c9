"""An index that goes with the catalogue: items leave it, items join it, nothing is built again."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import numpy.typing as npt

from cascade.errors import CascadeError
from cascade.index.kinds import Floats, base
from cascade.index.ordering import list_ids
from cascade.index.search import Index

NOTE = "recall was measured before items came and went"


class RefreshError(CascadeError, ValueError):
    """An index of a kind that cannot let go of single items."""


def refresh(index: Index, keep: npt.NDArray[np.bool_], added: Floats) -> Index:
    """The same index over another catalogue: first the items that are kept, in their order, then
    those that are added. Changed in place.

    The lists and codes stay those that the earlier items were trained for; when much has changed,
    building it anew finds more.

    Args:
        keep: [N], which rows stay.
        added: vectors [n, D] of the new items.

    Raises:
        RefreshError: items are to leave an index that cannot drop them.
        ValueError: the shapes do not fit, or the index is mapped.
    """
    if not index.writable:
        raise ValueError("the index is mapped read-only: load it with mapped=False to refresh it")
    items, width = index.facts.items, index.facts.width
    if keep.shape != (items,) or added.ndim != 2 or added.shape[1] != width:
        raise ValueError(
            f"keep has shape {list(keep.shape)} and the new vectors {list(added.shape)}; expected "
            f"[{items}] and [n, {width}]"
        )
    if not keep.all():
        _drop(index, keep)
    if len(added):
        index.raw.add(np.ascontiguousarray(added, np.float32))
    facts = replace(index.facts, items=int(keep.sum()) + len(added))
    return Index(index.raw, facts if NOTE in facts.note else facts.noted(NOTE))


def _drop(index: Index, keep: npt.NDArray[np.bool_]) -> None:
    gone = np.flatnonzero(~keep).astype(np.int64)
    try:
        index.raw.remove_ids(faiss.IDSelectorBatch(gone))
    except RuntimeError as error:  # FAISS's one error
        raise RefreshError(
            f"an index of kind {index.facts.kind} cannot drop {len(gone)} items: export the "
            "catalogue again, or deny them"
        ) from error
    inner = base(index.raw)
    if hasattr(inner, "invlists"):  # a flat index has closed the gaps by itself
        row = np.cumsum(keep, dtype=np.int64) - 1
        for number in range(inner.nlist):
            ids = list_ids(inner, number)
            ids[:] = row[ids]
