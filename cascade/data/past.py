"""Running statistics of a log: what had happened strictly before each of its events.

Events of one user at one time do not see each other, and no event sees a later one, so that a value
in training is what a client could have sent at that moment.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.data.source import DataError
from cascade.encoding import Floats, Ids
from cascade.schema import Feature

PRIOR_EVENTS = 5  # that the mean of all earlier events counts for beside a user's own

EVENTS = Feature("past_events", "user", "dense", "log1p")
POSITIVES = Feature("past_positive_rate", "user", "dense", "identity", fill=0.5, mean=0.5, std=0.25)
DAYS = Feature("past_days", "user", "dense", "log1p", fill=365)


class Past:
    """The past of R events in order of time.

    Args:
        of: [R], a number for whom or for what each event is, as a user; -1 = not said, of which
            nothing is known.
        time: [R], numbers that never fall.
    """

    def __init__(self, of: Ids, time: npt.NDArray[Any]) -> None:
        if (time[1:] < time[:-1]).any():
            raise DataError("the events are not in the order of their times; sort them")
        self._time, self._of = time, of
        # Places by subject, then by time: where the subject starts, and where the moment does.
        self._order = np.argsort(of, kind="stable")
        subject = _changes(of[self._order])
        self._first = _starts(subject)
        self._moment = _starts(subject | _changes(time[self._order]))

    @cached_property
    def _count(self) -> Ids:
        return np.where(self._of[self._order] < 0, 0, self._moment - self._first)

    def events(self) -> Floats:
        """[R]: how many events the subject had had; NaN for none."""
        return self._given(self._count)

    def mean(self, values: npt.NDArray[Any]) -> Floats:
        """[R]: the mean of `values` [R] over the subject's earlier events, and over `PRIOR_EVENTS`
        more that have the mean of everyone's earlier events; NaN without an event."""
        sums = _sums(values[self._order])
        earlier = _starts(_changes(self._time))
        level = _sums(values)[earlier] / np.maximum(earlier, 1)
        own = sums[self._moment] - sums[self._first]
        prior = PRIOR_EVENTS * level[self._order]
        return self._given((own + prior) / (self._count + PRIOR_EVENTS))

    def since_last(self, day: float) -> Floats:
        """[R]: days since the subject's latest earlier event; NaN for none. A day is `day` units of
        `time`."""
        times = self._time[self._order]
        return self._given((times - times[self._moment - 1]) / day)

    def _given(self, values: npt.NDArray[Any]) -> Floats:
        """By subject -> in order of time."""
        found = np.empty(len(values), np.float32)
        found[self._order] = np.where(self._count > 0, values, np.nan)
        return found


def _changes(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a value differs from the one before it; the first does."""
    return np.concatenate((np.ones(len(values[:1]), np.bool_), values[1:] != values[:-1]))


def _starts(changes: npt.NDArray[np.bool_]) -> Ids:
    """The place of the latest change up to each place."""
    return np.maximum.accumulate(np.where(changes, np.arange(len(changes)), 0))


def _sums(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[R] -> [R + 1]: the sum of the values before each place."""
    return np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
