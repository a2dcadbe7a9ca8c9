"""What users had interacted with before a moment: the items that a list should not hold again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.data.dataset import Dataset
from cascade.data.source import SPLITS, DataError, Split
from cascade.encoding import Ids

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Events:
    """R rows of a log: user int64 [R], item int64 [R], label [R] of 0 and 1, time [R]."""

    user: Ids
    item: Ids
    label: Floats
    time: Floats

    @classmethod
    def read(cls, dataset: Dataset, split: Split) -> Events:
        """The rows of a split. Where the source does not say whose they are, the user is -1; where
        it gives no times, the number of the split stands for one."""
        named, timed = dataset.has_users, bool(dataset.source["times"])
        stored = (*(["@user"] if named else []), *(["@time"] if timed else []))
        columns = dataset.columns(split, ["item", "label", *stored])
        item, size = columns["item"], len(columns["item"])
        user = columns["@user"] if named else np.full(size, -1)
        time = columns["@time"] if timed else np.full(size, SPLITS.index(split), np.float64)
        return cls(user, item, columns["label"], time)

    @classmethod
    def joined(cls, parts: Sequence[Events]) -> Events:
        """The rows of all parts; without a part, none."""
        if not parts:
            return cls(*np.zeros((2, 0), np.int64), *np.zeros((2, 0)))
        names = ("user", "item", "label", "time")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def take(self, rows: Any) -> Events:
        """Some of the rows."""
        return Events(self.user[rows], self.item[rows], self.label[rows], self.time[rows])

    def liked(self) -> Events:
        """The positives."""
        return self.take(self.label > 0.5)

    def known(self) -> Events:
        """The rows that say whose they are and when."""
        return self.take((self.user >= 0) & ~np.isnan(self.time))

    def sorted(self) -> Events:
        """By user, then by time."""
        return self.take(np.lexsort((self.time, self.user)))


@dataclass(frozen=True)
class Seen:
    """Interactions by user, then by time; about 12 bytes each."""

    _keys: Ids  # [R], sorted: a user's number times the moments, plus the place of the moment
    _items: npt.NDArray[np.int32]  # [R], rows of the catalogue
    _moments: npt.NDArray[np.float64]  # [M], the distinct times, sorted; or the numbers of splits
    _users: int
    _timed: bool

    @classmethod
    def of(cls, dataset: Dataset) -> Seen:
        """Read the interactions of all splits once. A row without a user or a time has none."""
        splits = SPLITS if dataset.has_users else ()
        return cls.made(Events.joined([Events.read(dataset, split) for split in splits]), dataset)

    @classmethod
    def made(cls, events: Events, dataset: Dataset) -> Seen:
        """Of some of the rows of a data set, from any of its splits."""
        known = events.known()
        moments, place = np.unique(known.time, return_inverse=True)
        keys = known.user * len(moments) + place.ravel()
        order = np.argsort(keys, kind="stable")
        items = known.item.astype(np.int32)[order]
        return cls(keys[order], items, moments, dataset.user_count, bool(dataset.source["times"]))

    def before(
        self, user: Ids, time: npt.NDArray[np.float64] | None = None, split: Split = "test"
    ) -> tuple[Ids, Ids]:
        """The items that users had interacted with strictly before a moment, whatever the label.

        Args:
            user: [B], as in `Batch.user`; -1 has none.
            time: [B], as in `Batch.time`; nothing is known to be before NaN.
            split: of these rows. Where the source gives no times it stands for one: all of train is
                before validation, and all of validation before test.

        Returns:
            offsets [B + 1] and rows of the catalogue, those of row b at offsets[b]:offsets[b + 1],
            the latest first, each once.
        """
        if self._timed and time is None:
            raise DataError("the rows of this data set have times; give those of the users")
        if not self._timed:
            time = np.full(len(user), SPLITS.index(split), np.float64)
        assert time is not None
        count = len(self._moments)
        known = (user >= 0) & (user < self._users) & ~np.isnan(time)
        start = np.searchsorted(self._keys, user * count)
        end = np.searchsorted(self._keys, user * count + np.searchsorted(self._moments, time))
        lengths = np.where(known, end - start, 0)
        row = np.repeat(np.arange(len(user)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        items = self._items[end[row] - 1 - within].astype(np.int64)
        pairs = row * (int(self._items.max(initial=0)) + 1) + items
        first = np.sort(np.unique(pairs, return_index=True)[1])
        offsets = np.searchsorted(row[first], np.arange(len(user) + 1))
        return offsets, items[first]
