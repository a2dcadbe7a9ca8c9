"""What users had interacted with before a moment: the items that a list should not hold again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cascade.data.dataset import Dataset
from cascade.data.parts import read_groups, row_groups
from cascade.data.source import SPLITS, DataError, Split
from cascade.encoding import Ids


@dataclass(frozen=True)
class Seen:
    """The interactions of all splits, by user, then by time; about 12 bytes each."""

    _keys: Ids  # [R], sorted: a user's number times the moments, plus the place of the moment
    _items: npt.NDArray[np.int32]  # [R], rows of the catalogue
    _moments: npt.NDArray[np.float64]  # [M], the distinct times, sorted; or the numbers of splits
    _users: int
    _timed: bool

    @classmethod
    def of(cls, dataset: Dataset) -> Seen:
        """Read the interactions of a data set once. A row without a user or a time has none."""
        timed, users = bool(dataset.source["times"]), dataset.user_count
        parts = []
        for number, split in enumerate(SPLITS if users else ()):
            names = ["@user", "item", *(["@time"] if timed else [])]
            columns = read_groups(row_groups(dataset.root / split), names)
            user, item = columns["@user"], columns["item"].astype(np.int32)
            time = columns["@time"] if timed else np.full(len(user), number, np.float64)
            known = (user >= 0) & ~np.isnan(time)
            parts.append((user[known], item[known], time[known]))
        none = (np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0))
        user, items, time = map(np.concatenate, zip(*(parts or [none]), strict=True))
        moments, place = np.unique(time, return_inverse=True)
        keys = user * len(moments) + place
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], items[order], moments, users, timed)

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
