"""The index of a release, and the order in which it puts the catalogue."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade import index
from cascade.artifact import Array, ArtifactError, Description
from cascade.config import Serving
from cascade.index import exact
from cascade.models.scorer import Scorer
from cascade.release import newest_version, read_release
from cascade.schema import Schema
from cascade.spec import CATALOGUE_IDS, RANK, RETRIEVE, stage_path
from export.artifacts import frontier
from export.artifacts.stage_files import Catalogue, item_states


@dataclass(frozen=True)
class Retrieval:
    """What was written.

    Args:
        order: int64 [N], the item of the checkpoints that is in each row of the release.
        index: it answers with rows of the release.
    """

    order: Array
    index: Any

    @property
    def facts(self) -> dict[str, Any]:
        """For the release's manifest."""
        facts = self.index.facts
        return facts if isinstance(facts, dict) else vars(facts)

    def __str__(self) -> str:
        facts = self.facts
        if "recall" not in facts:
            return f"{facts['kind']}, {facts['items']} items"
        reached = f"recall@{facts['recall_k']} {facts['recall']:.4f}"
        return f"{facts['kind']} {facts['parameters']}: {reached}"


def write(
    retriever: Scorer,
    items: Catalogue,
    queries: Array,
    k: int,
    schema: Schema,
    folder: Path,
    serving: Serving,
    args: argparse.Namespace,
) -> Retrieval:
    """Build the index that `args.index` names, or take it from `args.retrieve_from`.

    Args:
        queries: user vectors [B, D] that nothing was trained on: the index is tuned to them.
        k: how many items a search is asked for.

    Raises:
        ArtifactError: the other export is of another catalogue.
    """
    exact.remove(folder)
    if args.retrieve_from:
        return _take(args.retrieve_from, items, schema, folder, serving)
    vectors = np.concatenate(list(item_states(retriever, items, RETRIEVE)))
    order = np.arange(len(items))
    if args.index == "exact":
        exact.save(vectors, folder, schema.hash)
        return Retrieval(order, exact.load(folder, schema.hash, serving))
    tried: list[index.Candidate] = []
    if args.index == "auto":
        built, tried = index.auto(vectors, queries, k, args.recall)
    else:
        # Where every item is a candidate, an approximate index could only lose some.
        built = index.build(vectors, args.index if k < len(items) else "flat")
        index.tune(built, vectors, queries, k, args.recall)
    if args.row_order == "index":
        # Near items side by side, here and in the states: a request gathers from few places.
        order = index.order(built)
        built = index.renumber(built, order)
    index.save(built, folder, schema.hash)
    if tried:
        index.save_frontier(folder, built, args.recall, tried)
        frontier.draw(folder)
    return Retrieval(order, built)


def _take(
    other: Path, items: Catalogue, schema: Schema, folder: Path, serving: Serving
) -> Retrieval:
    """The index and the order of the rows of another export of the same checkpoints."""
    version = newest_version(other)
    topology = read_release(other, version)["topology"]
    ranker, retriever = (other / stage_path(topology, name, version) for name in (RANK, RETRIEVE))
    served = Description.load(ranker).mapped[CATALOGUE_IDS].open(ranker)[:, 0]
    by_id = np.argsort(items.item_ids)
    order = by_id[np.searchsorted(items.item_ids[by_id], served).clip(max=len(by_id) - 1)]
    if len(served) != len(by_id) or not np.array_equal(items.item_ids[order], served):
        raise ArtifactError(f"{other} was exported from another catalogue than these checkpoints")
    if exact.present(retriever):
        raise ArtifactError(f"{other} retrieves exactly: give --index exact instead")
    found = index.load(retriever, schema.hash, mapped=False)
    index.save(found, folder, schema.hash)
    return Retrieval(order, found)
