"""What the users of a table's interactions had done before each of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cascade.data import past
from cascade.data.source import DataError
from cascade.schema import Feature


class Earlier:
    """The features of `past` that are of the user.

    Args:
        events: the interactions in order of time, with `@user`, codes of strings, `@time`, `label`
            and `item_id`.
        features: of the schema; those of the user are computed.
    """

    def __init__(self, events: pa.Table, features: Sequence[Feature]) -> None:
        self._events = events
        self._wanted = [feature for feature in features if feature.side == "user"]

    def columns(self, first: int, count: int) -> dict[str, pa.Array]:
        """Of some neighbouring interactions, by feature."""
        if not self._wanted:
            return {}
        found = {name: values.slice(first, count) for name, values in self._numbers.items()}
        if past.ITEMS in self._wanted:
            part = slice(first, first + count)
            before = self._log.before(self._log.of[part], self._log.time[part])
            found[past.ITEMS.name] = before.latest(past.ITEMS.length)
        return found

    @cached_property
    def _numbers(self) -> dict[str, pa.Array]:
        found, wanted = self._log.before(), {feature.name for feature in self._wanted}
        made = {
            past.EVENTS.name: found.events(),
            past.POSITIVES.name: found.mean("label"),
            past.DAYS.name: found.since_last(past.day(self._log.time[-1])),
        }
        return {n: pa.array(made[n], from_pandas=True) for n in made if n in wanted}

    @cached_property
    def _log(self) -> past.Log:
        user = self._events["@user"].combine_chunks().indices.fill_null(-1)
        time, label = (self._events[name].to_numpy() for name in ("@time", "label"))
        items = self._events["item_id"].combine_chunks()
        if past.ITEMS in self._wanted:
            _check_names(items)
        return past.Log(user.to_numpy().astype(np.int64), time, items, label=label)


def _check_names(items: pa.Array) -> None:
    """Whether a list of items can be written with their ids."""
    names = pc.cast(pc.unique(items), pa.string())
    wrong = names.filter(pc.match_substring_regex(names, r"[|\n]"))
    if len(wrong):
        raise DataError(
            f"item id {wrong[0].as_py()!r}: expected none with | or a line feed, because "
            f"`{past.ITEMS.name}` joins ids by |; change the id, or write `past: false`"
        )
