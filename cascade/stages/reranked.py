"""The rank stage with one more step: it chooses the list from a pool of ranked items (`rerank`).

A release has it if rerank.json lies beside the ranker's graph, which then returns the pool.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cascade.artifact import Array, Mapped, read_json
from cascade.config import Product, Serving
from cascade.spec import PROPENSITIES, RERANK
from cascade.stages import rerank
from cascade.stages.scoring import Score

VECTORS, ORDER = "rerank_vectors.bin", "rerank_order.bin"
FILES = {RERANK, VECTORS, ORDER}


class Reranked(Score):
    """user_dense [B, F_dense], user_ids [B, C], survivors [B, K] -> item_ids and scores [B, R],
    best first apart from the changes by diversity and exploration; with exploration also the
    probability of each place, propensities float32 [B, R], 0 for a pad.

    Raises:
        ArtifactError: rerank.json or a file beside it is damaged.
    """

    def __init__(self, folder: Path, serving: Serving) -> None:
        super().__init__(folder, serving)
        width = read_json(folder / RERANK, self._settings)
        assert self.item_ids is not None
        self._ids, items = self.item_ids, len(self.item_ids)
        mapped = Mapped(VECTORS, "float16", (items, width)), Mapped(ORDER, "int32", (items,))
        for file in mapped:
            file.check(folder)
        self._vectors, self._order = (np.asarray(file.open(folder)) for file in mapped)
        self._random = np.random.default_rng()
        if self._explored:
            self.outputs = (*self.outputs, PROPENSITIES)

    def _settings(self, content: Any) -> int:
        """Read rerank.json -> the width of the vectors."""
        self._results, self._explored = int(content["results"]), int(content["explored"])
        self._diversity = float(content["diversity"])
        self._temperature = float(content["temperature"])
        return int(content["width"])

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        pool_ids, pool_scores, *rest = super().__call__(*inputs)
        users = len(pool_ids)
        ids = np.full((users, self._results), -1, np.int64)
        scores, propensities = np.zeros((2, users, self._results), np.float32)
        for user in range(users):
            real = pool_ids[user] >= 0
            mine, chances = pool_ids[user][real], pool_scores[user][real]
            listed, drawn = self._choose(mine, chances)
            ids[user, : len(listed)] = mine[listed]
            scores[user, : len(listed)] = chances[listed]
            propensities[user, : len(listed)] = drawn
        more = (propensities,) if self._explored else ()
        return ids, scores, *rest, *more

    def _choose(self, ids: Array, scores: Array) -> tuple[Array, Array]:
        """Ids and scores [P] of a pool, best first -> places [<= R] in it, and propensities."""
        if self._diversity:
            vectors = self._vectors[self._rows(ids)].astype(np.float32)
            relevances = rerank.relevance(scores)
            listed = rerank.mmr(relevances, vectors, self._results, self._diversity)
        else:
            listed = np.arange(min(self._results, len(ids)))
        return rerank.explore(scores, listed, self._explored, self._temperature, self._random)

    def _rows(self, ids: Array) -> Array:
        return self._order[np.searchsorted(self._ids, ids, sorter=self._order)]


def remove(folder: Path) -> None:
    """Remove the files that `save` wrote: the ranker then returns its best items."""
    for file in FILES:
        (folder / file).unlink(missing_ok=True)


def vectors(folder: Path) -> Array:
    """The vectors that `save` wrote: float32 [N, D], of length 1."""
    width = int(json.loads((folder / RERANK).read_text())["width"])
    stored: Array = np.fromfile(folder / VECTORS, "<f2").reshape(-1, width)
    return stored.astype(np.float32)


def save(folder: Path, vectors: Any, item_ids: Array, results: int, product: Product) -> None:
    """Write the files of `Reranked` beside the ranker's graph.

    Args:
        vectors: [n, D] each, chunks of the whole catalogue in its order.
    """
    remove(folder)
    width = 0
    with (folder / VECTORS).open("wb") as target:
        for chunk in vectors:
            length = np.linalg.norm(chunk, axis=1, keepdims=True)
            (chunk / np.maximum(length, 1e-12)).astype("<f2").tofile(target)
            width = chunk.shape[1]
    np.argsort(item_ids).astype("<i4").tofile(folder / ORDER)
    content = {
        "results": results,
        "width": width,
        "diversity": product.diversity,
        "explored": product.explored,
        "temperature": product.temperature,
    }
    (folder / RERANK).write_text(json.dumps(content, indent=1) + "\n")
