"""The kinds of index, and building one: FAISS's factory strings and the settings they search with.

A kind is a name of `KINDS` or any factory string of FAISS whose index searches by inner product,
such as `HNSW32,SQ8` or `IVF4000,PQ32x4fs,RFlat`. What an index can do is read off FAISS's object,
not off the name of its kind, so indexes of kinds that earlier releases had names for still work.
"""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np

from cascade.errors import CascadeError
from cascade.index.search import Floats, Index, IndexFacts, Kind, base, library

# `{lists}` and `{axes}` follow from the catalogue. All codes of these kinds stay in the mapped
# file, so the processes of a machine share them.
KINDS: dict[Kind, str] = {
    "flat": "Flat",
    "sq8": "SQ8",
    "sqfp16": "SQfp16",
    "ivf": "IVF{lists},Flat",
    "ivfsq8": "IVF{lists},SQ8",
    "ivfsq8u": "IVF{lists},SQ8",  # one range of values for all dimensions: see `_untrained`
    "pcaivfsq8": "PCA{axes},IVF{lists},SQ8",
}
POINTS_PER_CENTROID = 39  # with fewer, FAISS warns that k-means is guessing
LIST_DENSITY = 4.0  # lists per sqrt(N)
REFINE_PERCENT = 200  # of k: how many items a refining index looks at again by their longer codes


class IndexKindError(CascadeError, ValueError):
    """A kind of index that FAISS cannot build for these items."""


def has_lists(kind: Kind) -> bool:
    """Whether the number of lists of a kind is chosen here."""
    return "{lists}" in KINDS.get(kind, "")


def build(
    vectors: Floats, kind: Kind, *, lists: int | None = None, centroids: Floats | None = None
) -> Index:
    """Index item vectors [N, D] for the inner product.

    The number of lists follows FAISS's guidelines: 4 sqrt(N), never fewer than 39 items to a list.
    A catalogue too small for that gets a flat index, and the facts say so. The effort is a guess
    until `tune` replaces it. HNSW, built by several threads, differs a little from run to run.

    Args:
        lists: how many lists, if not 4 sqrt(N); other kinds than the named ones ignore it.
        centroids: [lists, D] of an index over the same items: k-means is then not run again.

    Raises IndexKindError: FAISS has no such kind, or the items are too few to train it; ValueError:
    no vectors, or not finite.
    """
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"item vectors have shape {list(vectors.shape)}; expected [N, D], N > 0")
    _check_finite(vectors)
    vectors = np.ascontiguousarray(vectors, np.float32)
    items, width = vectors.shape
    made, note = kind, ""
    if has_lists(kind) and items <= POINTS_PER_CENTROID:
        needed = POINTS_PER_CENTROID + 1
        made = "flat"
        note = f"{kind} needs at least {needed} items; {items} are searched exactly (flat)"
    lists = lists if centroids is None else len(centroids)
    raw, parameters = _untrained(made, items, width, lists)
    projection = _train_projection(raw, vectors)
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


def list_count(items: int, density: float = LIST_DENSITY) -> int:
    """Lists for N items: density * sqrt(N), never fewer than 39 items to a list."""
    wanted = round(density * math.sqrt(items))
    return max(1, min(wanted, items // POINTS_PER_CENTROID))


def _untrained(kind: Kind, items: int, width: int, lists: int | None) -> tuple[Any, dict[str, int]]:
    """-> an untrained index and its parameters, with an effort that is a guess.

    IndexKindError: FAISS has no such index, or it does not search by inner product.
    """
    axes = max(1, width // 2)
    text = KINDS.get(kind, kind).format(lists=lists or list_count(items), axes=axes)
    try:
        raw: Any = faiss.index_factory(width, text, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:  # FAISS's one error
        raise IndexKindError(
            f"there is no index kind {kind!r}; expected one of {', '.join(KINDS)}, or a factory "
            f"string of FAISS ({str(error).splitlines()[-1].strip()})"
        ) from error
    if raw.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexKindError(f"index kind {kind!r} does not search by inner product")
    inner = base(raw)
    if kind == "ivfsq8u":
        # The factory has no word for it. It decodes faster than one range for each dimension, and
        # loses a little where the dimensions differ in width; the codes are as long.
        inner.sq = faiss.ScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit_uniform)
    for part in (inner, getattr(inner, "pq", None)):
        clustering: Any = getattr(part, "cp", None)
        if clustering is not None:
            # k-means gains little from more, and its defaults cost a minute at 256 dimensions.
            clustering.seed, clustering.niter, clustering.max_points_per_centroid = 0, 10, 64
    if hasattr(inner, "do_polysemous_training"):
        inner.do_polysemous_training = False  # minutes of training for a filter that is unused
    parameters: dict[str, int] = {"axes": axes} if kind == "pcaivfsq8" else {}
    if hasattr(inner, "nprobe"):
        parameters |= {"lists": inner.nlist, "nprobe": max(1, inner.nlist // 8)}
    if hasattr(inner, "hnsw"):
        parameters["efSearch"] = 1024
    if hasattr(raw, "k_factor"):
        parameters["refine_percent"] = REFINE_PERCENT
    return raw, parameters


def _train_projection(raw: Any, vectors: Floats) -> Any:
    """Fit the PCA that an index of vectors [N, D] begins with -> it; None if it begins with none.

    FAISS shifts both items and queries by the items' mean. Of an inner product that would leave a
    term that differs from item to item; a projection alone loses only the axes it drops.
    """
    if not hasattr(raw, "chain"):
        return None
    projection = library.downcast_VectorTransform(raw.chain.at(0))
    if not isinstance(projection, faiss.PCAMatrix):
        return None
    projection.train(vectors)
    library.copy_array_to_vector(np.zeros(projection.d_out, np.float32), projection.b)
    return projection
