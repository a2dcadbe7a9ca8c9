"""The index over item vectors: which items have the largest inner product with a user vector.

Wraps FAISS (Douze et al., "The Faiss library", 2024, arXiv:2401.08281): sizes chosen from the
catalogue, search effort tuned to a recall target against exact search, files that are mapped
rather than read, so that all processes of a machine share one copy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt

Kind = Literal["flat", "ivf", "ivfpq", "hnsw"]
KINDS: tuple[Kind, ...] = ("flat", "ivf", "ivfpq", "hnsw")

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

FILE, FACTS = "index.faiss", "index.json"
POINTS_PER_CENTROID = 39  # fewer, and FAISS warns that k-means is guessing
HNSW_LINKS = 32
HNSW_LARGEST_EFFORT = 16  # times k: beyond that exact search is faster
# What is called effort here: the knob of each kind that buys recall with time.
EFFORT: dict[Kind, str] = {"ivf": "nprobe", "ivfpq": "nprobe", "hnsw": "efSearch"}


class IndexFileError(ValueError):
    """An index on disk that cannot be served: damaged, or made for another schema."""


@dataclass(frozen=True)
class IndexFacts:
    """What index.json tells about an index.

    Args:
        kind: what was built; `flat` where the catalogue is too small for what was asked.
        items: N. width: D.
        parameters: the sizes that were chosen, the search effort among them.
        recall: share of the exact top `recall_k` that it finds, on the queries of `tune`; None
            before that.
        note: what a person should know: a kind replaced, a recall target missed.
    """

    kind: Kind
    items: int
    width: int
    parameters: dict[str, int]
    recall: float | None = None
    recall_k: int | None = None
    note: str = ""


class Index:
    """A FAISS index and what is known about it. Made by `build` or `load`."""

    def __init__(self, raw: Any, facts: IndexFacts) -> None:
        self.raw = raw
        self.facts = facts
        if facts.kind in EFFORT:
            self.set_effort(facts.parameters[EFFORT[facts.kind]])

    def search(self, queries: Floats, k: int) -> Ids:
        """[B, D] -> catalogue rows int64 [B, k], best first, -1 where there are no more."""
        return self.search_with_scores(queries, k)[0]

    def search_with_scores(self, queries: Floats, k: int) -> tuple[Ids, Floats]:
        """[B, D] -> rows int64 [B, k] and inner products float32 [B, k]; a pad has -inf.

        Raises:
            ValueError: the queries are not [B, D], or k is not positive.
        """
        if queries.ndim != 2 or queries.shape[1] != self.facts.width:
            raise ValueError(
                f"queries have shape {list(queries.shape)}; expected [B, {self.facts.width}], the "
                "width of the item vectors"
            )
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least one item")
        scores, rows = self.raw.search(np.ascontiguousarray(queries, np.float32), k)
        return rows, np.where(rows < 0, np.float32(-np.inf), scores)

    def set_effort(self, value: int) -> None:
        """Trade time for recall: the lists that an IVF index probes, or the length of the queue
        that HNSW keeps. `tune` finds the value."""
        if self.facts.kind == "flat":
            raise ValueError("a flat index is exact: it has no effort to set")
        name = EFFORT[self.facts.kind]
        setattr(self.raw.hnsw if self.facts.kind == "hnsw" else self.raw, name, value)
        self.facts = replace(self.facts, parameters={**self.facts.parameters, name: value})


def set_threads(count: int) -> None:
    """Threads that FAISS may use, for the whole process. A server shares its cores out by this."""
    faiss.omp_set_num_threads(count)


def build(vectors: Floats, kind: Kind, *, seed: int = 0) -> Index:
    """Index item vectors [N, D] for the inner product.

    Sizes follow FAISS's guidelines: 4 sqrt(N) lists, never fewer than 39 items to a list; product
    quantisers over 4 or more dimensions each, 8 bits where there are items enough to train them;
    32 links per HNSW node. A catalogue too small for any of that gets a flat index, and the facts
    say so. The effort is a guess until `tune` replaces it. HNSW draws its levels from a seed of
    its own and, built by several threads, differs a little from run to run.

    Raises:
        ValueError: no vectors, not finite, or an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no index kind {kind!r}; choose one of {list(KINDS)}")
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"item vectors have shape {list(vectors.shape)}; expected [N, D], N > 0")
    if not np.isfinite(vectors).all():
        row = int(np.argwhere(~np.isfinite(vectors))[0][0])
        raise ValueError(f"the vector of item row {row} is not finite: the item tower diverged")
    vectors = np.ascontiguousarray(vectors, np.float32)
    items, width = vectors.shape
    made, note = _affordable(kind, items)
    raw, parameters = _empty(made, items, width, seed)
    raw.train(vectors)
    raw.add(vectors)
    return Index(raw, IndexFacts(made, items, width, parameters, note=note))


def _affordable(kind: Kind, items: int) -> tuple[Kind, str]:
    """-> the kind that N items can train, and a note where it is not the one asked for."""
    needed = {"ivf": POINTS_PER_CENTROID + 1, "ivfpq": POINTS_PER_CENTROID * 16}.get(kind, 0)
    if items >= needed:
        return kind, ""
    return "flat", f"{kind} needs at least {needed} items; {items} are searched exactly (flat)"


def _empty(kind: Kind, items: int, width: int, seed: int) -> tuple[Any, dict[str, int]]:
    """-> an untrained index and the sizes it was given. Written as one of FAISS's own recipes."""
    if kind == "flat":
        recipe, parameters = "Flat", {}
    elif kind == "hnsw":
        recipe, parameters = f"HNSW{HNSW_LINKS},Flat", {"links": HNSW_LINKS, "efSearch": 1024}
    else:
        lists = min(round(4 * items**0.5), items // POINTS_PER_CENTROID)
        recipe, parameters = f"IVF{lists},Flat", {"lists": lists, "nprobe": max(1, lists // 8)}
    if kind == "ivfpq":
        bits = min(8, (items // POINTS_PER_CENTROID).bit_length() - 1)  # as many as can be trained
        quantizers = _quantizers(width)
        recipe = recipe.replace("Flat", f"PQ{quantizers}x{bits}")
        parameters |= {"quantizers": quantizers, "bits": bits}
    raw: Any = faiss.index_factory(width, recipe, faiss.METRIC_INNER_PRODUCT)
    if kind in ("ivf", "ivfpq"):
        _shorten(raw.cp, seed)
    if kind == "ivfpq":
        _shorten(raw.pq.cp, seed)
        raw.do_polysemous_training = False  # minutes spent on a filter that is not used here
    return raw, parameters


def _shorten(clustering: Any, seed: int) -> None:
    """k-means gains little from more, and its defaults cost a minute at 256 dimensions."""
    clustering.seed, clustering.niter, clustering.max_points_per_centroid = seed, 10, 64


def _quantizers(width: int) -> int:
    """How many equal parts a vector is quantised in: the narrowest of 4 dimensions or more."""
    return width // next(part for part in range(min(4, width), width + 1) if width % part == 0)


def recall_at(found: Ids, vectors: Floats, queries: Floats, k: int) -> float:
    """Share of the exact top k that `found` [B, >= k] holds, over all queries.

    Tie-aware: an item counts when its inner product is as good as the exact k-th best, whichever
    of several equal items it is. Pads never count; of a catalogue with N < k, all N can be found.
    """
    return _recall(found[:, :k], vectors, queries, _kth_best(vectors, queries, k), k)


def _kth_best(vectors: Floats, queries: Floats, k: int) -> Floats:
    """Exact search -> the k-th best inner product of each query [B]; the last where N < k."""
    best, _ = faiss.knn(queries, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(best[:, -1], np.float32)


def _recall(found: Ids, vectors: Floats, queries: Floats, kth_best: Floats, k: int) -> float:
    wanted = min(k, len(vectors))
    hits = 0
    for query, rows, threshold in zip(queries, found, kth_best, strict=True):
        rows = np.unique(rows[rows >= 0])
        # The two sums run in different orders: allow for float32's rounding.
        slack = 1e-5 * max(1.0, abs(float(threshold)))
        hits += min(wanted, int((vectors[rows] @ query >= threshold - slack).sum()))
    return hits / (wanted * len(queries))


def tune(index: Index, vectors: Floats, queries: Floats, k: int, target: float = 0.95) -> float:
    """Set the least effort whose recall@k on these queries reaches the target.

    Args:
        vectors: [N, D], what the index was built over: the exact answer is computed from them.
        queries: [B, D], user vectors that were not trained on; a few hundred are enough.

    Returns:
        The recall reached. Below the target only where the largest effort does not reach it; the
        facts say so. They record the recall either way.
    """
    kth_best = _kth_best(vectors, queries, k)

    def recall() -> float:
        return _recall(index.search(queries, k), vectors, queries, kth_best, k)

    def enough(effort: int) -> bool:
        index.set_effort(effort)
        return recall() >= target

    if index.facts.kind != "flat":
        lists = index.facts.parameters.get("lists")
        low, high = (1, lists) if lists else (k, max(k, min(len(vectors), HNSW_LARGEST_EFFORT * k)))
        index.set_effort(_least(low, high, enough))
    reached, note = recall(), index.facts.note
    if reached < target:
        missed = f"recall@{k} is {reached:.3f} at the largest effort; {target} was wanted"
        note = f"{note}; {missed}" if note else missed
    index.facts = replace(index.facts, recall=reached, recall_k=k, note=note)
    return reached


def _least(low: int, high: int, enough: Callable[[int], bool]) -> int:
    """The least value in [low, high] that is enough, `high` if none: doubling, then halving."""
    value = low
    while value < high and not enough(value):
        low, value = value + 1, min(2 * value, high)
    high = value
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def save(index: Index, folder: Path, schema_hash: str) -> None:
    """Write index.faiss and index.json. A process that has the old file mapped keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    faiss.write_index(index.raw, str(partial))
    file = {"bytes": partial.stat().st_size, "sha256": _sha256(partial)}
    made = {"schema_hash": schema_hash, "faiss": faiss.__version__}
    os.replace(partial, folder / FILE)
    text = json.dumps({**asdict(index.facts), **made, **file}, indent=1)
    (folder / FACTS).write_text(text + "\n")


def load(folder: Path, schema_hash: str, *, mapped: bool = True, verify: bool = True) -> Index:
    """Open what `save` wrote.

    Args:
        mapped: map the file read-only: nothing is copied, and all processes share the pages. It
            holds for all four kinds (IO_FLAG_MMAP_IFC, FAISS 1.11 or later; the older
            IO_FLAG_MMAP maps inverted lists only and reads flat and HNSW whole).
        verify: compare the file's sha256. FAISS itself notices a short file but not a changed
            byte, which in a graph may crash the process.

    Raises:
        IndexFileError: missing, damaged, or made for another schema.
    """
    facts, file = _read_facts(folder / FACTS)
    if file["schema_hash"] != schema_hash:
        raise IndexFileError(
            f"{folder} was made for schema {file['schema_hash']}, but the schema here is "
            f"{schema_hash}. Export all stages from one set of checkpoints."
        )
    path = folder / FILE
    size = path.stat().st_size if path.is_file() else -1
    if size != file["bytes"]:
        what = f"has {size} bytes" if size >= 0 else "is missing"
        raise IndexFileError(f"{path} {what}; {file['bytes']} bytes were saved: copy it again")
    if verify and _sha256(path) != file["sha256"]:
        raise IndexFileError(
            f"{path} is not the file that was saved (sha256 differs): copy it again"
        )
    try:
        raw = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:  # FAISS's one error for all that a file can have wrong
        raise IndexFileError(f"FAISS {faiss.__version__} cannot read {path}: {error}") from error
    if (raw.ntotal, raw.d) != (facts.items, facts.width):
        raise IndexFileError(
            f"{path} holds {raw.ntotal} vectors of width {raw.d}; {FACTS} speaks of {facts.items} "
            f"of width {facts.width}: the two files are of different exports"
        )
    return Index(raw, facts)


def _read_facts(path: Path) -> tuple[IndexFacts, dict[str, Any]]:
    """index.json -> the facts, and what it says about the file beside it."""
    try:
        saved = json.loads(path.read_text())
        facts = IndexFacts(**{name: saved[name] for name in IndexFacts.__dataclass_fields__})
        return facts, {name: saved[name] for name in ("schema_hash", "bytes", "sha256")}
    except FileNotFoundError as error:
        raise IndexFileError(f"{path} is missing: export the index again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise IndexFileError(f"{path} does not describe an index: {error!r}") from error


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
