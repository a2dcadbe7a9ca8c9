"""The baselines of a prepared data set: fitted on its training rows, tuned on validation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import TensorDataset

from cascade.data.dataset import Batch, Dataset
from cascade.data.seen import Events, Seen
from cascade.data.source import SPLITS, Split
from cascade.evaluation import metrics
from cascade.evaluation.baselines import lists, rows
from cascade.evaluation.baselines.lists import Histories, Ids, ItemModel
from cascade.evaluation.queries import EvaluationError, Queries, held_out
from cascade.training.negatives import Negatives, validation
from cascade.training.negatives import held_out as negatives_beside
from cascade.training.tasks import with_items

BATCH = 8192
NEIGHBOURS = (50, 200)  # of each item, tried on validation
STRENGTHS = (300.0, 1000.0, 3000.0)  # of the L2 of EASE; the first of a large catalogue
SLOW_ITEMS = 8_000  # with a positive, whose matrix takes a minute to invert
QUICK_ITEMS, QUICK_PAIRS = 6_000, 5 * 10**7  # up to which EASE and neighbours take seconds
VALIDATION_QUERIES = 500
DEPTH = 100  # of the lists that settings are chosen by
TRAINING_ROWS = 100_000  # the newest, that scores of rows are fitted on
VALIDATION_ROWS = 50_000


@dataclass
class Log:
    """The rows of a data set, by their users where it says whose they are.

    Attributes:
        counts: [N], how often each item is a positive of the training rows.
        train: the training rows.
        liked: the positives of all splits: what a user liked before a moment is known then.
    """

    dataset: Dataset
    counts: Ids
    train: Events | None = None
    liked: Seen | None = None
    seen_before: Seen | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, dataset: Dataset) -> Log:
        """Read the rows of a data set."""
        splits = SPLITS if dataset.has_users else SPLITS[:1]
        parts = [Events.read(dataset, split) for split in splits]
        train = parts[0]
        counts = lists.popularity(train, dataset.item_count)
        if not dataset.has_users:
            note = "the log does not say whose the rows are: nothing is left out as seen, and "
            return cls(dataset, counts, notes=[f"{note}popularity is the only baseline list"])
        every = Events.joined(parts)
        liked, seen = (Seen.made(some, dataset) for some in (every.liked(), every))
        return cls(dataset, counts, train.known(), liked, seen)

    def seen(self, queries: Queries, split: Split = "test") -> Histories | None:
        """What each query's user had seen before its moment, the latest first; None where the log
        does not say."""
        if self.seen_before is None or queries.user is None:
            return None
        return Histories(*self.seen_before.before(queries.user, queries.time, split))

    def lists(
        self, queries: Queries, k: int, split: Split = "test", quick: bool = False
    ) -> dict[str, Ids]:
        """The list [B, k] of each baseline, by name, without what was seen, for queries of a split.
        `quick` tunes none, and leaves out those that would take more than seconds."""
        train, items = self.train, self.dataset.item_count
        if train is None:
            none = Histories.none(len(queries))
            return {"popularity": lists.popular_lists(self.counts, none, k)}
        liked, seen = self._histories(queries, split)
        found = {"popularity": lists.popular_lists(self.counts, seen, k)}
        if self.dataset.source["times"]:
            recent = lists.recent_popularity(train, items)
            found["recent"] = lists.popular_lists(recent, seen, k)
        active, tuned = np.count_nonzero(self.counts), "not tuned" if quick else "by validation"
        if quick and lists.pairs(train) > QUICK_PAIRS:
            self.notes.append("no item neighbours: of so many rows they take long")
        else:
            nearest, model = lists.chosen(
                NEIGHBOURS[-1:] if quick else NEIGHBOURS,
                lambda most: lists.neighbours(train, items, int(most)),
                self._judge,
            )
            found["neighbours"] = model.lists(liked, seen, k)
            self.notes.append(f"item neighbours: the {nearest:g} nearest of each, {tuned}")
        if quick and active > QUICK_ITEMS:
            self.notes.append("no EASE: of so many items it takes long")
            return found
        strengths = STRENGTHS[:1] if quick or active > SLOW_ITEMS else STRENGTHS
        try:
            l2, model = lists.chosen(
                strengths, lambda l2: lists.ease(train, items, l2), self._judge
            )
        except lists.TooManyItems as error:
            self.notes.append(f"no EASE: {error}")
        else:
            found["ease"] = model.lists(liked, seen, k)
            tuned = "by validation" if len(strengths) > 1 else "not tuned"
            self.notes.append(f"EASE: L2 {l2:g}, {tuned}")
        return found

    def _histories(self, queries: Queries, split: Split = "test") -> tuple[Histories, Histories]:
        """What each query's user liked before its moment, and what the user had seen."""
        assert self.liked is not None
        seen = self.seen(queries, split)
        assert seen is not None
        assert queries.user is not None
        return Histories(*self.liked.before(queries.user, queries.time, split)), seen

    def _judge(self, model: ItemModel) -> float:
        """Recall of held-out positives of the validation split."""
        try:
            queries = held_out(self.dataset, VALIDATION_QUERIES, split="validation")
        except EvaluationError:
            return 0.0
        found = model.lists(*self._histories(queries, "validation"), DEPTH)
        values = metrics.recalls(found, queries.positives, DEPTH)
        return float(values.mean())

    def scores(self, test: rows.Rows, negatives: Negatives | None) -> rows.Fitted:
        """Probabilities of test rows by models that were fitted on the newest training rows, with
        negatives beside them where the log has none."""
        each = 1 if negatives is None else 1 + negatives.sampling.per_positive
        skip = max(0, self.dataset.rows("train") - -(-TRAINING_ROWS // each)) // BATCH
        newest = self.dataset.batches("train", BATCH, skip=skip)
        train = [*negatives_beside(newest, negatives, skip)]
        held = [validation(self.dataset, VALIDATION_ROWS, negatives)]
        items = self.dataset.items()
        return rows.fit(self.dataset.schema, encoded(train, *items), encoded(held, *items), test)


def encoded(batches: list[Batch], dense: npt.NDArray[np.float32], ids: Ids) -> rows.Rows:
    """Batches, and the encoded items of the catalogue -> rows."""
    cpu, items = torch.device("cpu"), TensorDataset(torch.tensor(dense), torch.tensor(ids))
    pairs = [with_items(batch, items, cpu) for batch in batches]
    parts = [(label, *user, *item) for (*user, _, label), item in pairs]
    return rows.Rows(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))
