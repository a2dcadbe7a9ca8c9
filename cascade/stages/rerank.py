"""The rank stage with one more step: it chooses the list from a pool of ranked items, for diversity
and, in part, at random. A release has it if rerank.json lies beside the ranker's graph, which then
returns the pool.

Maximal marginal relevance (Carbonell and Goldstein, "The use of MMR, diversity-based reranking for
reordering documents and producing summaries", SIGIR 1998) takes one item after the other, each
time the one whose score, less its similarity to the items taken before, is largest.

Exploration draws the last places of a list by a softmax of the scores, one after the other and
without replacement (Plackett and Luce). The answer contains the probability of each draw: clicks
can be weighted by it as if every item had been shown (Horvitz and Thompson, 1952).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.artifact import Array, Mapped, read_json
from cascade.config import DEFAULT_PRODUCT, Product, Serving
from cascade.spec import PROPENSITIES, RERANK
from cascade.stages.scoring import Score

Places = npt.NDArray[np.int64]
VECTORS, ORDER = "rerank_vectors.bin", "rerank_order.bin"
FILES = {RERANK, VECTORS, ORDER}


class Reranked(Score):
    """user_dense [B, F_dense], user_ids [B, C], survivors [B, K] -> item_ids and scores [B, R],
    best first apart from the changes by diversity and exploration; what else the ranker gives of an
    item; with exploration also the probability of each place, propensities float32 [B, R], 0 for a
    pad.

    ArtifactError: rerank.json or a file beside it is damaged.
    """

    def __init__(self, folder: Path, serving: Serving, product: Product = DEFAULT_PRODUCT) -> None:
        super().__init__(folder, serving, product)
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
        others = [np.zeros((users, self._results, *x.shape[2:]), x.dtype) for x in rest]
        for user in range(users):
            real = pool_ids[user] >= 0
            mine, chances = pool_ids[user][real], pool_scores[user][real]
            listed, drawn = self._choose(mine, chances)
            ids[user, : len(listed)] = mine[listed]
            scores[user, : len(listed)] = chances[listed]
            propensities[user, : len(listed)] = drawn
            for whole, other in zip(rest, others, strict=True):
                other[user, : len(listed)] = whole[user][real][listed]
        more = (propensities,) if self._explored else ()
        return ids, scores, *others, *more

    def _choose(self, ids: Array, scores: Array) -> tuple[Array, Array]:
        """Ids and scores [P] of a pool, best first -> places [<= R] in it, and propensities."""
        if self._diversity:
            rows = self._order[np.searchsorted(self._ids, ids, sorter=self._order)]
            vectors = self._vectors[rows].astype(np.float32)
            listed = mmr(relevance(scores), vectors, self._results, self._diversity)
        else:
            listed = np.arange(min(self._results, len(ids)))
        return explore(scores, listed, self._explored, self._temperature, self._random)


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
    """Write the files of `Reranked` beside the ranker's graph. The vectors come in chunks [n, D],
    in the order of the catalogue."""
    remove(folder)
    width = 0
    with (folder / VECTORS).open("wb") as target:
        for chunk in vectors:
            length = np.linalg.norm(chunk, axis=1, keepdims=True)
            target.write((chunk / np.maximum(length, 1e-12)).astype("<f2").tobytes())
            width = chunk.shape[1]
    (folder / ORDER).write_bytes(np.argsort(item_ids).astype("<i4").tobytes())
    content = {
        "results": results,
        "width": width,
        "diversity": product.diversity,
        "explored": product.explored,
        "temperature": product.temperature,
    }
    (folder / RERANK).write_text(json.dumps(content, indent=1) + "\n")


def relevance(scores: Array) -> Array:
    """Scores [P] scaled to 0 … 1, so that a weight means the same for every user."""
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)


def mmr(relevances: Array, vectors: Array, count: int, diversity: float) -> Places:
    """The places of `count` items (all, if they are fewer), in the order of the list.

    Args:
        relevances: [P], from 0 to 1. vectors: [P, D], of length 1.
        diversity: 1 - lambda of the paper: 0 = by relevance only, 1 = by dissimilarity only.
    """
    gain = (1 - diversity) * np.asarray(relevances, np.float64)
    nearest = np.full(len(gain), -np.inf)  # the largest similarity to the items taken
    taken = np.zeros(min(count, len(gain)), np.int64)
    left = np.ones(len(gain), bool)
    for place in range(len(taken)):
        worth = gain - diversity * nearest if place else gain
        taken[place] = best = int(np.argmax(np.where(left, worth, -np.inf)))
        left[best] = False
        # Not by BLAS, which would wake its threads for a product of microseconds.
        nearest = np.maximum(nearest, np.einsum("pd,d->p", vectors, vectors[best]))
    return taken


def explore(
    scores: Array, listed: Places, drawn: int, temperature: float, random: np.random.Generator
) -> tuple[Places, Array]:
    """Draw the last `drawn` places of a list from all items that are not before them -> the new
    list, and the probability with which each item got its place, given those before.

    Args:
        scores: [P], probabilities of a click; their log-odds over the temperature are the logits.
            Of a formula's scores, those beyond 0 and 1 count as 0 and 1.
        listed: places of the list without exploration.
    """
    found, propensities = listed.copy(), np.ones(len(listed))
    chances = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)  # float32 reaches 0 and 1
    logits = np.log(chances / (1 - chances)) / temperature
    left = np.ones(len(scores), bool)
    first = max(0, len(listed) - drawn)
    left[listed[:first]] = False
    for place in range(first, len(listed)):
        weights = np.where(left, np.exp(logits - logits[left].max()), 0)
        weights /= weights.sum()
        found[place] = pick = int(random.choice(len(weights), p=weights))
        propensities[place] = weights[pick]
        left[pick] = False
    return found, propensities
