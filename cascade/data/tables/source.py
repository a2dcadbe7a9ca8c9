"""The rows of a user's own tables as a source.

The interactions are sorted by their time; the first 80 % train, the next 10 % validate, the last
10 % test, and rows of one time stay together. Without a time the split is drawn at random. The
interactions' columns that the features need are held in memory, text as codes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cascade import values
from cascade.columns import convert
from cascade.columns.convert import Wanted
from cascade.columns.labels import task_label
from cascade.data import past
from cascade.data.parts import ROW_GROUP
from cascade.data.source import SPLITS, BadRows, DataError, Log, Source, Split, file_identity
from cascade.data.tables.earlier import Earlier
from cascade.data.tables.layout import Layout, Table
from cascade.data.tables.reading import Asked, column_names, read
from cascade.schema import Feature, Schema

Rows = npt.NDArray[np.int64]

ENDS = (8, 9)  # tenths of the rows that are before the end of train, and of validation
SEED = 0  # of the split where there is no time
_ID = "a user id, a string or an integer"
_LISTED = "an integer from 0 to 2^63 - 1"


class TableSource(Source):
    """Interactions, and users and items where there are such tables.

    Malformed rows go to `bad`: a label that is not 0 or 1, an amount below 0, a number that is
    none, an item that the items do not list, the second row of a user or of an item.
    """

    def __init__(self, layout: Layout, bad: BadRows) -> None:
        self._layout, self._bad = layout, bad
        features = [f for f in layout.schema.features if f not in layout.past]
        self._place = {feature.name: self._find(feature) for feature in features}

    @property
    def schema(self) -> Schema:
        return self._layout.schema

    @property
    def fingerprint(self) -> dict[str, Any]:
        written = json.dumps(self._layout.root.plain(), default=str).encode()
        files = [path for paths in self._layout.files.values() for path in paths]
        return {
            "source": "table",
            "schema": hashlib.sha256(written).hexdigest()[:16],
            "files": [*map(file_identity, files)],
        }

    @property
    def log(self) -> Log | None:
        """As the YAML file says."""
        return self._layout.log

    @property
    def split(self) -> str:
        """How rows come to their split."""
        return "by time" if "time" in self._layout.named else "at random"

    @property
    def notes(self) -> list[str]:
        """What is not obvious of how the rows are read."""
        notes = []
        if "time" not in self._layout.named:
            notes.append("no column `time` is named, so the split is random")
        if "label" not in self._layout.named:
            notes.append("no column `label` is named, so every row is a positive")
        return notes

    @property
    def total_rows(self) -> int:
        return len(self._events)

    def catalogue(self) -> pa.Table:
        """The table of items; without one, every item that is met, as its latest row shows it."""
        if self._listed is not None:
            return self._listed
        items = self._events["item_id"].to_numpy()[::-1]
        _, latest = np.unique(items, return_index=True)
        features = self._of("item", "interactions")
        names = ["item_id", *(feature.name for feature in features)]
        names += ["title"] if "title" in self._events.column_names else []
        return _plain(self._events.select(names).take(pa.array(len(items) - 1 - latest)))

    def chunks(self, split: Split) -> Iterator[pa.Table]:
        """Rows in the order of time, with `item_id` in place of the item's features."""
        own = [feature.name for feature in self._of("user", "interactions")]
        joined = [feature.name for feature in self._of("user", "users")]
        start, stop = self._bounds[SPLITS.index(split)]
        for first in range(start, stop, ROW_GROUP):
            rows = self._events.slice(first, min(ROW_GROUP, stop - first))
            tasks = [task_label(task).name for task in self.schema.tasks[1:]]
            columns = {name: rows[name] for name in ("label", *tasks, "item_id", *own)}
            columns |= {name: rows[name] for name in ("@user", "@time") if name in self._names}
            if joined and self._users is not None:
                where = self._user_rows[first : first + len(rows)]
                place = pa.array(where, mask=where < 0)
                columns |= {name: self._users[name].take(place) for name in joined}
            columns |= self._earlier.columns(first, len(rows))
            yield _plain(pa.table(columns))

    # --- which table a feature is in

    def _find(self, feature: Feature) -> Table:
        column = self._layout.columns[feature.name]
        if column.table is not None:
            if column.table not in self._layout.files:
                raise column.node.error(f"there is no table of {column.table}; add its key")
            return column.table
        side: Table = "users" if feature.side == "user" else "items"
        # What an item is does not depend on the user, so its own table is the only one.
        tables: list[Table] = [side] if side == "items" and side in self._files else []
        tables = tables or ["interactions", *([side] if side in self._files else [])]
        having = [table for table in tables if column.name in self._there[table]]
        if len(having) > 1 and column.name != self._layout.column("user"):
            raise column.node.error(
                f"both interactions and users have a column {column.name!r}; add `table: users` or "
                "`table: interactions`"
            )
        if not having:
            known = [name for table in tables for name in self._there[table]]
            unknown = values.unknown_name("column", column.name, known)
            raise column.node.error(f"{unknown} (looked for in {' and '.join(tables)})")
        return having[0]

    @cached_property
    def _there(self) -> dict[Table, list[str]]:
        """The columns of the first file of each table."""
        return {table: column_names(paths[0]) for table, paths in self._files.items()}

    @property
    def _files(self) -> dict[Table, list[Path]]:
        return self._layout.files

    def _of(self, side: str, table: Table) -> list[Feature]:
        """The features of a side that stand in a table."""
        features = self.schema.features
        return [f for f in features if f.side == side and self._place.get(f.name) == table]

    # --- the tables

    def _asked(self, role: str, wanted: Wanted) -> Asked:
        node = self._layout.named[role]
        return node, node.text(), wanted

    def _item(self, known: pa.Array | None) -> Wanted:
        """How the ids of items are read; where `known` ids are given, one of those."""
        strings = self.schema.string_ids
        if known is not None:
            expected = "an item that the items list"
        else:
            expected = "a string, not an empty one" if strings else _LISTED
        read_as = convert.item_name if strings else convert.item_id
        return Wanted("item_id", read_as(known), expected)

    def _features(self, side: str, table: Table) -> list[Asked]:
        columns = self._layout.columns
        return [
            (columns[f.name].node, columns[f.name].name, convert.feature(f))
            for f in self._of(side, table)
        ]

    @cached_property
    def _listed(self) -> pa.Table | None:
        """The table of items, each id once."""
        if "items" not in self._files:
            return None
        asked = [self._asked("item", self._item(None))]
        if "title" in self._layout.named:
            asked.append(self._asked("title", Wanted("title", convert.title, "text")))
        table = read(self._files["items"], asked + self._features("item", "items"), self._bad)
        return _plain(self._once(table, "item_id", "items"))

    @cached_property
    def _users(self) -> pa.Table | None:
        """The table of users, each id once."""
        if "users" not in self._files:
            return None
        asked = [self._asked("user", Wanted("@user", convert.user_id(required=True), _ID))]
        table = read(self._files["users"], asked + self._features("user", "users"), self._bad)
        return self._once(_plain(table), "@user", "users")

    def _once(self, table: pa.Table, key: str, name: Table) -> pa.Table:
        """The first row of every id; the others are malformed."""
        _, first = np.unique(table[key].to_numpy(), return_index=True)
        if len(first) == len(table):
            return table
        for row in np.setdiff1d(np.arange(len(table)), first):
            what = f"the {name} list {table[key][int(row)]} more than once; an id has one row"
            self._bad.add(self._files[name][0], f"row {row + 1} of the table", what)
        return table.take(pa.array(np.sort(first)))

    @property
    def _names(self) -> list[str]:
        names: list[str] = self._events.column_names
        return names

    @cached_property
    def _events(self) -> pa.Table:
        """All interactions in the order of the splits."""
        known = None if self._listed is None else self._listed["item_id"].combine_chunks()
        asked = [self._asked("item", self._item(known))]
        named = self._layout.named
        if "user" in named:
            asked.append(self._asked("user", Wanted("@user", convert.user_id(False), _ID)))
        if "label" in named:
            asked.append(self._asked("label", Wanted("label", convert.label, "a label, 0 or 1")))
        labels = self._layout.labels
        for task in self.schema.tasks[1:]:
            asked.append((labels[task.name], labels[task.name].text(), task_label(task)))
        if "time" in named:
            asked.append(self._asked("time", Wanted("@time", convert.time, "a time")))
        if "title" in named and known is None:
            asked.append(self._asked("title", Wanted("title", convert.title, "text")))
        asked += self._features("user", "interactions") + self._features("item", "interactions")
        table = read(self._files["interactions"], asked, self._bad)
        if not len(table):
            names = ", ".join(map(str, self._files["interactions"]))
            raise DataError(f"{names}: there is no row; expected interactions")
        if "label" not in named:
            table = table.append_column("label", pa.array(np.ones(len(table), np.float32)))
        if "time" in named:
            order = np.argsort(table["@time"].to_numpy(), kind="stable")
        else:
            order = np.random.default_rng(SEED).permutation(len(table))
        return table.take(pa.array(order))

    @cached_property
    def _bounds(self) -> list[tuple[int, int]]:
        """First row and last row + 1 of each split."""
        count = len(self._events)
        cuts = [count * tenths // 10 for tenths in ENDS]
        if "@time" in self._names:
            times = self._events["@time"].to_numpy()
            cuts = [int(np.searchsorted(times, times[max(0, cut - 1)], "right")) for cut in cuts]
        return [(0, cuts[0]), (cuts[0], cuts[1]), (cuts[1], count)]

    @cached_property
    def _earlier(self) -> Earlier:
        return Earlier(self._events, self._layout.past)

    @property
    def item_past(self) -> past.OfItems | None:
        """What the preparation computes of the items."""
        features = tuple(f for f in self._layout.past if f.side == "item")
        if not features:
            return None
        return past.OfItems(features, past.day(self._events["@time"][-1].as_py()))

    @cached_property
    def _user_rows(self) -> Rows:
        """Row of the table of users of every interaction, -1 where it has none."""
        assert self._users is not None
        met = self._events["@user"].combine_chunks()
        where = pc.index_in(met.dictionary, value_set=self._users["@user"].combine_chunks())
        places = np.asarray(where.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
        codes = np.asarray(met.indices.fill_null(len(places)).to_numpy(zero_copy_only=False))
        found: Rows = np.append(places, -1)[codes]
        return found

    @property
    def unlisted_users(self) -> int:
        """Interactions whose user the table of users does not have: they are known by nothing."""
        return 0 if self._users is None else int((self._user_rows < 0).sum())


def _plain(table: pa.Table) -> pa.Table:
    """The same with strings in place of codes."""
    columns = {
        name: column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return pa.table(columns)
