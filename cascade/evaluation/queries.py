"""Held-out events that lists are judged on, drawn over the users of a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.data.dataset import Dataset
from cascade.data.source import Split
from cascade.errors import CascadeError

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class EvaluationError(CascadeError, ValueError):
    """Data set, checkpoints and repository that cannot be evaluated together."""


@dataclass(frozen=True)
class Queries:
    """Held-out events: the user as sent, [B, F_dense] and [B, F_cat], and the items chosen [B, P].

    A user with several events is several queries, each with the history of its own moment: `user`
    [B] says whose they are, and `time` [B] when; None where the log does not.
    """

    dense: Floats
    categorical: npt.NDArray[Any]
    positives: Ids
    user: Ids | None = None
    time: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.positives)

    @property
    def owner(self) -> Ids:
        """[B], a number for the user of each query; one of its own where the log does not say."""
        own = -1 - np.arange(len(self), dtype=np.int64)
        return own if self.user is None else np.where(self.user < 0, own, self.user)

    def take(self, rows: Any) -> Queries:
        """Some of the queries."""
        user, time = (None if of is None else of[rows] for of in (self.user, self.time))
        return Queries(self.dense[rows], self.categorical[rows], self.positives[rows], user, time)


def held_out(dataset: Dataset, count: int, seed: int = 0, split: Split = "test") -> Queries:
    """Up to `count` positive rows of a split, drawn at random: one of each user, in random order,
    then a second one, and so on. Raises EvaluationError: there is none."""
    drawn = dataset.raw_sample(split, count, seed, positives=True)
    if not len(drawn.label):
        raise EvaluationError(
            f"{dataset.root}: none of the {dataset.rows(split)} {split} rows is a positive, so "
            "there is nothing to look for in the lists; prepare more rows"
        )
    return Queries(drawn.dense, drawn.categorical, drawn.item[:, None], drawn.user, drawn.time)
