"""Negatives for logs that have none: items of the catalogue drawn beside every positive.

A log of what users chose says nothing of what they did not want. A ranker needs both, so every
positive is trained, validated and tested beside `per_positive` drawn items. What it learns is the
order of items; its probability is that of a positive among such rows, not of a click.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cascade.data.dataset import Batch, Dataset
from cascade.data.source import DataError
from cascade.encoding import Ids

By = Literal["popularity", "uniform"]
BYS: tuple[By, ...] = get_args(By)
EXPONENT = 0.75  # as word2vec draws
HELD_OUT_SEED = 1  # of what validation and evaluation draw, the same in every run


@dataclass(frozen=True)
class Sampling:
    """How many items are drawn beside a positive, and how.

    `uniform` draws all items alike, so that a score keeps an item's popularity. `popularity` draws
    an item as often as (1 + its positives among the training rows) ^ 0.75: the negatives are
    harder, and most of the popularity is divided out of the score.
    """

    per_positive: int = 4
    by: By = "uniform"

    def __post_init__(self) -> None:
        if self.per_positive < 1:
            raise DataError(f"--negatives {self.per_positive}: expected 1 or more for a positive")

    def __str__(self) -> str:
        return f"{self.per_positive} sampled negatives each (by {self.by})"

    def identity(self) -> dict[str, Any]:
        """What the trained weights depend on."""
        return asdict(self)


class Negatives:
    """Draws items for the rows of a data set without negatives."""

    def __init__(self, dataset: Dataset, sampling: Sampling) -> None:
        if dataset.item_count < 2:
            raise DataError(
                f"{dataset.root}: the rows are positives only and the catalogue has one item, so "
                "no negative can be drawn; give a table of all items"
            )
        self.sampling, self._dataset = sampling, dataset
        weight = np.ones(dataset.item_count)
        if sampling.by == "popularity":
            for batch in dataset.batches("train", 65_536):
                weight += np.bincount(batch.item, minlength=len(weight))
            weight **= EXPONENT
        self._ends = np.cumsum(weight)
        self._weight = weight

    def draw(self, own: Ids, random: np.random.Generator) -> Ids:
        """Items [B] -> others [B, N], never the row's own."""
        # The own item's stretch is cut out of the line on which the items lie by their weight.
        length = self._ends[-1] - self._weight[own][:, None]
        at = random.random((len(own), self.sampling.per_positive)) * length
        at += np.where(
            at >= (self._ends - self._weight)[own][:, None], self._weight[own][:, None], 0
        )
        drawn: Ids = np.searchsorted(self._ends, at, side="right").clip(max=len(self._ends) - 1)
        beside = own[:, None] == drawn  # a sum that was rounded
        return np.where(beside, (drawn + 1) % len(self._ends), drawn)

    def beside(self, batch: Batch, random: np.random.Generator) -> Batch:
        """B positives -> B * (1 + N) rows, each positive before its own negatives."""
        each = 1 + self.sampling.per_positive
        items = np.concatenate((batch.item[:, None], self.draw(batch.item, random)), axis=1)
        label = np.zeros((len(batch), each), np.float32)
        label[:, 0] = 1

        def repeated(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.repeat(rows, each, axis=0)

        users = (repeated(batch.user_dense), repeated(batch.user_ids))
        who, when = (None if part is None else repeated(part) for part in (batch.user, batch.time))
        past = None
        if batch.item_past is not None and when is not None:
            past = self._dataset.item_past.encoded(items.ravel(), when)
        tasks = None
        if batch.tasks is not None:  # what else a user would do with a drawn item is not known
            tasks = np.full((label.size, batch.tasks.shape[1]), np.nan, np.float32)
            tasks[::each], tasks[:, 0] = batch.tasks, label.ravel()
        known = Batch(label.ravel(), items.ravel(), *users, user=who, time=when, item_past=past)
        return replace(known, tasks=tasks)


def held_out(
    batches: Iterable[Batch], negatives: Negatives | None, first: int = 0
) -> Iterator[Batch]:
    """Batches to validate or to test on, with negatives where the rows have none: the same ones
    whenever the same batches come, of which the number `first` is the first."""
    for number, batch in enumerate(batches, first):
        if negatives is None:
            yield batch
        else:
            yield negatives.beside(batch, np.random.default_rng((HELD_OUT_SEED, number)))


def validation(dataset: Dataset, limit: int, negatives: Negatives | None) -> Batch:
    """Rows of the validation split, drawn over its users; up to `limit` with their negatives."""
    each = 1 if negatives is None else 1 + negatives.sampling.per_positive
    return next(held_out([dataset.sample("validation", max(1, limit // each))], negatives))
