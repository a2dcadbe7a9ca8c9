"""What users had interacted with strictly before a moment."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cascade.data import DataError, Dataset, prepare
from cascade.data.dataset import FORMAT
from cascade.data.prepare import write
from cascade.data.seen import Events, Seen
from cascade.data.source import SPLITS
from cascade.files import write_json
from cascade.schema import Feature, Schema
from tests.own_tables import SCHEMA, write_shop

REAL = Path(__file__).parents[3] / "shared" / "data" / "ml-latest-small"


class Log:
    """(user, item, time) by split, of 10 items."""

    schema = Schema(
        "log",
        (
            Feature("city", "user", "categorical", "vocabulary"),
            Feature("price", "item", "dense", "identity"),
        ),
    )
    fingerprint = MappingProxyType({})

    def __init__(self, **rows: list[tuple[Any, int, float | None]]) -> None:
        self.rows = rows

    def chunks(self, split: Any) -> Any:
        user, item, time = zip(*self.rows[split], strict=True)
        yield pa.table(
            {
                "label": [float(number % 2) for number in range(len(user))],
                "city": ["Oslo"] * len(user),
                "item_id": item,
                "@user": pa.array(user, pa.string()),
                "@time": pa.array(time, pa.float64()),
            }
        )

    def catalogue(self) -> pa.Table:
        return pa.table({"item_id": np.arange(10), "price": np.ones(10)})


def prepared(folder: Path, **rows: list[tuple[Any, int, float | None]]) -> Dataset:
    counts = write(Log(**rows), Log.schema, folder)
    write_json(folder / "source.json", {"format": FORMAT, **counts})
    return Dataset.open(folder)


def lists(found: tuple[Any, Any]) -> list[list[int]]:
    offsets, items = found
    assert offsets[-1] == len(items)
    return [items[a:b].tolist() for a, b in pairwise(offsets)]


def test_a_log_by_hand(tmp_path: Path) -> None:
    dataset = prepared(
        tmp_path,
        train=[("a", 3, 1), ("b", 4, 1), ("a", 5, 2), (None, 9, 2), ("a", 6, 2), ("a", 3, 3)],
        validation=[("b", 7, 4), ("a", 8, None)],
        test=[("c", 1, 5), ("a", 2, 5.5)],
    )
    seen = Seen.of(dataset)

    def asked(user: list[int], time: list[float]) -> list[list[int]]:
        return lists(seen.before(np.array(user), np.array(time, float)))

    assert asked([0] * 5, [1, 2, 2.5, 3, 9]) == [[], [3], [6, 5, 3], [6, 5, 3], [2, 3, 6, 5]]
    assert asked([1, 2, 2, 1, 1], [4, 5, 6, 0, np.inf]) == [[4], [], [1], [], [7, 4]]
    assert asked([-1, 3, 99, 0], [9, 9, 9, np.nan]) == [[], [], [], []]
    assert asked([], []) == []
    liked = Seen.made(Events.joined([Events.read(dataset, s) for s in SPLITS]).liked(), dataset)
    assert lists(liked.before(np.array([0, 1]), np.array([9, 9.0]))) == [[2, 3], [4]]
    with pytest.raises(DataError, match="have times; give those of the users"):
        seen.before(np.array([0]))


def test_without_times_the_splits_are_in_order(tmp_path: Path) -> None:
    schema = write_shop(tmp_path, SCHEMA.replace("time: at\n", ""))
    dataset = prepare("table", tmp_path / "out", schema_file=schema)
    seen = Seen.of(dataset)
    before: dict[int, set[int]] = defaultdict(set)
    for split in SPLITS:
        rows = dataset.read(split)
        assert rows.user is not None
        found = lists(seen.before(rows.user, rows.time, split))
        assert [set(items) for items in found] == [before[user] for user in rows.user]
        assert all(len(set(items)) == len(items) for items in found)
        for user, item in zip(rows.user, rows.item, strict=True):
            before[user].add(item)


def test_without_users_nothing_was_seen(tmp_path: Path) -> None:
    seen = Seen.of(prepare("synthetic:rows=200,items=5", tmp_path / "out"))
    assert lists(seen.before(np.full(3, -1))) == [[], [], []]


@pytest.mark.skipif(not REAL.exists(), reason="the real ratings are not here")
def test_real_ratings_equal_a_plain_loop(tmp_path: Path) -> None:
    dataset = prepare(f"movielens:{REAL}", tmp_path / "out")
    log = [dataset.read(split) for split in SPLITS]
    user, item, time = (np.concatenate([getattr(b, name) for b in log]) for name in
                        ("user", "item", "time"))  # fmt: skip
    rows = dataset.raw_sample("test", 50, positives=True)
    assert rows.user is not None
    found = lists(Seen.of(dataset).before(rows.user, rows.time))
    for one, at, items in zip(rows.user, rows.time, found, strict=True):  # type: ignore[arg-type]
        mine = (user == one) & (time < at)
        assert set(items) == set(item[mine].tolist())
        times = [time[mine & (item == there)].max() for there in items]
        assert times == sorted(times, reverse=True)
    # A movie is rated once, so that none is among those seen before it.
    assert all(own not in items for own, items in zip(rows.item.tolist(), found, strict=True))
    assert sum(map(len, found)) > 1000
