"""Lists of items that no network is needed for: popularity, item neighbours and EASE.

Every list leaves out what the user has seen. Items are rows of the catalogue. What says nothing of
a user, as the neighbours of no item, is in the order of popularity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cascade.data.seen import Events
from cascade.errors import CascadeError
from cascade.training.choices.ease import MOST_OF_USER, users_by_items, weights

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

EASE_ITEMS = 20_000  # the square matrix of so many takes 1.6 GB, and its inverse minutes
USERS_PER_BLOCK, SCORES_PER_BLOCK = 64, 2**23  # whichever is fewer, and at least one user


class TooManyItems(CascadeError, ValueError):
    """A catalogue that a closed form does not fit."""


class Histories(NamedTuple):
    """Items by query: those of query q are `items[offsets[q] : offsets[q + 1]]`."""

    offsets: Ids  # [Q + 1]
    items: Ids  # [offsets[Q]]

    @classmethod
    def none(cls, queries: int) -> Histories:
        """Of users of whom nothing is known."""
        return cls(np.zeros(queries + 1, np.int64), np.zeros(0, np.int64))

    def of(self, query: int) -> Ids:
        """The items of one query."""
        return self.items[self.offsets[query] : self.offsets[query + 1]]

    def take(self, queries: Ids) -> Histories:
        """Those of some queries."""
        size = np.diff(self.offsets)[queries]
        offsets = np.concatenate(([0], np.cumsum(size)))
        place = np.arange(offsets[-1]) + np.repeat(self.offsets[queries] - offsets[:-1], size)
        return Histories(offsets, self.items[place])

    def hold(self, lists: Ids) -> npt.NDArray[np.bool_]:
        """Whether each item of lists [Q, K] is in the history of its query; no pad is."""
        span = int(max(lists.max(initial=0), self.items.max(initial=0))) + 1
        lines = np.arange(len(lists))
        held = np.repeat(lines, np.diff(self.offsets)) * span + self.items
        return (lists >= 0) & np.isin(lines[:, None] * span + np.maximum(lists, 0), held)

    def matrix(self, items: int) -> sp.csr_matrix:
        """[Q, items], 1 where an item is in a history."""
        data = np.ones(len(self.items), np.float32)
        found = sp.csr_matrix((data, self.items, self.offsets), (len(self.offsets) - 1, items))
        found.sum_duplicates()
        found.data[:] = 1
        return found


def popularity(events: Events, items: int) -> Ids:
    """How often each item was a positive, [items]."""
    counts: Ids = np.bincount(events.item[events.label > 0.5], minlength=items)
    return counts


def recent_popularity(events: Events, items: int, share: float = 0.1) -> Floats:
    """The same in the last `share` of the time; equals are in the order of all time."""
    counts = popularity(events, items)
    if not len(events.time):
        return counts.astype(np.float64)
    first, last = float(events.time.min()), float(events.time.max())
    late = popularity(events.take(events.time >= last - share * (last - first)), items)
    found: Floats = late + counts / (counts.max() + 1.0)
    return found


def popular_lists(counts: npt.NDArray[Any], seen: Histories, k: int) -> Ids:
    """The k items [Q, k] of the highest counts [N] that each user has not seen, -1 where fewer have
    a count; of equals, the lower row comes first."""
    scores = _places(counts)
    return best_unseen(
        lambda some: np.tile(scores, (some.stop - some.start, 1)), seen, len(counts), k
    )


@dataclass(frozen=True)
class ItemModel:
    """Scores of items: the sum over what a user liked of the items' weights.

    Attributes:
        active: [M], the items with a positive; the others have no weights.
        weights: [M, M], dense or sparse; row i is what having liked item i says of the others.
        counts: [N], of all items.
    """

    active: Ids
    weights: Any
    counts: Ids

    def lists(self, liked: Histories, seen: Histories, k: int) -> Ids:
        """The best k unseen items [Q, k] of users who liked some; -1 where there are fewer."""
        items = len(self.counts)
        profile = liked.matrix(items)[:, self.active]
        # What has no score comes behind what has one, and before what is scored down.
        places = _places(self.counts)
        unscored = np.where(np.isfinite(places), (places / items - 2) * 1e-9, -np.inf)

        def scores(some: slice) -> Floats:
            product = profile[some] @ self.weights
            dense = product.toarray() if sp.issparse(product) else np.asarray(product)
            found = np.tile(unscored, (len(dense), 1))
            found[:, self.active] = np.where(dense != 0, dense, found[:, self.active])
            return found

        return best_unseen(scores, seen, items, k)


def neighbours(events: Events, items: int, most: int) -> ItemModel:
    """Item neighbours: the cosine of the items' sets of users, of the `most` nearest of each."""
    (matrix, active), counts = users_by_items(events), popularity(events, items)
    together = (matrix.T @ matrix).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    lengths = sp.diags(1 / np.sqrt(np.maximum(1, np.asarray(matrix.sum(axis=0)).ravel())))
    cosine = (lengths @ together @ lengths).tocsr()
    for start, end in zip(cosine.indptr[:-1], cosine.indptr[1:], strict=True):
        if end - start > most:
            line = cosine.data[start:end]
            line[np.argpartition(-line, most)[most:]] = 0
    cosine.eliminate_zeros()
    return ItemModel(active, cosine.T.tocsr(), counts)


def pairs(events: Events) -> int:
    """How many pairs of items of one user `neighbours` goes through."""
    liked = events.liked()
    each = np.minimum(np.unique(liked.user, return_counts=True)[1], MOST_OF_USER)
    return int((each**2).sum())


def ease(events: Events, items: int, l2: float) -> ItemModel:
    """EASE (Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019), in closed
    form. Raises TooManyItems: more than `EASE_ITEMS` items have a positive."""
    matrix, active = users_by_items(events)
    if len(active) > EASE_ITEMS:
        raise TooManyItems(
            f"EASE inverts a matrix of items by items; {len(active):,} have a positive, and at "
            f"most {EASE_ITEMS:,} are tried: compare with item neighbours instead"
        )
    return ItemModel(active, weights(matrix, l2), popularity(events, items))


def chosen(
    candidates: Iterable[float],
    fit: Callable[[float], ItemModel],
    judge: Callable[[ItemModel], float],
) -> tuple[float, ItemModel]:
    """The hyperparameter whose model is best by `judge`, higher is better, on validation; the first
    of equals. One alone is not judged."""
    values = [*candidates]
    if len(values) == 1:
        return values[0], fit(values[0])
    best: tuple[float, float, ItemModel] | None = None
    for value in values:
        model = fit(value)
        quality = judge(model)
        if best is None or quality > best[0]:
            best = quality, value, model
    assert best is not None
    return best[1], best[2]


def _places(counts: npt.NDArray[Any]) -> Floats:
    """[N] -> N for the most popular item down to 1; -inf for one without a count."""
    places = np.empty(len(counts))
    places[np.argsort(-counts, kind="stable")] = np.arange(len(counts), 0, -1)
    return np.where(counts > 0, places, -np.inf)


def best_unseen(scores: Callable[[slice], Floats], seen: Histories, items: int, k: int) -> Ids:
    """The best k rows [Q, k] of the scores of some queries, [., N], without what was seen."""
    queries, width = len(seen.offsets) - 1, min(k, items)
    found = np.full((queries, k), -1, np.int64)
    step = max(1, min(USERS_PER_BLOCK, SCORES_PER_BLOCK // items))
    for start in range(0, queries, step):
        some = slice(start, min(start + step, queries))
        block = scores(some)
        ends = seen.offsets[start : some.stop + 1]
        line = np.repeat(np.arange(len(block)), np.diff(ends))
        block[line, seen.items[ends[0] : ends[-1]]] = -np.inf
        rows = np.broadcast_to(np.arange(items), block.shape)
        if width < items:
            rows = np.sort(np.argpartition(-block, width - 1, axis=1)[:, :width], axis=1)
        values = np.take_along_axis(block, rows, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        rows, values = (np.take_along_axis(array, order, 1) for array in (rows, values))
        found[some, :width] = np.where(values > -np.inf, rows, -1)
    return found
