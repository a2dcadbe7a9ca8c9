"""Which row an item of an index has: another order of the rows, and items that leave or join.

The candidates of one user come from a few lists of the index. If the item states of the scoring
stages lie in the order of the lists, a gather of a thousand rows reads a few stretches of memory
instead of a thousand places.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import faiss
import numpy as np

from cascade.errors import CascadeError
from cascade.index.kinds import list_count
from cascade.index.search import Floats, Ids, Index, Mask, base

SAMPLE = 64  # vectors per centroid for the k-means of an index that has no lists
NOTE = "recall was measured before items came and went"


class RefreshError(CascadeError, ValueError):
    """An index of a kind that cannot drop single items."""


def order(index: Index) -> Ids:
    """-> permutation int64 [N]: row i of the new catalogue is row `order[i]` of the present one.

    Each list is followed by the nearest one that is left. An index without lists is cut into
    clusters for this.
    """
    inner = base(index.raw)
    if hasattr(inner, "invlists"):
        centroids = inner.quantizer.reconstruct_n(0, inner.nlist)
        members = [list_ids(inner, number).copy() for number in range(inner.nlist)]
    else:
        centroids, assigned = _clusters(index)
        by_cluster = np.argsort(assigned, kind="stable")
        ends = np.cumsum(np.bincount(assigned, minlength=len(centroids)))
        members = np.split(by_cluster, ends[:-1])
    rows: Ids = np.concatenate([np.sort(members[i]) for i in _chain(centroids)]).astype(np.int64)
    return rows


def renumber(index: Index, order: Ids) -> Index:
    """The same index whose answers are rows of the catalogue `old[order]`. Changed in place.

    ValueError: `order` is not a permutation of the catalogue's rows, or the index is mapped.
    """
    if not index.writable:
        raise ValueError("the index is mapped read-only: load it with mapped=False to renumber it")
    items = index.facts.items
    if order.shape != (items,) or not np.array_equal(np.sort(order), np.arange(items)):
        raise ValueError(
            f"order has shape {list(order.shape)}; expected the {items} rows, each once"
        )
    order = np.ascontiguousarray(order, np.int64)
    inner = base(index.raw)
    if hasattr(inner, "invlists"):
        new_row = np.empty(items, np.int64)
        new_row[order] = np.arange(items)
        _renumber_lists(inner, new_row)
    else:
        inner.permute_entries(order)
    if hasattr(index.raw, "refine_index"):  # its rows are the ids that the lists hold
        faiss.downcast_index(index.raw.refine_index).permute_entries(order)
    return Index(index.raw, replace(index.facts))


def list_ids(inner: Any, number: int) -> Ids:
    """The ids of one inverted list, a view of FAISS's own memory."""
    size = inner.invlists.list_size(number)
    if not size:
        return np.empty(0, np.int64)
    ids: Ids = faiss.rev_swig_ptr(inner.invlists.get_ids(number), size)
    return ids


def _renumber_lists(inner: Any, new_row: Ids) -> None:
    for number in range(inner.nlist):
        ids = list_ids(inner, number)
        ids[:] = new_row[ids]


def _clusters(index: Index) -> tuple[Floats, Ids]:
    """k-means over the vectors -> centroids [C, D] and the cluster of each item [N]."""
    items, width = index.facts.items, index.facts.width
    count = list_count(items)
    kmeans = faiss.Kmeans(
        width, count, niter=10, spherical=True, max_points_per_centroid=SAMPLE, seed=0
    )
    kmeans.cp.min_points_per_centroid = 1  # no warning for a catalogue of ten items
    vectors = index.raw.reconstruct_n(0, items)
    kmeans.train(vectors)
    centroids: Any = kmeans.centroids
    return centroids, kmeans.assign(vectors)[1]


def _chain(centroids: Floats) -> Ids:
    """A greedy path [C] from centroid 0 to the nearest that is left, and so on."""
    # One product of a row at a time: the matrix of all pairs would not fit at large catalogues.
    left = np.zeros(len(centroids), np.float32)
    path = np.empty(len(centroids), np.int64)
    current = 0
    for step in range(len(centroids)):
        path[step] = current
        left[current] = -np.inf
        current = int(np.argmax(centroids @ centroids[current] + left))
    return path


def refresh(index: Index, keep: Mask, added: Floats) -> Index:
    """The same index over another catalogue: first the rows to `keep` [N], in their order, then
    those `added` [n, D]. Changed in place.

    The lists and codes stay those that the earlier items were trained for; after many changes, a
    new index finds more.

    Raises RefreshError: items are to leave an index that cannot drop them; ValueError: the shapes
    do not fit, or the index is mapped.
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


def _drop(index: Index, keep: Mask) -> None:
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
        _renumber_lists(inner, np.cumsum(keep, dtype=np.int64) - 1)
