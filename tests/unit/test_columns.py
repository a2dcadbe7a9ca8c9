"""What columns of tables become, whoever reads them: one set of rules."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cascade.columns import convert
from cascade.columns.checked import checked
from cascade.encoding import Encoder
from cascade.errors import CascadeError
from cascade.layout import RequestLayout
from cascade.schema import Feature, Schema
from clients.tables import open_users
from export.releases.items import read_ids, read_items
from export.users import Table

NAMES = ("price", "brand", "tags")
SCHEMA = Schema(
    "shop",
    tuple(
        feature
        for side, prefix in (("user", ""), ("item", "item_"))
        for feature in (
            Feature(f"{prefix}price", side, "dense", "identity"),  # type: ignore[arg-type]
            Feature(f"{prefix}brand", side, "categorical", "hash", buckets=9),  # type: ignore[arg-type]
            Feature(f"{prefix}tags", side, "bag", "hash", length=3, buckets=9),  # type: ignore[arg-type]
        )
    ),
)
LAYOUT = RequestLayout.of(SCHEMA)
Read = Callable[[dict[str, Any], Path], list[Any]]


def of_training(columns: dict[str, Any], folder: Path) -> list[Any]:
    found = []
    for feature in SCHEMA.side("user"):
        wanted = convert.feature(feature)
        column = pa.chunked_array([columns[feature.name]])
        found.append(checked(column, wanted, lambda fault: CascadeError(fault.of("x"))))
    return [[None if v == "" else v for v in column.to_pylist()] for column in found]


def of_catalogue(columns: dict[str, Any], folder: Path) -> list[Any]:
    table = {"item_id": [*range(len(columns["price"]))]}
    table |= {f"item_{name}": column for name, column in columns.items()}
    pq.write_table(pa.table(table), folder / "t.parquet")
    raw = read_items(folder / "t.parquet", Encoder.fit(SCHEMA, {}), folder).raw
    assert raw is not None
    return [[None if v == "" else v for v in column.to_pylist()] for column in raw.columns]


def of_users(columns: dict[str, Any], folder: Path) -> list[Any]:
    pq.write_table(pa.table(columns), folder / "t.parquet")
    _, dense, categorical = next(Table(folder / "t.parquet", LAYOUT, None).chunks())
    numbers = [None if np.isnan(value) else value for value in dense[:, 0].tolist()]
    return [numbers, *([v.decode() or None for v in c] for c in categorical.T)]


def of_batch(columns: dict[str, Any], folder: Path) -> list[Any]:
    pq.write_table(pa.table(columns), folder / "t.parquet")
    users = [u for some, _ in open_users(folder / "t.parquet", LAYOUT, []).batches(9) for u in some]
    dense, categorical = LAYOUT.arrays(users)  # as the client sends them
    numbers = [None if np.isnan(value) else value for value in dense[:, 0].tolist()]
    return [numbers, *([v.decode() or None for v in c] for c in categorical.T)]


READERS = {"training": of_training, "catalogue": of_catalogue, "users": of_users, "batch": of_batch}
GOOD: dict[str, Any] = {
    "price": pa.array([0.5, None]),
    "brand": pa.array(["7", None]),
    "tags": pa.array(["a|b", None]),
}
EXPECTED = [[0.5, None], ["7", None], ["a|b", None]]
USABLE: dict[str, dict[str, Any]] = {
    "as it is": {},
    "NaN": {"price": pa.array([0.5, float("nan")])},
    "float16": {"price": pa.array(np.array([0.5, np.nan], np.float16))},
    "decimals": {"price": pa.array([Decimal("0.50"), None])},
    "integers as categories": {"brand": pa.array([7, None], pa.uint64())},
    "codes of integers": {"brand": pa.array([7, None], pa.int8()).dictionary_encode()},
    "codes of text": {"brand": pa.array(["7", None]).dictionary_encode()},
    "bytes": {"brand": pa.array([b"7", None]), "tags": pa.array([b"a|b", None])},
    "large text": {"brand": pa.array(["7", None], pa.large_string())},
    "lists": {"tags": pa.array([["a", "b"], None])},
    "lists with holes": {"tags": pa.array([["a", None, "", "b"], []])},
    "large lists": {"tags": pa.array([["a", "b"], None], pa.large_list(pa.large_string()))},
    "lists of one size": {"tags": pa.array([["a", "b"], ["", None]], pa.list_(pa.string(), 2))},
    "lists of bytes": {"tags": pa.array([[b"a", b"b"], None])},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", USABLE)
def test_every_reader_takes_the_same(reader: str, case: str, tmp_path: Path) -> None:
    assert READERS[reader]({**GOOD, **USABLE[case]}, tmp_path) == EXPECTED


def test_lists_of_one_size_may_be_missing() -> None:
    lists = pa.array([["a", "b"], None, ["c", None]], pa.list_(pa.string(), 2))
    found, _ = convert.feature(SCHEMA.features[2]).convert(lists, False)
    assert found.to_pylist() == ["a|b", "", "c"]


@pytest.mark.parametrize("reader", [of_catalogue, of_users, of_batch])
def test_a_file_that_arrow_cannot_read_is_one_line(reader: Read, tmp_path: Path) -> None:
    """Of lists of one size, Arrow reads no missing ones."""
    tags = pa.array([["a", "b"], None], pa.list_(pa.string(), 2))
    with pytest.raises(CascadeError, match=r"t\.parquet .*lists to be of size=2"):
        reader({**GOOD, "tags": tags}, tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "text as a number": ({"price": pa.array(["0.5", "1"])}, "price|numbers"),
    "a boolean as a number": ({"price": pa.array([True, False])}, "price|numbers"),
    "a date as a number": ({"price": pa.array([datetime.date(2026, 1, 1)] * 2)}, "price|numbers"),
    "infinity": ({"price": pa.array([0.5, float("inf")])}, "finite number"),
    "beyond float32": ({"price": pa.array([0.5, -1e39])}, "finite number"),
    "a float as a category": ({"brand": pa.array([1.5, None])}, "strings or integers"),
    "a boolean as a category": ({"brand": pa.array([True, None])}, "strings or integers"),
    "a list as a category": ({"brand": pa.array([["a"], None])}, "strings or integers"),
    "other bytes": ({"brand": pa.array([b"\xff", None])}, "UTF-8"),
    "a list of floats": ({"tags": pa.array([[0.5], None])}, "strings or integers"),
    "a member with a bar": ({"tags": pa.array([["a|b"], None])}, "without"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", REFUSED)
def test_every_reader_refuses_the_same_in_one_line(reader: str, case: str, tmp_path: Path) -> None:
    columns, message = REFUSED[case]
    with pytest.raises(CascadeError, match=message) as caught:
        READERS[reader]({**GOOD, **columns}, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array([2**63 + 5, 7], pa.uint64()), "row 1: an item_id is 9223372036854775813"),
        (pa.array([7, 2**64 - 1], pa.uint64()).dictionary_encode(), "row 2: an item_id is 18446"),
        (pa.array([7, -5]), "row 2: an item_id is -5; expected an integer from 0 to"),
        (pa.array([7, 7]), "item 7 is there more than once"),
        (pa.array([7.0, 8.0]), "item_id is double"),
        (pa.array([True, False]), "item_id is bool"),
        (pa.array(["7", "8"]), "item_id is string, and the schema shop says"),
        (pa.array([7, None]), "1 of 2 item_id are null"),
    ],
)
def test_item_ids_fit_64_bits_and_occur_once(ids: Any, message: str, tmp_path: Path) -> None:
    table = {"item_id": ids, **{f"item_{name}": GOOD[name] for name in NAMES}}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(CascadeError, match=message):
        read_items(tmp_path / "t.parquet", Encoder.fit(SCHEMA, {}), tmp_path)


@pytest.mark.parametrize("line", [str(2**63), str(2**64 - 1), "-1", "1.5", "0x7"])
def test_an_id_to_remove_fits_64_bits(line: str, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(f"7\n{line}\n")
    with pytest.raises(CascadeError, match=r"ids\.txt:2: .* is no item id"):
        read_ids(tmp_path / "ids.txt")
