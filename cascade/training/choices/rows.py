"""The rows of a log of choices: what is learnt from, and what lists are judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cascade.data.dataset import Batch, Dataset
from cascade.data.seen import Seen
from cascade.data.source import Split
from cascade.encoding import Ids
from cascade.training.tasks import labelled
from cascade.training.unknowns import Unknowns

QUERIES = 2_000  # validation positives whose lists are judged
HALF_LIFE = 1 / 3  # of the training rows in time, after which a row counts half
LIST_DROPOUT = 0.3  # mean share of a list's members that a batch leaves out
MOMENTS = 1_001  # quantiles of time by which the age of a row is told
LISTS = (10, 100)  # the places of a list that NDCG and recall look at


class Recency:
    """How much a training row counts: 1 at the end of the log, half of it `HALF_LIFE` before."""

    def __init__(self, dataset: Dataset) -> None:
        time = dataset.sample("train", 50_000).time if dataset.source["times"] else None
        self._moments = None
        if time is not None and not np.isnan(time).all():
            self._moments = np.nanquantile(time, np.linspace(0, 1, MOMENTS))

    @property
    def mean(self) -> float:
        """The mean weight of a training row."""
        if self._moments is None:
            return 1.0
        return float((0.5 ** (np.linspace(0, 1, MOMENTS) / HALF_LIFE)).mean())

    def weight(self, time: npt.NDArray[np.float64] | None, count: int) -> npt.NDArray[np.float64]:
        """[B], for rows of these times; all alike where the log gives no times."""
        if self._moments is None or time is None:
            return np.ones(count)
        place = np.searchsorted(self._moments, np.where(np.isnan(time), self._moments[0], time))
        return 0.5 ** ((1 - place / MOMENTS) / HALF_LIFE)


class Chosen:
    """The training rows of a log of choices: positives, thinned by their age."""

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        self.dataset, self.recency = dataset, Recency(dataset)
        self.users = Unknowns(dataset, "user")
        self.lists = [
            (start := dataset.schema.first_column(feature), start + feature.length)
            for feature in dataset.schema.ids("user")
            if feature.multivalued
        ]
        rows = dataset.rows("train")
        share = max(dataset.positives / rows * self.recency.mean, 1 / rows)
        self.read = min(max(batch_size, round(batch_size / share)), 65_536)  # rows for a batch
        self.steps_per_epoch = -(-rows // self.read)

    def batches(self, seed: int, epoch: int, skip: int) -> Iterator[tuple[Batch, Batch]]:
        """-> the rows that were read, and the positives among them that stay; both are changed so
        that parts of their users are unknown."""
        read = self.dataset.batches("train", self.read, seed, epoch, skip)
        for step, batch in enumerate(read, skip):
            random = np.random.default_rng((seed, epoch, step))
            batch = replace(batch, user_ids=self._less(batch.user_ids, random))
            weight = self.recency.weight(batch.time, len(batch))
            stay = np.flatnonzero((batch.label > 0) & (random.random(len(batch)) < weight))
            yield batch, batch.take(stay)

    def _less(self, ids: Ids, random: np.random.Generator) -> Ids:
        """Users of whom less is known: ids and members of lists are left out at random."""
        ids = self.users.put(torch.from_numpy(ids.copy()), random).numpy()
        for start, stop in self.lists:
            share = random.random((len(ids), 1)) * 2 * LIST_DROPOUT
            ids[:, start:stop][random.random((len(ids), stop - start)) < share] = 0
        return ids


class Queries:
    """Positives of a split drawn over users, and what each user had met before: lists of them are
    judged without these items, as the evaluation does.

    Args:
        after: how many to pass over, as those by which the retriever was chosen: its lists are
            better for them than they will be. Where fewer than half of a set are left, none.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        count: int = QUERIES,
        after: int = 0,
        split: Split = "validation",
    ) -> None:
        drawn = dataset.sample(split, 50_000)
        positive = np.flatnonzero(drawn.label > 0)
        after = after if len(positive) >= after + count / 2 else 0
        drawn = drawn.take(positive[after : after + count])
        self.batch, self.rows, self.split = drawn, labelled(drawn, device), split
        self.log = Seen.of(dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def seen(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Places (query - start, item) of what the users of some queries have seen."""
        return seen(self.log, self.batch.take(slice(start, stop)), self.split)


def seen(log: Seen, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
    """Places (row, item) of what the users of some rows had met before them."""
    if batch.user is None:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    offsets, items = log.before(batch.user, batch.time, split)
    row = np.repeat(np.arange(len(batch)), np.diff(offsets))
    return torch.from_numpy(row), torch.from_numpy(items)


def places(scores: Tensor, own: Tensor) -> Tensor:
    """[Q]: where lists of these scores [Q, K] have the item whose score is `own` [Q, 1], from 0.
    Items of one score share the middle of their places, so that a model that tells nothing gains
    nothing."""
    before, equal = (scores > own).sum(1), (scores == own).sum(1)
    return before + (equal - 1).clamp(min=0) / 2


def measures(places: Tensor) -> dict[str, float]:
    """Of the places, from 0, at which lists have the items chosen."""
    top, deep = LISTS
    return {
        "objective": -float(gains(places).mean()),
        f"validation_ndcg_at_{top}": float(ndcg(places).mean()),
        f"validation_recall_at_{deep}": float((places < deep).double().mean()),
    }


def gains(places: Tensor) -> Tensor:
    """What each list is worth, float64 [Q]: NDCG, and a tenth of the recall of a deeper list."""
    return ndcg(places) + (places < LISTS[1]).double() / 10


def ndcg(places: Tensor) -> Tensor:
    """Of the places of items, from 0 [Q]."""
    return torch.where(places < LISTS[0], 1 / torch.log2(2 + places.double()), 0.0)
