"""Tables of a user's own: what is read of them, and what every mistake in them is told as."""

from __future__ import annotations

import gzip
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cascade.data import prepare
from cascade.data.opening import open_source
from cascade.data.source import SPLITS, BadRows
from cascade.encoding import Encoder
from tests.own_tables import (
    FIRST_ITEM,
    ITEMS,
    ROWS,
    SCHEMA,
    STRING_SCHEMA,
    raw,
    shop,
    with_string_ids,
    write_csv,
    write_parquet,
    write_shop,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "ml-latest-small"


def test_a_shop_is_prepared(tmp_path: Path) -> None:
    dataset = prepare("table", tmp_path / "out", schema_file=write_shop(tmp_path))
    assert [dataset.rows(split) for split in SPLITS] == [480, 60, 60]
    ids = [FIRST_ITEM + 7 * number for number in range(ITEMS)]
    assert dataset.item_ids().tolist() == ids
    titles = dataset.titles()
    assert titles is not None
    assert titles[3] == 'thing "3", nice'
    assert dataset.has_negatives
    tables = shop()
    dense, categorical, item, label = dataset.raw_users("test", 60)
    users = {user: row for row, user in enumerate(tables["users"]["user_id"])}
    for row in range(60):
        at = 540 + row  # the rows were in the order of time already
        clicked = {name: column[at] for name, column in tables["clicks"].items()}
        user = users[clicked["user_id"]]
        age = tables["users"]["age"][user]
        assert np.isnan(dense[row, 0]) if age is None else dense[row, 0] == age
        sent = (clicked["user_id"], tables["users"]["city"][user], clicked["device"])
        assert categorical[row].tolist() == [x.encode() for x in (*sent, clicked["seen"])]
        assert ids[item[row]] == clicked["item_id"]
        assert label[row] == clicked["clicked"]
    assert {f.name: f.cardinality - 2 for f in dataset.schema.ids("item")} == {
        "product": ITEMS,
        "tags": 7,
    }


@pytest.mark.parametrize("listed", [True, False])
def test_items_are_named_by_strings(listed: bool, tmp_path: Path) -> None:
    """The same rows of the same items; without a table of items, too."""
    found = []
    for name, schema, change in (
        ("integers", SCHEMA, lambda tables: None),
        ("strings", STRING_SCHEMA, with_string_ids),
    ):
        (tmp_path / name).mkdir()
        if not listed:
            schema = schema.replace("items: items.csv\n", "").replace("title: name\n", "")
            schema = "".join(
                x for x in schema.splitlines(True) if "price" not in x and "tags" not in x
            )
        file = write_shop(tmp_path / name, schema, change)
        found.append(prepare("table", tmp_path / name / "out", schema_file=file))
    integers, strings = found
    assert strings.schema.string_ids
    ids = strings.item_ids()
    names = [f"sku-{item}" for item in integers.item_ids().tolist()]
    assert sorted(ids) == sorted(names)
    for split in SPLITS:
        items = [integers.read(split).item, strings.read(split).item]
        assert [names[row] for row in items[0]] == [ids[row] for row in items[1]]


def test_parquet_and_csv_say_the_same(tmp_path: Path) -> None:
    write_shop(tmp_path)
    expected = raw(tmp_path)
    tables: dict[str, dict[str, Any]] = shop()
    tables["clicks"]["seen"] = [
        text.split("|") if text else [] for text in tables["clicks"]["seen"]
    ]
    at = [datetime.fromisoformat(text) for text in tables["clicks"]["at"]]
    tables["clicks"]["at"] = pa.array(at, pa.timestamp("us"))
    tables["clicks"]["device"] = pa.array(tables["clicks"]["device"]).dictionary_encode()
    tables["items"]["tags"] = [text.split("|") for text in tables["items"]["tags"]]
    tables["clicks"]["clicked"] = [bool(label) for label in tables["clicks"]["clicked"]]
    for name, columns in tables.items():
        write_parquet(tmp_path / f"{name}.parquet", columns)
    (tmp_path / "schema.yaml").write_text(SCHEMA.replace(".csv", ".parquet"))
    found = raw(tmp_path)
    assert found.column_names == expected.column_names
    for name in found.column_names:
        there = [value or None for value in found[name].to_pylist()]
        assert there == [value or None for value in expected[name].to_pylist()], name


def test_features_tables_and_folders_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's R&D (2024)" / "$HOME"
    folder.mkdir(parents=True)
    write_shop(folder)
    names = {"city": "geo/ciudad_año", "seen": "城" * 300, "tags": ".étiquettes", "price": "p.x €"}
    text = SCHEMA.replace("items.csv", "catálogo 城.csv")
    for name, other in names.items():
        text = text.replace(f"{{name: {name}, ", f"{{name: {other!r}, column: {name}, ")
    (folder / "items.csv").rename(folder / "catálogo 城.csv")
    (folder / "schéma.yaml").write_text(text, "utf-8")
    dataset = prepare("table", tmp_path / "my données", schema_file=folder / "schéma.yaml")
    loaded = Encoder.load(tmp_path / "my données")
    assert {*names.values()} <= {feature.name for feature in loaded.schema.features}
    assert b"a" in loaded.vocabulary(loaded.schema.ids("item")[1])
    assert dataset.read("train").label.any()


def test_columns_of_other_types(tmp_path: Path) -> None:
    """As other programs write them: dates, decimals, lists of one size, codes of text."""
    tables: dict[str, dict[str, Any]] = shop()
    write_shop(tmp_path)
    clicks, items = tables["clicks"], tables["items"]
    clicks["at"] = [date(2026, 1, 1 + row % 28) for row in range(ROWS)]
    clicks["clicked"] = [Decimal(label) for label in clicks["clicked"]]
    clicks["seen"] = pa.array([[1, row] for row in range(ROWS)], pa.list_(pa.int32(), 2))
    clicks["user_id"] = pa.array(clicks["user_id"], pa.large_string())
    clicks["item_id"] = pa.array(clicks["item_id"], pa.uint64())
    items["tags"] = pa.array([["a", None, ""]] * ITEMS, pa.large_list(pa.large_string()))
    items["price"] = pa.array(items["price"], pa.float64()).dictionary_encode()
    for name in ("clicks", "items"):
        write_parquet(tmp_path / f"{name}.parquet", tables[name])
    schema = SCHEMA.replace("clicks.csv", "clicks.parquet").replace("items.csv", "items.parquet")
    (tmp_path / "schema.yaml").write_text(schema)
    found = raw(tmp_path)
    assert found["seen"].to_pylist()[0] == "1|0"
    assert sum(found["label"].to_pylist()) == sum(clicks["clicked"])
    dataset = prepare("table", tmp_path / "out", schema_file=tmp_path / "schema.yaml")
    assert [*dataset.encoder.vocabulary(dataset.schema.ids("item")[1])] == [b"a"]


@pytest.mark.skipif(not REAL.exists(), reason="the real ratings are not here")
def test_real_ratings_as_a_log_of_choices(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(
        "interactions: ratings.csv\nitems: movies.csv\nitem: movieId\nuser: userId\n"
        "time: timestamp\ntitle: title\nfeatures:\n"
        "- {name: user, side: user, kind: categorical, column: userId}\n"
        "- {name: movie, side: item, kind: categorical, column: movieId}\n"
        "- {name: genres, side: item, kind: bag, length: 8}\n"
    )
    schema = tmp_path / "schema.yaml"
    dataset = prepare(f"table:{REAL}", tmp_path / "out", schema_file=schema)
    expected = prepare(f"movielens:{REAL}", tmp_path / "expected")
    assert dataset.source["rows"] == expected.source["rows"]
    assert dataset.item_ids().tolist() == expected.item_ids().tolist()
    assert [*map(str.strip, dataset.titles() or [])] == expected.titles()
    for split in SPLITS:
        assert dataset.read(split).item.tolist() == expected.read(split).item.tolist()
    assert not dataset.has_negatives


def test_rows_are_sorted_by_time_and_one_time_is_not_split(tmp_path: Path) -> None:
    def shuffle(tables: dict[str, dict[str, list[Any]]]) -> None:
        clicks = tables["clicks"]
        clicks["at"] = [f"{90 - number // 100}" for number in range(ROWS)]

    write_shop(tmp_path, change=shuffle)
    source = open_source("table", BadRows(), tmp_path / "schema.yaml")
    times = [
        [time for chunk in source.chunks(split) for time in chunk["@time"].to_pylist()]
        for split in SPLITS
    ]
    assert times == [[85] * 100 + [86] * 100 + [87] * 100 + [88] * 100 + [89] * 100, [90] * 100, []]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 1, 2], [1, 2, 3]),
        ([0.5, 0.25, 2], [0.25, 0.5, 2]),
        (["2026-01-02", "2026-01-01T10:00", "2026-01-01"], None),
        (["2026-01-01T10:00:00Z", "2026-01-01T12:00:00+05:00", "2026-01-01T00:00Z"], None),
    ],
)
def test_times_of_every_form(tmp_path: Path, values: list[Any], expected: Any) -> None:
    write_shop(tmp_path, change=lambda tables: tables["clicks"].update(at=values * 200))
    found = list(dict.fromkeys(raw(tmp_path)["@time"].to_pylist()))
    if expected is None:
        moments = [datetime.fromisoformat(value) for value in values]
        zoned = [m if m.tzinfo else m.replace(tzinfo=timezone.utc) for m in moments]
        expected = sorted(int(moment.timestamp() * 1e6) for moment in zoned)
    assert found == expected


def test_without_a_time_and_a_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = write_shop(tmp_path, SCHEMA.replace("time: at\n", "").replace("label: clicked\n", ""))
    dataset = prepare("table", tmp_path / "out", schema_file=schema)
    said = capsys.readouterr().err
    assert "no column `time` is named, so the split is random" in said
    assert "no column `label` is named, so every row is a positive" in said
    assert [dataset.rows(split) for split in SPLITS] == [480, 60, 60]
    assert not dataset.has_negatives
    again = prepare("table", tmp_path / "again", schema_file=schema)
    assert again.read("test").item.tolist() == dataset.read("test").item.tolist()


def test_without_tables_of_users_and_items(tmp_path: Path) -> None:
    """Items are those that are met, as they were met last."""
    rows: dict[str, list[Any]] = {
        "sku": [7, 5, 7, 9, 5] * 20,
        "price": [*range(100)],
        "city": ["Oslo", "Rome"] * 50,
        "clicked": [0, 1] * 50,
        "at": [*range(100)],
    }
    write_csv(tmp_path / "log.csv", rows)
    (tmp_path / "schema.yaml").write_text(
        "interactions: log.csv\nitem: sku\nlabel: clicked\ntime: at\nfeatures:\n"
        "- {name: city, side: user, kind: categorical}\n"
        "- {name: price, side: item, kind: dense, encoding: identity}\n"
    )
    dataset = prepare("table", tmp_path / "out", schema_file=tmp_path / "schema.yaml")
    assert dataset.item_ids().tolist() == [5, 7, 9]
    assert dataset.items()[0][:, 0].tolist() == [99, 97, 98]


def test_where_the_files_are(tmp_path: Path) -> None:
    """Beside the YAML file, in a folder, or named one by one; several are read in their order."""
    write_shop(tmp_path)
    expected = raw(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("users.csv", "items.csv"):
        (tmp_path / name).rename(other / name)
    header, *lines = (tmp_path / "clicks.csv").read_text().splitlines(keepends=True)
    (tmp_path / "clicks.csv").unlink()
    parts = other / "2026-1.csv", other / "2026-2.csv.gz"
    parts[0].write_text(header + "".join(lines[:200]))
    with gzip.open(parts[1], "wt") as file:
        file.write(header + "".join(lines[200:]))
    with parts[1].open("ab") as packed:  # zeros behind it, as a tape leaves them
        packed.write(bytes(512))
    everywhere = f"interactions: {other}/**/2026-?.csv*\n"
    for key in (
        everywhere,
        "interactions: 2026-*.csv*\n",
        "interactions: [2026-1.csv, 2026-2.csv.gz]\n",
        "",
    ):
        schema = SCHEMA.replace("interactions: clicks.csv\n", key)
        (tmp_path / "schema.yaml").write_text(schema)
        assert raw(tmp_path, f"table:{other}").equals(expected)
    below = SCHEMA.replace(": users.csv", ": other/users.csv").replace(": it", ": other/it", 1)
    (tmp_path / "schema.yaml").write_text(below)
    assert raw(tmp_path, f"table:{parts[0]},{parts[1]}").equals(expected)


def test_long_histories_are_cut_to_what_a_model_sees(tmp_path: Path) -> None:
    long = [str(number) for number in range(3000)]  # more bytes than an encoder takes
    write_shop(tmp_path, change=lambda tables: tables["clicks"].update(seen=["|".join(long)] * 600))
    assert set(raw(tmp_path)["seen"].to_pylist()) == {"2997|2998|2999"}
