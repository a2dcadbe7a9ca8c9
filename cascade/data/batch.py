"""Rows of a prepared data set in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade.data.parts import Columns
from cascade.data.source import TASK, TRUTH
from cascade.encoding import Floats, Ids


@dataclass(frozen=True)
class Batch:
    """B rows, encoded."""

    label: Floats  # [B], 1 for a click or a liked item
    item: Ids  # [B], rows of the catalogue
    user_dense: Floats  # [B, F_dense]
    user_ids: Ids  # [B, sum of lengths]
    probability: Floats | None = None  # [B], the true chance of label 1 where the source knows it
    user: Ids | None = None  # [B], numbers of the users, the same in all splits; -1 = not said
    time: npt.NDArray[np.float64] | None = None  # [B], in the source's unit; NaN = not said
    # [B, P], of training rows: what the last P numbers of the items, encoded, were strictly before
    # them, in place of those of the catalogue.
    item_past: Floats | None = None
    # Of a schema with T > 1 tasks, in its order:
    tasks: Floats | None = None  # [B, T], the labels, the first of which is `label`; NaN = unknown
    truth: Floats | None = None  # [B, T], their true chances and means where the source knows all

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Ids | slice) -> Batch:
        """Some of the rows."""
        there = {name: column for name, column in vars(self).items() if column is not None}
        return Batch(**{name: column[rows] for name, column in there.items()})


class RawRows(NamedTuple):
    """B rows whose users are as a client would send them."""

    dense: Floats  # [B, F_dense], NaN = missing
    categorical: npt.NDArray[np.object_]  # [B, F_cat] of bytes, empty = missing
    item: Ids  # [B], rows of the catalogue
    label: Floats  # [B]
    user: Ids | None  # [B], as in `Batch`
    time: npt.NDArray[np.float64] | None  # [B], as in `Batch`


def batch_of(columns: Columns, rows: slice) -> Batch:
    """Some rows of the stored columns. Ids are stored in 32 bits and widened here, a batch at a
    time."""
    taken = {name: values[rows] for name, values in columns.items()}
    for prefix, first, name in ((TASK, "label", "tasks"), (TRUTH, "probability", "truth")):
        further = [taken.pop(column) for column in columns if column.startswith(prefix)]
        if further:
            taken[name] = np.stack((taken[first], *further), axis=1)
    taken = {name.removeprefix("@"): values for name, values in taken.items()}
    return Batch(**{**taken, "user_ids": taken["user_ids"].astype(np.int64)})
