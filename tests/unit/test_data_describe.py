"""`python -m cascade.data describe`: what it counts, and what it warns of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cascade.data.__main__ import main
from cascade.data.describe.columns import Distinct
from cascade.data.describe.command import moment
from tests.own_tables import ITEMS, ROWS, SCHEMA, USERS, shop, write_shop
from tests.programs import last_error, status

Describe = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def describe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Describe:
    """Writes a shop and describes it -> the JSON and what was printed."""

    def described(schema: str = SCHEMA, **options: Any) -> tuple[dict[str, Any], str]:
        path = write_shop(tmp_path, schema, **options)
        file = tmp_path / "found.json"
        main(["describe", "--data", "table", "--schema", str(path), "--json", str(file)])
        return json.loads(file.read_text()), capsys.readouterr().out

    return described


def test_what_is_counted(describe: Describe) -> None:
    found, said = describe()
    tables = shop()
    clicks = tables["clicks"]
    assert found["warnings"] == []
    assert found["rows"] == {"train": 480, "validation": 60, "test": 60}
    assert sum(found["positives"].values()) == sum(clicks["clicked"])
    assert (found["items"], found["users"], found["split"]) == (ITEMS, USERS, "by time")
    assert found["items_met"] == len(set(clicks["item_id"]))
    per_user = sorted(Counter(clicks["user_id"]).values())
    assert found["events_per_user"] == {
        "least": per_user[0],
        "median": per_user[USERS // 2 - 1],
        "most": per_user[-1],
    }
    features = {feature["name"]: feature for feature in found["features"]}
    assert features["age"]["rows"] == ROWS
    ages = dict(zip(tables["users"]["user_id"], tables["users"]["age"], strict=True))
    assert features["age"]["missing"] == sum(ages[user] is None for user in clicks["user_id"])
    assert (features["age"]["least"], features["age"]["most"]) == (21, 20 + USERS - 1)
    assert features["price"]["rows"] == ITEMS
    assert features["product"]["distinct"] == ITEMS
    assert features["seen"]["distinct"] == 9
    assert features["seen"]["members"] == {"least": 0, "median": 2, "most": 4}
    assert features["seen"]["missing"] == ROWS // 5
    assert features["seen"]["cut"] == ROWS // 5  # those of four members
    assert features["tags"]["distinct"] == 7
    for shown in (
        "480 train",
        f"40, of which {found['items_met']}",
        "2026-01-01 00:00:00 to 2026-02",
    ):
        assert shown in said
    assert "no warnings" in said


def add(values: Callable[[list[int]], list[Any]]) -> Callable[[Any], None]:
    """A column `leaked` of the interactions, made from the labels."""

    def change(tables: Any) -> None:
        tables["clicks"]["leaked"] = values(tables["clicks"]["clicked"])

    return change


def change(table: str, column: str, row: int, value: Any) -> Callable[[Any], None]:
    def changed(tables: Any) -> None:
        tables[table][column][row] = value

    return changed


def without(key: str) -> str:
    return "".join(line for line in SCHEMA.splitlines(True) if not line.startswith(f"{key}:"))


CATEGORY = f"{SCHEMA}- {{name: leaked, side: user, kind: categorical}}\n"
NUMBER = f"{SCHEMA}- {{name: leaked, side: user, kind: dense, encoding: identity}}\n"
DRAWN = np.random.default_rng(0).random(ROWS)
WARNED: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "equal": (CATEGORY, add(lambda labels: labels), "leaked equals the label"),
    "equal number": (NUMBER, add(lambda labels: labels), "leaked equals the label"),
    "words": (
        CATEGORY,
        add(lambda labels: [["lost", "won"][label] for label in labels]),
        "feature leaked determines the label",
    ),
    "many words": (
        CATEGORY,
        add(lambda labels: [f"{label}-{row % 9}" for row, label in enumerate(labels)]),
        "feature leaked determines the label",
    ),
    "sorted": (
        NUMBER,
        add(lambda labels: [label + DRAWN[row] * 0.9 for row, label in enumerate(labels)]),
        "feature leaked orders the rows by their label",
    ),
    "missing": (
        NUMBER,
        add(lambda labels: [DRAWN[row] if label else None for row, label in enumerate(labels)]),
        "feature leaked is missing in the rows of one label only",
    ),
    "constant": (CATEGORY, add(lambda labels: [7] * ROWS), "feature leaked has one value everywhe"),
    "nothing": (
        CATEGORY,
        add(lambda labels: [None] * ROWS),
        "feature leaked is missing everywhere",
    ),
    "below 0": (
        NUMBER.replace("identity", "log1p"),
        add(lambda labels: [*map(float, DRAWN - 0.5)]),
        "which the encoding log1p takes for 0",
    ),
    "label": (SCHEMA, change("clicks", "clicked", 7, 2), "1 rows cannot be used; the first: "),
    "user twice": (SCHEMA, change("users", "user_id", 7, "u1"), "the users list u1 more than once"),
    "item twice": (
        SCHEMA,
        change("items", "item_id", 39, shop()["items"]["item_id"][0]),
        "more than once; an id has one row",
    ),
    "unknown user": (
        SCHEMA,
        change("clicks", "user_id", 7, "nobody"),
        "1 rows are of users that the users do not list",
    ),
    "no time": (without("time"), lambda tables: None, "so the split is random"),
    "no label": (without("label"), lambda tables: None, "every training row is a positive"),
    "no positive": (
        SCHEMA,
        lambda tables: tables["clicks"].update(clicked=[0] * ROWS),
        "no training row is a positive, so there is nothing to learn",
    ),
    "one label": (
        SCHEMA,
        lambda tables: tables["clicks"].update(clicked=[0, 1] * 240 + [1] * 120),
        "all rows of the test split have one label",
    ),
    "one time": (
        SCHEMA,
        lambda tables: tables["clicks"].update(at=[5] * ROWS),
        "no row is left for the test split",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_is_warned_of(describe: Describe, case: str) -> None:
    schema, changed, message = WARNED[case]
    found, said = describe(schema, change=changed)
    assert any(message in warning for warning in found["warnings"]), found["warnings"]
    assert f"warning: {found['warnings'][0]}" in said


@pytest.mark.parametrize(
    "values",
    [
        lambda labels: [*map(float, DRAWN)],
        lambda labels: [*range(ROWS)],
        lambda labels: [label if row % 10 else 1 - label for row, label in enumerate(labels)],
    ],
)
def test_what_tells_something_is_no_leak(describe: Describe, values: Any) -> None:
    """Nor is an id, of which each value is seen once."""
    for schema in (NUMBER, CATEGORY):
        if schema == NUMBER or not isinstance(values([0] * ROWS)[0], float):
            assert describe(schema, change=add(values))[0]["warnings"] == []


OWN = """
import pyarrow as pa
from cascade.schema import Feature, Schema


class Odd:
    fingerprint = {}
    schema = Schema("odd", (Feature("city", "user", "categorical", "vocabulary"),
                            Feature("price", "item", "dense", "log1p")))

    def catalogue(self):
        return pa.table({"item_id": [1, 2, 2], "price": [9.5, 20, 21]})

    def chunks(self, split):
        yield pa.table({"label": [1, 0, 3], "item_id": [1, 2, 4], "city": ["a", "b", None]})
"""


def test_a_class_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd_source.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    main(["describe", "--data", "odd_source:Odd"])
    said = capsys.readouterr().out
    assert "1 rows of the item list have an id that came before, as 2" in said
    assert "3 rows cannot be used; the first: the source, row 3 of train: the label is '3'" in said


@pytest.mark.parametrize("listed", [True, False])
def test_items_named_by_strings(describe: Describe, listed: bool) -> None:
    schema = SCHEMA.replace("item: item_id\n", "item: item_id\nitem_ids: strings\n")
    if not listed:  # an item is what its latest row says
        schema = schema.replace("items: items.csv\n", "").replace("title: name\n", "")
        schema = "".join(x for x in schema.splitlines(True) if "price" not in x and "tags" not in x)
    found, _ = describe(schema)
    assert found["warnings"] == []
    assert found["items_met"] == len(set(shop()["clicks"]["item_id"]))


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(main, ["describe", "--data", "table"]) == 1
    assert "needs --schema FILE" in last_error(capsys.readouterr().err)


def test_distinct_values_over_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.data.describe.columns.COMPACT_AT", 10)
    distinct = Distinct()
    assert distinct.count == 0
    for start in range(0, 100, 5):
        distinct.add(pa.array([*range(start, start + 10), None]))
    assert distinct.count == 105


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1_767_225_600, "2026-01-01 00:00:00 (1767225600 s)"),
        (1_767_225_600_000, "2026-01-01 00:00:00 (1767225600000 ms)"),
        (1_767_225_600_000_000, "2026-01-01 00:00:00"),
        (7, "7"),
        (0.5, "0.5"),
    ],
)
def test_a_time_is_shown_by_its_date(value: float, shown: str) -> None:
    assert moment(value) == shown
