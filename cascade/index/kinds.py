"""The kinds of index that can be built: FAISS's factory strings and the settings they search with.

A kind is a name of `KINDS` or any factory string of FAISS whose index searches by inner product,
such as `HNSW32,SQ8` or `IVF4000,PQ32x4fs,RFlat`. What an index can do is read off FAISS's object,
not off the name of its kind, so indexes of kinds that earlier releases had names for still work.
"""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from cascade.errors import CascadeError

Kind = str
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# `{lists}` and `{axes}` follow from the catalogue. All codes of these kinds stay in the mapped
# file, so the processes of a machine share them.
KINDS: dict[Kind, str] = {
    "flat": "Flat",
    "sq8": "SQ8",
    "sqfp16": "SQfp16",
    "ivf": "IVF{lists},Flat",
    "ivfsq8": "IVF{lists},SQ8",
    "ivfsq8u": "IVF{lists},SQ8",  # one range of values for all dimensions: see `empty`
    "pcaivfsq8": "PCA{axes},IVF{lists},SQ8",
}
POINTS_PER_CENTROID = 39  # with fewer, FAISS warns that k-means is guessing
LIST_DENSITY = 4.0  # lists per sqrt(N)
REFINE_PERCENT = 200  # of k: how many items a refining index looks at again by their longer codes
library: Any = faiss  # FAISS's type stubs leave much of it out


class IndexKindError(CascadeError, ValueError):
    """A kind of index that FAISS cannot build for these items."""


def has_lists(kind: Kind) -> bool:
    """Whether the number of lists of a kind is chosen here."""
    return "{lists}" in KINDS.get(kind, "")


def affordable(kind: Kind, items: int) -> tuple[Kind, str]:
    """-> the kind that N items can train, and a note if it is not the one asked for."""
    needed = POINTS_PER_CENTROID + 1 if has_lists(kind) else 0
    if items >= needed:
        return kind, ""
    return "flat", f"{kind} needs at least {needed} items; {items} are searched exactly (flat)"


def list_count(items: int, density: float = LIST_DENSITY) -> int:
    """Lists for N items: density * sqrt(N), never fewer than 39 items to a list."""
    wanted = round(density * math.sqrt(items))
    return max(1, min(wanted, items // POINTS_PER_CENTROID))


def empty(
    kind: Kind, items: int, width: int, seed: int, lists: int | None
) -> tuple[Any, dict[str, int]]:
    """-> an untrained index and its parameters, with an effort that is a guess.

    Raises:
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
            clustering.seed, clustering.niter, clustering.max_points_per_centroid = seed, 10, 64
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


def base(raw: Any) -> Any:
    """The index that holds the codes: under refinement or projection, if there is any."""
    if hasattr(raw, "base_index"):
        return base(faiss.downcast_index(raw.base_index))
    return base(faiss.downcast_index(raw.index)) if hasattr(raw, "chain") else raw


def train_projection(raw: Any, vectors: Floats) -> Any:
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


def checked(queries: Floats, width: int, k: int) -> Floats:
    """The queries [B, D] of a search for k rows, float32 and contiguous.

    Raises:
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
