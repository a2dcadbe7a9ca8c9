"""Who the user of a row was, and when: what `prepare` keeps of `@user` and `@time`."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cascade.data import DataError, prepare
from cascade.data.dataset import FORMAT, Dataset
from cascade.data.prepare import write
from cascade.data.source import SPLITS
from cascade.files import write_json
from cascade.schema import Feature, Schema
from tests.own_tables import SCHEMA, raw, shop, write_shop


class Log:
    """A source of given columns, the same in every split but for its users."""

    schema = Schema("log", (Feature("city", "user", "categorical", "vocabulary"),
                            Feature("price", "item", "dense", "identity")))  # fmt: skip
    fingerprint = MappingProxyType({})

    def __init__(self, *users: Any, time: Any = None) -> None:
        self.users, self.time = users, time

    def chunks(self, split: Any) -> Any:
        users = self.users[SPLITS.index(split)]
        size = len(users)
        columns = {
            "label": [1.0] * size,
            "city": ["Oslo"] * size,
            "price": np.arange(size, dtype=float),
        }
        columns["@user"] = users
        yield pa.table(columns if self.time is None else {**columns, "@time": self.time[:size]})

    def catalogue(self) -> None:
        return None


def prepared(source: Any, folder: Path) -> Dataset:
    """A data set of a source that no SPEC names."""
    folder.mkdir()
    counts = write(source, source.schema, folder)
    write_json(folder / "source.json", {"format": FORMAT, **counts})
    return Dataset.open(folder)


def users(dataset: Dataset) -> list[list[int]]:
    found = [dataset.read(split).user for split in SPLITS]
    return [[] if user is None else user.tolist() for user in found]


def test_a_user_has_one_number_in_all_splits(tmp_path: Path) -> None:
    names = (["b", None, "a", "b"], ["a", "c"], [None, "c", "b"])
    dataset = prepared(Log(*map(pa.array, names)), tmp_path / "names")
    assert users(dataset) == [[0, -1, 1, 0], [1, 2], [-1, 2, 0]]
    assert (dataset.has_users, dataset.user_count) == (True, 3)
    assert dataset.read("train").time is None
    codes = (pa.array([9, None, 7, 9]), pa.array([7, 2**62]), pa.array([None, 2**62, 9]))
    assert users(prepared(Log(*codes), tmp_path / "codes")) == users(dataset)
    stored = (pa.array(part, pa.string()).dictionary_encode() for part in names)
    assert users(prepared(Log(*stored), tmp_path / "stored")) == users(dataset)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (pa.array([3, None, 5]), [3, np.nan, 5]),
        (pa.array([0.5, 2, np.nan]), [0.5, 2, np.nan]),
        (pa.array([datetime(1970, 1, 1, 0, 0, 1), None, None]), [1e6, np.nan, np.nan]),
        (pa.array([datetime(1970, 1, 2, tzinfo=timezone.utc)] * 3), [86_400e6] * 3),
        (pa.array([1_700_000_000_000_000_001] * 3), [1_700_000_000_000_000_000] * 3),
    ],
)
def test_times_are_numbers(tmp_path: Path, time: Any, expected: list[float]) -> None:
    dataset = prepared(Log(*[pa.array(["a"] * 3)] * 3, time=time), tmp_path / "out")
    for split in SPLITS:
        found = dataset.read(split).time
        assert found is not None
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)


def test_times_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gives @time as string; expected numbers or timestamps"):
        prepared(Log(*[pa.array(["a"])] * 3, time=pa.array(["noon"])), tmp_path / "out")


def test_a_table_keeps_its_users_beside_a_feature_of_that_name(tmp_path: Path) -> None:
    dataset = prepare("table", tmp_path / "out", schema_file=write_shop(tmp_path))
    clicks = shop()["clicks"]
    assert dataset.user_count == len(set(clicks["user_id"]))
    numbers = np.concatenate([*map(np.array, users(dataset))])
    assert len(set(zip(numbers, clicks["user_id"], strict=True))) == dataset.user_count
    times = np.concatenate([dataset.read(split).time for split in SPLITS])
    np.testing.assert_array_equal(times, raw(tmp_path)["@time"].to_numpy())
    batches = [*dataset.batches("train", 100, seed=1)]
    for batch in batches:
        assert batch.user is not None
        assert (batch.user_ids[:, 0] > 0).all()
        # The encoded name of the user and the number of the user go together.
        assert len(set(zip(batch.user, batch.user_ids[:, 0], strict=True))) == len(set(batch.user))


def test_a_table_without_users_has_none(tmp_path: Path) -> None:
    schema = SCHEMA.replace("user: user_id\n", "").replace("users: users.csv\n", "")
    features = [
        line for line in schema.splitlines(True) if "city" not in line and "age" not in line
    ]
    dataset = prepare(
        "table", tmp_path / "out", schema_file=write_shop(tmp_path, "".join(features))
    )
    assert not dataset.has_users
    assert dataset.read("test").user is None
    assert dataset.read("test").time is not None
