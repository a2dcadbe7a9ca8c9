"""Running statistics of a log: what had happened strictly before a moment.

Events of one time do not see each other, and no event sees a later one, so that a value in training
is what was known at that moment. The sources compute the past of users. The preparation computes
that of items from the training rows: each of these rows keeps its own, and the catalogue has what
all of them together tell, which is what is served and evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cascade.data.source import UNITS, DataError, Source, unit
from cascade.encoding import Floats, Ids
from cascade.schema import Feature, Schema
from cascade.transforms import Numeric
from cascade.values import SEPARATOR

PRIOR_EVENTS = 5  # that the mean of all earlier events counts for beside a subject's own

EVENTS = Feature("past_events", "user", "dense", "log1p")
POSITIVES = Feature("past_positive_rate", "user", "dense", "identity", fill=0.5, mean=0.5, std=0.25)
DAYS = Feature("past_days", "user", "dense", "log1p", fill=365)
USER = (EVENTS, POSITIVES, DAYS)
ITEMS = Feature("past_items", "user", "sequence", "vocabulary", length=20)  # of a log of choices

ITEM_EVENTS = Feature("past_item_events", "item", "dense", "log1p", mean=3, std=2)
ITEM_POSITIVES = Feature(
    "past_item_positive_rate", "item", "dense", "identity", fill=0.5, mean=0.5, std=0.25
)
ITEM_AGE = Feature("past_item_age", "item", "dense", "log1p", mean=5, std=2)
ITEM = (ITEM_EVENTS, ITEM_POSITIVES, ITEM_AGE)

Times = npt.NDArray[Any]


def day(time: float) -> int:
    """A day in the unit of a time of the log; numbers that do not count from 1970 are seconds."""
    return 86_400 * UNITS[unit(time) or "s"]


class Log:
    """R events in order of time.

    Args:
        of: [R], a number for whom or for what each event is, as a user; -1 = not said, of which
            nothing is known.
        time: [R], numbers that never fall.
        items: [R], what names the item of each event, strings or integers, where `Past.latest` is
            asked.
        values: by name, numbers [R] of which `Past.mean` is asked.
    """

    def __init__(
        self, of: Ids, time: Times, items: pa.Array | None = None, **values: npt.NDArray[Any]
    ) -> None:
        if not (time[1:] >= time[:-1]).all():
            raise DataError("the events are not in the order of their times; sort them")
        self.of, self.time = of, time
        self.moments, moment = np.unique(time, return_inverse=True)
        order = np.argsort(of, kind="stable")
        self.sorted_time = time[order]
        # By subject, then by time.
        self.keys = (of * len(self.moments) + moment)[order]
        self.items: Any = None if items is None else items.take(pa.array(order))
        self.sums = {name: (_sums(each[order]), _sums(each)) for name, each in values.items()}

    def before(self, of: Ids | None = None, time: Times | None = None) -> Past:
        """The past of Q subjects at Q moments; of every event at its own, where none are given."""
        return Past(self, self.of if of is None else of, self.time if time is None else time)


class Past:
    """What a log had of each of Q subjects [Q] strictly before a moment [Q]."""

    def __init__(self, log: Log, of: Ids, time: Times) -> None:
        start = of * len(log.moments)
        self._log, self._time = log, time
        self._first = _places(log.keys, start)
        self._stop = _places(log.keys, start + np.searchsorted(log.moments, time))
        self._count = np.where(of < 0, 0, self._stop - self._first)

    def events(self) -> Floats:
        """[Q]: how many events the subject had had; NaN for none."""
        return self._given(self._count)

    def mean(self, name: str) -> Floats:
        """[Q]: the mean of some values over the subject's earlier events, and over `PRIOR_EVENTS`
        more that have the mean of everyone's earlier events; NaN without an event."""
        own, everyone = self._log.sums[name]
        earlier = np.searchsorted(self._log.time, self._time)
        prior = PRIOR_EVENTS * everyone[earlier] / np.maximum(earlier, 1)
        total = own[self._stop] - own[self._first] + prior
        return self._given(total / (self._count + PRIOR_EVENTS))

    def since_last(self, day: float) -> Floats:
        """[Q]: days since the subject's latest earlier event; NaN for none. A day is `day` units of
        time."""
        return self._since(self._stop - 1, day)

    def since_first(self, day: float) -> Floats:
        """[Q]: days since the subject's first event; NaN where that is not earlier."""
        return self._since(self._first, day)

    def latest(self, length: int) -> pa.Array:
        """[Q]: the names of the items of a subject's latest earlier events, `length` at most, the
        newest last, joined by |."""
        lengths = np.minimum(self._count, length)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        first = np.repeat(self._stop - lengths - offsets[:-1], lengths)
        members = self._log.items.take(pa.array(first + np.arange(offsets[-1])))
        texts = pc.cast(members, pa.string())
        return pc.binary_join(pa.ListArray.from_arrays(offsets.astype(np.int32), texts), SEPARATOR)

    def _since(self, place: Ids, day: float) -> Floats:
        if not len(self._log.time):
            return self._given(self._count)
        return self._given((self._time - self._log.sorted_time.take(place, mode="clip")) / day)

    def _given(self, values: npt.NDArray[Any]) -> Floats:
        return np.where(self._count > 0, values, np.nan).astype(np.float32)


def _places(keys: Ids, asked: Ids) -> Ids:
    """[Q]: how many sorted keys [R] are less. In order, which takes a fraction of the time."""
    order, found = np.argsort(asked, kind="stable"), np.empty(len(asked), np.int64)
    found[order] = np.searchsorted(keys, asked[order])
    return found


def _sums(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[R] -> [R + 1]: the sum of the values before each place."""
    return np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))


@dataclass(frozen=True)
class OfItems:
    """The past of items that a source leaves to the preparation.

    Args:
        features: some of `ITEM`; the last numbers among the items' features of the schema.
        day: a day in the unit of `@time`.
    """

    features: tuple[Feature, ...]
    day: float

    def described(self) -> dict[str, Any]:
        """As source.json has it."""
        return {"features": [feature.name for feature in self.features], "day": self.day}


def told(source: Source, schema: Schema) -> Schema:
    """The features of a schema without those that the preparation computes."""
    wanted: OfItems | None = getattr(source, "item_past", None)
    if wanted is None:
        return schema
    if schema.dense("item")[-len(wanted.features) :] != wanted.features:
        names = ", ".join(feature.name for feature in wanted.features)
        raise DataError(f"the last numbers of the items in the schema have to be {names}")
    return replace(schema, features=tuple(f for f in schema.features if f not in wanted.features))


class ItemPast:
    """The past of the items of T training rows.

    Args:
        features: the names of those wanted.
        day: as in `OfItems`.
        rows: the columns `item`, `label` and `@time` of the rows [T], in order of time.
    """

    def __init__(self, features: Sequence[str], day: float, rows: Mapping[str, Any]) -> None:
        self._features = [feature for feature in ITEM if feature.name in features]
        self._day, self._numeric = day, Numeric(self._features)
        self._log = Log(rows["item"], rows["@time"], label=rows["label"])

    def before(self, item: Ids, time: Times) -> Floats:
        """[Q, P]: of items at moments, NaN = no earlier event."""
        past = self._log.before(item, time)
        made: dict[Feature, Callable[[], Floats]] = {
            ITEM_EVENTS: past.events,
            ITEM_POSITIVES: partial(past.mean, "label"),
            ITEM_AGE: partial(past.since_first, self._day),
        }
        return np.stack([made[feature]() for feature in self._features], axis=1)

    def encoded(self, item: Ids, time: Times) -> Floats:
        """[Q, P]: the same as a model reads it."""
        found = self.before(item, time)
        self._numeric.fill(found)
        self._numeric.transform(found)
        return found

    def beside(self, tables: Iterable[pa.Table], count: int) -> Iterator[pa.Table]:
        """The `count` items of a catalogue, with their past after all training rows."""
        end = np.nextafter(self._log.time[-1], np.inf)
        found, start = self.before(np.arange(count), np.full(count, end)), 0
        for table in tables:
            values = found[start : start + len(table)]
            for feature, column in zip(self._features, values.T, strict=True):
                table = table.append_column(feature.name, pa.array(column, from_pandas=True))
            yield table
            start += len(table)
