"""Near items side by side: catalogue rows in the order of the index's lists.

The candidates of one user come from a few lists. Where the item states of the scoring stages lie in
the same order, a gather of a thousand rows reads a few stretches of memory instead of a thousand
places.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import faiss
import numpy as np

from cascade.index.kinds import Floats, Ids, base, list_count
from cascade.index.search import Index

SAMPLE = 64  # vectors per centroid for the k-means of an index that has no lists


def order(index: Index) -> Ids:
    """-> permutation int64 [N]: what is to be row i of the new catalogue is row `order[i]` now.

    Rows of one list are neighbours, and each list is followed by the nearest one that is left. An
    index without lists is cut into clusters for this.
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

    Raises:
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
        for number in range(inner.nlist):
            ids = list_ids(inner, number)
            ids[:] = new_row[ids]
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


def _clusters(index: Index) -> tuple[Floats, Ids]:
    """k-means over what the index holds -> centroids [C, D] and the cluster of each item [N]."""
    items, width = index.facts.items, index.facts.width
    count = list_count(items)
    kmeans = faiss.Kmeans(
        width, count, niter=10, spherical=True, max_points_per_centroid=SAMPLE, seed=0
    )
    kmeans.cp.min_points_per_centroid = 1  # a catalogue of ten items is no reason for a warning
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
