"""Users for a store: their tables and events, and whether a store holds them as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.layout import RequestLayout
from cascade.store import UserStore, open_backend
from export.users import Table, layout_of
from tests.cascades import Cascade, table_of

HISTORY, KEPT = "history", 4  # a bag of `people`, and how many members are kept


def stored(url: str, layout: RequestLayout, ids: Sequence[str]) -> Any:
    """`StoredUsers`, read as a server reads them."""
    backend = open_backend(url)
    try:
        return UserStore(backend, layout).get([name.encode() for name in ids])
    finally:
        backend.close()


@dataclass(frozen=True)
class Crowd:
    """Users of a table for `export users`.

    Args:
        dense, categorical: as they are stored.
    """

    table: Path
    layout: RequestLayout
    ids: list[str]
    dense: Any
    categorical: Any

    def found(self, url: str) -> tuple[Any, Any]:
        """Whether the store has each user, and has it as it is: bool [N] each."""
        got = stored(url, self.layout, self.ids)
        return got.known, got.known & _same_rows(got, self.dense, self.categorical)

    def lost(self, url: str) -> int:
        """Users that the store does not have as they are."""
        return int((~self.found(url)[1]).sum())

    def wrong(self, url: str) -> int:
        """Users that it has otherwise."""
        known, right = self.found(url)
        return int((known & ~right).sum())


def _same_rows(got: Any, dense: Any, categorical: Any) -> Any:
    numbers = (got.dense == dense) | (np.isnan(got.dense) & np.isnan(dense))
    return numbers.all(axis=1) & (got.categorical == categorical).all(axis=1)


def crowd(people: Cascade, table: Path, count: int, first: int = 0, seed: int = 0) -> Crowd:
    """Users with the features of those of `people`, drawn, and one number of their own; named by
    numbers from `first` on."""
    rows = np.random.default_rng(seed).integers(len(people.dense), size=count)
    dense, categorical = people.dense[rows].copy(), people.categorical[rows]
    dense[:, 0] = seed * 1_000_000 + np.arange(count)
    names = [str(first + row) for row in range(count)]
    made = table_of(people.schema, "user", dense, categorical)
    pq.write_table(made.append_column("user_id", pa.array(names)), table)
    layout = layout_of(people.repository)
    chunks = [*Table(table, layout, "user_id").chunks()]
    parts = [np.concatenate([chunk[place] for chunk in chunks]) for place in (1, 2)]
    return Crowd(table, layout, names, *parts)


@dataclass
class Events:
    """Events of some users, user 0 to n - 1 by turns, and the histories that they leave behind."""

    users: int
    histories: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.histories = self.histories or [[] for _ in range(self.users)]

    @property
    def ids(self) -> list[str]:
        return [f"reader-{user}" for user in range(self.users)]

    def write(self, file: Path, count: int, turn: int, first: int = 0) -> None:
        """A file of the events `first` to `count` of a turn."""
        lines = (
            {"user_id": f"reader-{i % self.users}", "feature": HISTORY, "values": [f"{turn}-{i}"]}
            for i in range(first, count)
        )
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def follow(self, url: str, layout: RequestLayout, turn: int) -> tuple[int, int]:
        """Take over what the store has of a turn -> how many events it has, and how many users
        have anything else than their first events of the turn, in order, before all that they had.
        """
        place = [*layout.id_features].index(HISTORY)
        texts = stored(url, layout, self.ids).categorical[:, place].tolist()
        found = [text.decode().split("|") if text else [] for text in texts]
        newest = [_number(history, turn) for history in found]
        lost, written = 0, max(newest) + 1
        for user, (history, last) in enumerate(zip(found, newest, strict=True)):
            new = [f"{turn}-{i}" for i in range(user, last + 1, self.users)]
            lost += [*new[::-1], *self.histories[user]][:KEPT] != history
            self.histories[user] = history
        return written, lost

    def uneven(self, written: int, turn: int) -> int:
        """Users who lack one of the first events of a turn."""
        lasts = [
            (written - 1 - user) // self.users * self.users + user for user in range(self.users)
        ]
        newest = [_number(history, turn) for history in self.histories]
        return sum(max(last, -1) != number for last, number in zip(lasts, newest, strict=True))


def _number(history: Sequence[str], turn: int) -> int:
    """Of the newest event of the turn, -1 where there is none."""
    of, _, number = history[0].partition("-") if history else ("", "", "")
    return int(number) if of == str(turn) else -1
