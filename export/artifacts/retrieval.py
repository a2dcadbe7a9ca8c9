"""The index of a release, and the order in which it puts the catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from matplotlib.figure import Figure

from cascade import index
from cascade.artifact import Array, ArtifactError, Description
from cascade.index import exact
from cascade.release import newest_version, read_release
from cascade.spec import CATALOGUE_IDS, RANK, RETRIEVE, stage_path
from export.context import Build, Source

PLOT = "frontier.png"


@dataclass(frozen=True)
class Retrieval:
    """An index on disk."""

    order: Array  # int64 [N], the row of the catalogue before that is in each row of the release
    index: Any  # answers with rows of the release

    @property
    def facts(self) -> dict[str, Any]:
        """What release.json says about the index."""
        facts = self.index.facts
        return facts if isinstance(facts, dict) else vars(facts)

    def __str__(self) -> str:
        facts = self.facts
        if "recall" not in facts:
            return f"{facts['kind']}, {facts['items']} items"
        reached = f"recall@{facts['recall_k']} {facts['recall']:.4f}"
        return f"{facts['kind']} {facts['parameters']}: {reached}"


def write(
    build: Build,
    source: Source,
    vectors: Iterable[Array],
    queries: Array,
    own_index: Path | None = None,
) -> Retrieval:
    """Build the index that `build.index` names, tuned to user vectors [B, D] that no model was
    trained on, or take that of `build.retrieve_from`, or FAISS's file `own_index` over the vectors.
    Raises ArtifactError: it does not fit.

    Args:
        vectors: of the items, float32 [n, D] each; read where an index is built, or an effort set.
    """
    folder, schema, items = build.folder(RETRIEVE), source.schema, source.items
    exact.remove(folder)
    if build.retrieve_from:
        taken = _take(build.retrieve_from, source, folder)
        if build.effort is not None:
            ordered = np.concatenate([*vectors])[taken.order]
            _set_effort(taken.index, build, ordered, queries)
            index.save(taken.index, folder, schema.hash)
        return taken
    order, k = np.arange(len(items)), min(build.sizes.candidates, len(items))
    if own_index:
        raw = faiss.read_index(str(own_index))
        built = index.adopt(raw, np.concatenate([*vectors]), queries, k)
        index.save(built, folder, schema.hash)
        return Retrieval(order, built)
    vectors = np.concatenate([*vectors])
    if build.index == "exact":
        exact.save(vectors, folder, schema.hash)
        return Retrieval(order, exact.load(folder, schema.hash, build.serving))
    tried: list[index.Candidate] = []
    if build.index == "auto":
        built, tried = index.auto(vectors, queries, k, build.recall)
    else:
        # Where every item is a candidate, an approximate index could only lose some.
        built = index.build(vectors, build.index if k < len(items) else "flat")
        index.tune(built, vectors, queries, k, build.recall)
    if build.row_order == "index":
        # Items of one list lie side by side, here and in the item states, so that a request
        # gathers from few places.
        order = index.order(built)
        built = index.renumber(built, order)
    index.save(built, folder, schema.hash)
    if tried:
        index.save_frontier(folder, built, build.recall, tried)
        draw_frontier(folder)
    return Retrieval(order, built)


def _take(other: Path, source: Source, folder: Path) -> Retrieval:
    """The index and the order of the rows of another export of the same checkpoints."""
    version = newest_version(other)
    topology = read_release(other, version)["topology"]
    ranker, retriever = (other / stage_path(topology, name, version) for name in (RANK, RETRIEVE))
    served = Description.load(ranker).mapped[CATALOGUE_IDS].open(ranker)[:, 0]
    item_ids = source.items.item_ids
    by_id = np.argsort(item_ids)
    order = by_id[np.searchsorted(item_ids[by_id], served).clip(max=len(by_id) - 1)]
    if len(served) != len(by_id) or not np.array_equal(item_ids[order], served):
        raise ArtifactError(f"{other} was exported from another catalogue than these checkpoints")
    if exact.present(retriever):
        raise ArtifactError(f"{other} retrieves exactly: give --index exact instead")
    found = index.load(retriever, source.schema.hash, mapped=False)
    index.save(found, folder, source.schema.hash)
    return Retrieval(order, found)


def _set_effort(taken: index.Index, build: Build, vectors: Array, queries: Array) -> None:
    """Search with `build.effort`, and measure anew how much that finds."""
    assert build.effort is not None
    taken.set_effort(build.effort)
    k = min(build.sizes.candidates, len(vectors))
    recall = index.adopt(taken.raw, vectors, queries, k).facts.recall
    timeless = replace(taken.facts, recall=recall, recall_k=k, latency_us=None, exact_us=None)
    taken.facts = timeless.noted(f"{taken.effort} as planned")


def draw_frontier(folder: Path) -> Path:
    """folder/frontier.json -> folder/frontier.png; up and to the left is better. Each line is a
    kind over all items, a hollow mark one that was dropped, timed on a sample of the items."""
    found = json.loads((folder / index.FRONTIER).read_text())
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for number, kind in enumerate(dict.fromkeys(c["kind"] for c in found["candidates"])):
        points = [c for c in found["candidates"] if c["kind"] == kind]
        kept = sorted((c["latency_us"], c["recall"]) for c in points if not c["note"])
        dropped = [(c["latency_us"], c["recall"]) for c in points if c["note"]]
        colour = f"C{number % 10}"
        if kept:
            axes.plot(*zip(*kept, strict=True), marker="o", color=colour, label=kind)
        if dropped:
            look: dict[str, Any] = {
                "facecolors": "none",
                "edgecolors": colour,
                "label": None if kept else kind,
            }
            axes.scatter(*zip(*dropped, strict=True), **look)
    for c in found["candidates"]:
        if c["chosen"]:
            axes.plot(c["latency_us"], c["recall"], "k*", markersize=14, label="chosen", zorder=3)
    axes.axhline(found["target"], color="gray", linestyle=":", label="target")
    if found["exact_us"]:
        axes.axvline(found["exact_us"], color="black", linestyle="--", label="exact search")
    axes.set(
        xscale="log",
        xlabel="one query on one thread, microseconds",
        ylabel=f"recall at {found['k']}",
        title=f"{found['items']:,} items; hollow: dropped on a sample",
    )
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(folder / PLOT, dpi=120)
    return folder / PLOT
