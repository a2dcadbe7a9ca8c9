"""Rows of a user's own tables that cannot be used: told by their line, or left out and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cascade.data import Dataset
from cascade.data.__main__ import main
from cascade.data.source import BadRows, DataError
from tests.own_tables import FIRST_ITEM, ROWS, SCHEMA, raw, shop, write_parquet, write_shop
from tests.programs import last_error, status


def wrong(column: str, value: Any, row: int = 4, table: str = "clicks") -> Callable[[Any], None]:
    """A change of one value."""

    def change(tables: Any) -> None:
        tables[table][column][row] = value

    return change


Change = Callable[[Any], None]
ROW_FAULTS: dict[str, tuple[Change, str]] = {
    "label": (wrong("clicked", 2), "clicks.csv:6: clicked is '2'; expected a label, 0 or 1"),
    "no label": (wrong("clicked", None), "clicks.csv:6: clicked is missing; expected a label"),
    "text as label": (wrong("clicked", "yes"), "clicked is 'yes'; expected a label, 0 or 1"),
    "not a number": (
        wrong("price", "cheap", 2, "items"),
        "items.csv:4: price is 'cheap'; expected a finite number, or nothing where it is missing",
    ),
    "infinite": (wrong("price", "inf", 2, "items"), "price is 'inf'; expected a finite number"),
    "too large": (wrong("price", 1e39, 2, "items"), "price is '1e+39'; expected a finite"),
    "unknown item": (wrong("item_id", 5), "item_id is '5'; expected an item that the items list"),
    "no item": (wrong("item_id", None), "item_id is missing; expected an item"),
    "negative item": (
        wrong("item_id", -5, 3, "items"),
        "items.csv:5: item_id is '-5'; expected an integer from 0 to 2^63 - 1",
    ),
    "item beyond 64 bits": (wrong("item_id", 2**63), "item_id is '9223372036854775808'; expected"),
    "item with zeros": (wrong("item_id", "007"), "item_id is '007'; expected an item"),
    "float as item": (wrong("item_id", "5.0"), "item_id is '5.0'; expected an item"),
    "item twice": (
        lambda tables: wrong("item_id", tables["items"]["item_id"][1], 3, "items")(tables),
        f"the items list {FIRST_ITEM + 7} more than once; an id has one row",
    ),
    "user twice": (wrong("user_id", "u1", 5, "users"), "the users list u1 more than once"),
    "user without id": (wrong("user_id", "", 5, "users"), "users.csv:7: user_id is missing"),
    "time": (wrong("at", "noon"), "clicks.csv:6: at is 'noon'; expected a time"),
    "number as time": (
        lambda tables: tables["clicks"].update(at=[*range(4), "noon", *range(5, 600)]),
        "clicks.csv:6: at is 'noon'; expected a time",
    ),
    "no time": (wrong("at", None), "clicks.csv:6: at is missing; expected a time"),
    "long category": (
        wrong("device", "x" * 9000),
        "expected a string or an integer of",
    ),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_a_wrong_row_is_told_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    change, message = ROW_FAULTS[fault]
    schema = write_shop(tmp_path, change=change)
    command = ["--data", "table", "--schema", str(schema), "--out", str(tmp_path / "out")]
    assert status(main, command) == 1
    assert message in last_error(capsys.readouterr().err)
    main([*command, "--bad-rows", "skip"])
    assert message in capsys.readouterr().err
    rows = Dataset.open(tmp_path / "out").source["rows"]
    assert ROWS - 40 < sum(rows.values()) <= ROWS


TIMES: dict[str, tuple[int, Callable[[list[int]], Any]]] = {
    "integers without a sign": (2**63, lambda times: pa.array(times, pa.uint64())),
    "codes of them": (2**64 - 1, lambda times: pa.array(times, pa.uint64()).dictionary_encode()),
    "timestamps": (2**62, lambda times: pa.array(times, pa.timestamp("ms"))),
    "dates": (2**31 - 1, lambda times: pa.array(times, pa.int32()).cast(pa.date32())),
}


@pytest.mark.parametrize("kind", TIMES)
def test_a_time_beyond_64_bits_is_told_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    write_shop(tmp_path)
    last, column = TIMES[kind]
    clicks: dict[str, Any] = {**shop()["clicks"], "at": column([*range(ROWS - 1), last])}
    write_parquet(tmp_path / "clicks.parquet", clicks)
    schema = tmp_path / "schema.yaml"
    schema.write_text(SCHEMA.replace("clicks.csv", "clicks.parquet"))
    source = ["--data", "table", "--schema", str(schema)]
    command = [*source, "--out", str(tmp_path / "out")]
    assert status(main, command) == 1
    message = f"clicks.parquet, row {ROWS}: at is '{last}'; expected a time"
    assert message in last_error(capsys.readouterr().err)
    assert status(main, [*command, "--bad-rows", "skip"]) == 0
    assert sum(Dataset.open(tmp_path / "out").source["rows"].values()) == ROWS - 1
    capsys.readouterr()
    assert status(main, ["describe", *source]) == 0
    assert message in capsys.readouterr().out


def test_lines_are_right_after_rows_with_too_many_fields(tmp_path: Path) -> None:
    write_shop(tmp_path, change=wrong("clicked", 3, 8))
    lines = (tmp_path / "clicks.csv").read_text().splitlines(keepends=True)
    lines[3] = "too,few\n"
    (tmp_path / "clicks.csv").write_text("".join(lines))
    bad = BadRows("skip")
    raw(tmp_path, bad=bad)
    assert bad.count == 2
    assert bad.first == f"{tmp_path}/clicks.csv:4: 2 fields came, 6 were expected"
    (tmp_path / "clicks.csv").write_text("".join(lines[:3] + lines[4:]))
    with pytest.raises(DataError, match=r"clicks\.csv:9: clicked is '3'"):
        raw(tmp_path)
