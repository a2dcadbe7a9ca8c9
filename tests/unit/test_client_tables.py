"""Files of users and of answers: Parquet, CSV and JSON lines hold the same, exactly."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cascade.client import Recommendation
from cascade.layout import IdFeature, RequestLayout
from clients.answers import answer_file
from clients.tables import open_users

LAYOUT = RequestLayout(
    ("age", "visits"), (IdFeature("country"), IdFeature("history", "bag", 3)), "hash"
)
BIG = 2**53 + 1  # no double holds it
ROWS: list[dict[str, Any]] = [
    {"uid": BIG, "age": 31.5, "country": str(2**63 - 1), "history": ["a", "b"], "code": "007"},
    {"uid": -BIG, "age": None, "country": None, "history": None, "code": "8"},
    {"uid": None, "age": 2.0, "country": "été, 5", "history": ["c"], "code": None},
]
USERS = [
    {"age": 31.5, "country": str(2**63 - 1), "history": "a|b"},
    {},
    {"age": 2.0, "country": "été, 5", "history": "c"},
]
FORMATS = ["parquet", "csv", "jsonl"]


def write_rows(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                joined = {k: "|".join(v) if isinstance(v, list) else v for k, v in row.items()}
                writer.writerow(joined)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def plain(user: dict[str, Any]) -> dict[str, Any]:
    joined = {k: "|".join(v) if isinstance(v, list) else v for k, v in user.items()}
    return {name: value for name, value in joined.items() if value is not None}


def answers() -> Iterator[Recommendation | str]:
    yield Recommendation(np.array([BIG, 2**63 - 1]), np.array([0.9437, 0.1], np.float32))
    yield "feature age: bad"
    yield Recommendation(np.zeros(0, np.int64), np.zeros(0, np.float32))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Kept columns and results, whatever the format."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        for row in rows:
            row["scores"] = row["scores"] and [float(str(np.float32(s))) for s in row["scores"]]
        return rows
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.open()]
    found = []
    for text in csv.DictReader(path.open(newline="")):
        row: dict[str, Any] = {name: value or None for name, value in text.items()}
        row["uid"] = row["uid"] and int(row["uid"])
        for name, kind in (("item_ids", int), ("scores", float)):
            members = row[name].split("|") if row[name] else []
            row[name] = None if row["error"] else [kind(member) for member in members]
        found.append(row)
    return found


@pytest.mark.parametrize("written", FORMATS)
@pytest.mark.parametrize("read", FORMATS)
def test_every_format_becomes_every_other(tmp_path: Path, read: str, written: str) -> None:
    source, target = tmp_path / f"in.{read}", tmp_path / f"out.{written}"
    write_rows(source)
    users = open_users(source, LAYOUT, ["uid", "code"])
    assert (users.rows, users.absent) == (3, ["visits"])
    batches = list(users.batches(2))
    assert [len(some) for some, _ in batches] == [2, 1]
    assert [plain(user) for some, _ in batches for user in some] == USERS
    found = list(answers())
    with answer_file(target, users.kept) as write:
        write(batches[0][1], found[:2])
        assert not target.exists()
        write(batches[1][1], found[2:])
    results: list[dict[str, Any]] = [
        {"item_ids": [BIG, 2**63 - 1], "scores": [0.9437, 0.1], "error": None},
        {"item_ids": None, "scores": None, "error": "feature age: bad"},
        {"item_ids": [], "scores": [], "error": None},
    ]
    kept = [{"uid": row["uid"], "code": row["code"]} for row in ROWS]
    if (read, written) != ("csv", "csv"):
        kept[2]["code"] = kept[2]["code"] or ("" if read == "csv" else None)
    assert read_rows(target) == [k | r for k, r in zip(kept, results, strict=True)]
    if written == "parquet":
        types = pq.read_schema(target)
        assert types.field("uid").type == pa.int64()
        assert types.field("code").type == pa.string()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, -(2**63)], pa.int64()),
        ([2**64 - 1, 5], pa.uint64()),
        ([2**64, 5], pa.string()),
        ([2**64 - 1, -1], pa.string()),
        ([1, 2.5], pa.float64()),
        ([BIG, 2.5], pa.string()),
        ([True, None], pa.bool_()),
        ([1, "a", [1, {"b": "c"}], True], pa.string()),
        ([None], pa.string()),
    ],
)
def test_a_column_of_json_gets_the_type_that_holds_it(
    tmp_path: Path, values: list[Any], kind: Any
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    write_rows(source, [{"age": 1, "key": value} for value in values])
    users = open_users(source, LAYOUT, ["key"])
    with answer_file(target, users.kept) as write:
        for some, kept in users.batches(2):
            write(kept, [""] * len(some))
    column = pq.read_table(target)["key"]
    assert column.type == kind
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    assert column.to_pylist() == (texts if kind == pa.string() else values)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "age,country\n1,x\n2\n", r"a.csv, row 2 \(line 3\): 1 cells came; .* 2 columns"),
        ("a.csv", 'age,country\n1,"x\n', r"a.csv, row 1 \(line 2\): not CSV"),
        ("a.csv", "age,age\n1,2\n", "a.csv: column 'age' comes twice"),
        ("a.csv", "AGE\n1\n", "a.csv has none of the features age"),
        ("a.csv", "", "a.csv has none of the features age"),
        ("a.csv", b"age\n\xff\n", "a.csv is not UTF-8"),
        ("a.jsonl", '{"age": 1}\n\n{"age"\n', r"a.jsonl, row 2 \(line 3\): not JSON"),
        ("a.jsonl", "[" * 100_000, r"a.jsonl, row 1 \(line 1\): not JSON that can be read"),
        ("a.jsonl", '{"age": 1, "age": 2}', r"row 1 \(line 1\): an object that has 'age' twice"),
        ("a.jsonl", "[1]\n", r"a.jsonl, row 1 \(line 1\): a list came; expected an object"),
        ("a.ndjson", '{"ag": 1}\n', "a.ndjson has none of the features age"),
        ("a.txt", "age\n1\n", r"a.txt is not a Parquet file: .* suffix, .csv, .jsonl, .ndjson"),
    ],
)
def test_a_damaged_file_is_named_with_its_row(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        open_users(path, LAYOUT, [])
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("value", ["\ud800", ["\ud800"]])
def test_a_kept_value_that_no_output_holds_is_named(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"age": 1, "key": key}) + "\n" for key in ("a", value)))
    with pytest.raises(ValueError, match=r"in\.jsonl, row 2: key is .*; UTF-8 cannot hold it"):
        open_users(path, LAYOUT, ["key"])
    assert open_users(path, LAYOUT, []).rows == 2


def test_cells_that_are_no_numbers_are_left_to_the_client(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("\ufeffage,visits,label\n 3 ,nan,x\n1_0,much,y\n\n-1e3,,z\n")
    ((users, kept),) = open_users(path, LAYOUT, []).batches(9)
    assert [user.get("age") for user in users] == [3.0, "1_0", -1000.0]
    assert [str(user.get("visits")) for user in users] == ["nan", "much", "None"]
    assert kept == [{}, {}, {}]


@pytest.mark.parametrize("written", FORMATS)
def test_items_may_be_named_by_strings(tmp_path: Path, written: str) -> None:
    source, target = tmp_path / "in.csv", tmp_path / f"out.{written}"
    write_rows(source)
    users = open_users(source, LAYOUT, [])
    found = Recommendation(np.array(["sku-1", "2"], object), np.array([0.5, 0.25], np.float32))
    with answer_file(target, users.kept, string_ids=True) as write:
        write([{}], [found])
    if written == "csv":
        assert target.read_text() == "item_ids,scores,error\nsku-1|2,0.5|0.25,\n"
    else:
        assert [row["item_ids"] for row in read_rows(target)] == [["sku-1", "2"]]
