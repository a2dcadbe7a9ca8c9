"""The kinds of index that can be built: FAISS's recipe, its knobs and its growth, one row each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import faiss
import numpy as np
import numpy.typing as npt

Kind = Literal[
    "flat",
    "sq8",
    "sqfp16",
    "ivf",
    "ivfsq8",
    "ivfsq8u",
    "pcaivfsq8",
    "ivfpq",
    "ivffs",
    "hnsw",
    "hnswsq8",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

POINTS_PER_CENTROID = 39  # fewer, and FAISS warns that k-means is guessing
HNSW_LINKS = 32
LIST_DENSITY = 4.0  # lists per sqrt(N)
FASTSCAN_CENTROIDS = 16  # a fast-scan code has 4 bits


@dataclass(frozen=True)
class Recipe:
    """How a kind is made and what is known about it beforehand.

    Args:
        text: FAISS's factory string; `{axes}`, `{lists}`, `{quantizers}` and `{bits}` are filled
            in.
        effort: the knob that buys recall with time; None where nothing can be set.
        growth: exponent of the cost of one search against N at equal recall, for the first guess
            of which kinds can win at a size they were not yet built at.
        points: items that it takes to train it.
        refines: a first search by short codes, then the best again by longer ones. How many are
            looked at twice is `refine_percent` of the k asked for.
        mapped: all of its codes stay in the mapped file. Fast scan reads its codes into memory of
            its own (FAISS 1.15: they lie in an aligned table that the file does not hold).
        uniform: one range of values for all dimensions, where FAISS's 8 bits otherwise have one for
            each. It decodes faster and loses a little where the dimensions differ in width.
    """

    text: str
    effort: str | None
    growth: float
    points: int = 0
    refines: bool = False
    mapped: bool = True
    uniform: bool = False


_LISTS = POINTS_PER_CENTROID + 1
RECIPES: dict[Kind, Recipe] = {
    "flat": Recipe("Flat", None, 1.0),
    "sq8": Recipe("SQ8", None, 1.0),
    "sqfp16": Recipe("SQfp16", None, 1.0),
    "ivf": Recipe("IVF{lists},Flat", "nprobe", 0.5, _LISTS),
    "ivfsq8": Recipe("IVF{lists},SQ8", "nprobe", 0.5, _LISTS),
    "ivfsq8u": Recipe("IVF{lists},SQ8", "nprobe", 0.5, _LISTS, uniform=True),
    "pcaivfsq8": Recipe("PCA{axes},IVF{lists},SQ8", "nprobe", 0.5, _LISTS),
    "ivfpq": Recipe(
        "IVF{lists},PQ{quantizers}x{bits}", "nprobe", 0.5, POINTS_PER_CENTROID * FASTSCAN_CENTROIDS
    ),
    "ivffs": Recipe(
        "IVF{lists},PQ{quantizers}x4fs,Refine(SQ8)",
        "nprobe",
        0.5,
        POINTS_PER_CENTROID * FASTSCAN_CENTROIDS,
        refines=True,
        mapped=False,
    ),
    "hnsw": Recipe(f"HNSW{HNSW_LINKS},Flat", "efSearch", 0.1),
    "hnswsq8": Recipe(f"HNSW{HNSW_LINKS},SQ8", "efSearch", 0.1),
}
EFFORT: dict[Kind, str] = {kind: r.effort for kind, r in RECIPES.items() if r.effort}


def affordable(kind: Kind, items: int) -> tuple[Kind, str]:
    """-> the kind that N items can train, and a note where it is not the one asked for."""
    needed = RECIPES[kind].points
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
    """-> an untrained index and the sizes it was given."""
    parameters: dict[str, int] = {}
    if EFFORT.get(kind) == "nprobe":
        parameters["lists"] = lists or list_count(items)
        parameters["nprobe"] = max(1, parameters["lists"] // 8)
    if EFFORT.get(kind) == "efSearch":
        parameters = {"links": HNSW_LINKS, "efSearch": 1024}
    if kind == "pcaivfsq8":
        parameters["axes"] = max(1, width // 2)
    if kind == "ivfpq":
        bits = min(8, (items // POINTS_PER_CENTROID).bit_length() - 1)  # as many as can be trained
        parameters |= {"quantizers": _parts(width, 4), "bits": bits}
    if kind == "ivffs":
        parameters |= {"quantizers": _parts(width, 2), "refine_percent": 200}
    recipe = RECIPES[kind].text.format(**parameters)
    raw: Any = faiss.index_factory(width, recipe, faiss.METRIC_INNER_PRODUCT)
    inner = base(raw)
    if RECIPES[kind].uniform:  # FAISS has no word for it in its recipes; the codes are as long
        inner.sq = faiss.ScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit_uniform)
    if "lists" in parameters:
        _shorten(inner.cp, seed)
    if "quantizers" in parameters:
        _shorten(inner.pq.cp, seed)
    if kind == "ivfpq":
        inner.do_polysemous_training = False  # minutes spent on a filter that is not used here
    return raw, parameters


def base(raw: Any) -> Any:
    """The index that holds the codes: under refinement or projection, where there is one."""
    for outer in ("base_index", "chain"):
        if hasattr(raw, outer):
            return faiss.downcast_index(raw.base_index if outer == "base_index" else raw.index)
    return raw


def train_projection(raw: Any, vectors: Floats) -> Any:
    """Fit the projection that an index of vectors [N, D] begins with -> it, None where none does.

    FAISS shifts both items and queries by the items' mean. Of an inner product that would leave a
    term that differs from item to item; a projection alone loses nothing but the axes it drops.
    """
    if not hasattr(raw, "chain"):
        return None
    library: Any = faiss  # FAISS's type stubs leave it out
    projection = library.downcast_VectorTransform(raw.chain.at(0))
    projection.train(vectors)
    library.copy_array_to_vector(np.zeros(projection.d_out, np.float32), projection.b)
    return projection


def set_knob(raw: Any, name: str, value: int) -> None:
    """Give FAISS one of the values that may change after building."""
    if name == "refine_percent":
        raw.k_factor = value / 100
    elif name == "efSearch":
        raw.hnsw.efSearch = value
    else:
        base(raw).nprobe = value


def _shorten(clustering: Any, seed: int) -> None:
    """k-means gains little from more, and its defaults cost a minute at 256 dimensions."""
    clustering.seed, clustering.niter, clustering.max_points_per_centroid = seed, 10, 64


def _parts(width: int, least: int) -> int:
    """How many equal parts a vector is cut into: the narrowest of `least` dimensions or more."""
    return width // next(part for part in range(min(least, width), width + 1) if width % part == 0)
