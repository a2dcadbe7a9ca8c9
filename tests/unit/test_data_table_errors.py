"""Mistakes in a user's own tables and in what describes them: one line each, and exit code 1."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.data.__main__ import main
from tests.own_tables import SCHEMA, shop, write_parquet, write_shop
from tests.programs import last_error, status


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the program ended."""
    return last_error(capsys.readouterr().err)


def feature(line: str) -> Callable[[str], str]:
    """A schema with another line in place of that of the price, line 16."""
    return lambda schema: schema.replace(
        "- {name: price, side: item, kind: dense, encoding: log1p}", f"- {line}"
    )


def line(old: str, new: str) -> Callable[[str], str]:
    return lambda schema: schema.replace(old, new)


def labels(text: str) -> Callable[[str], str]:
    """A schema with these labels in line 6."""
    return line("label: clicked", f"labels: {text}")


SCHEMA_FAULTS: dict[str, tuple[Callable[[str], str], str]] = {
    "no file": (line("clicks.csv", "nil.csv"), "line 1: interactions: there is no file "),
    "no table": (
        line("clicks.csv", "schema.yaml"),
        "schema.yaml is no table; expected a file",
    ),
    "no pattern": (line("clicks.csv", "nil-*.csv"), "line 1: interactions: there is no file "),
    "no interactions": (
        line("interactions: clicks.csv\n", ""),
        "the key 'interactions' is m",
    ),
    "no item": (line("item: item_id\n", ""), "line 1: the key 'item' is missing; add it"),
    "no features": (
        lambda schema: schema.partition("features")[0],
        "the key 'features' is m",
    ),
    "one side": (
        lambda schema: "".join(x for x in schema.splitlines(True) if "side: item" not in x),
        "features: schema schema: there is no item feature; add one",
    ),
    "unknown key": (line("label:", "lable:"), "line 6: unknown key 'lable': did you mean 'label'?"),
    "users without user": (line("user: user_id\n", ""), "line 2: users: users are joined by their"),
    "no column": (
        line("at\n", "when\n"),
        "line 7: time: {folder}/clicks.csv: unknown column",
    ),
    "a number as column": (
        line("at\n", "7\n"),
        "line 7: time: 7 (int) came; expected a string",
    ),
    "log": (
        lambda schema: f"{schema}log: clicks\n",
        "log: unknown log 'clicks': did you mean",
    ),
    "no name": (feature("{side: item}"), "line 16: features[6]: the key 'name' is missing; add it"),
    "no side": (feature("{name: x}"), "line 16: features[6]: the key 'side' is missing"),
    "side": (
        feature("{name: x, side: itme}"),
        "features[6].side: unknown side 'itme': did",
    ),
    "kind": (
        feature("{name: x, side: item, kind: number}"),
        "features[6].kind: unknown kind 'number': known are dense, categorical, bag, sequence",
    ),
    "encoding": (
        feature("{name: price, side: item, kind: dense, encoding: hash}"),
        "features[6].encoding: unknown encoding of a dense 'hash': known are log1p, identity",
    ),
    "no encoding": (
        feature("{name: price, side: item, kind: dense}"),
        "line 16: features[6]: the key 'encoding' is missing; add it",
    ),
    "no length": (
        feature("{name: tags2, side: item, kind: bag, column: tags}"),
        "line 16: features[6]: a bag needs the key 'length', the most members that a model sees",
    ),
    "length": (
        feature("{name: tags2, side: item, kind: bag, column: tags, length: 0}"),
        "features[6].length: 0 (int) came; expected an integer of 1 or more",
    ),
    "length of one": (
        feature("{name: x, side: item, kind: categorical, length: 2, column: tags}"),
        "line 16: features[6]: feature x: a categorical cannot have length 2",
    ),
    "buckets": (
        feature("{name: x, side: item, kind: categorical, encoding: hash, column: tags}"),
        "line 16: features[6]: feature x: hashing needs `buckets` of at least 1",
    ),
    "misspelt key": (
        feature("{name: price, side: item, kind: dense, encoding: log1p, mincount: 2}"),
        "line 16: features[6]: unknown key 'mincount': did you mean 'min_count'?",
    ),
    "same name": (
        feature("{name: tags, side: item, kind: bag, length: 2}"),
        "line 17: features[7]: a feature is called 'tags' already, in line 16",
    ),
    "reserved name": (
        feature("{name: label, side: item, kind: categorical, column: tags}"),
        "'label' cannot be the name of a feature; choose another, and give `column: label`",
    ),
    "column of a feature": (
        feature("{name: prize, side: item, kind: dense, encoding: log1p}"),
        "line 16: features[6].name: unknown column 'prize': did you mean 'price'? (looked",
    ),
    "item's feature elsewhere": (
        feature("{name: device2, side: item, kind: categorical, column: device}"),
        "line 16: features[6].column: unknown column 'device': known are item_id, name",
    ),
    "table": (
        feature("{name: price, side: item, kind: dense, encoding: log1p, table: users}"),
        "features[6].table: a feature of the item is not in the users",
    ),
    "text as number": (
        feature("{name: x, side: item, kind: dense, encoding: log1p, column: name}"),
        "items.csv:2: name is 'thing \"0\", nice'; expected a finite number",
    ),
    "strings as items": (
        line("item: item_id", "item: name"),
        "line 4: item: the column 'name' of {folder}/items.csv holds string, as 'thing \"0\""
        ", nice'; "
        "expected item ids: integers of 64 bits, or write `item_ids: strings`",
    ),
    "kind of ids": (
        line("item: item_id", "item: item_id\nitem_ids: string"),
        "line 5: item_ids: unknown item_ids 'string': did you mean 'strings'?",
    ),
    "label and labels": (
        line("label: clicked", "label: clicked\nlabels: {click: clicked}"),
        "line 7: labels: the key 'label' is there, too; name each label once",
    ),
    "no labels": (labels("{}"), "line 6: labels: no label came; expected a binary one"),
    "labels as a list": (labels("[clicked]"), "line 6: labels: ['clicked'] (list) came; expected"),
    "an amount first": (
        labels("{revenue: {column: spent, kind: amount}}"),
        "line 6: labels: the first label, revenue, is an amount; expected a binary one, which",
    ),
    "kind of a label": (
        labels("{click: clicked, revenue: {column: spent, kind: amuont}}"),
        "line 6: labels.revenue.kind: unknown kind 'amuont': did you mean 'amount'?",
    ),
    "weight of a label": (
        labels("{click: clicked, revenue: {column: spent, weight: 0}}"),
        "line 6: labels.revenue: task revenue: weight is 0; expected a positive number",
    ),
    "name of a label": (
        labels("{click: clicked, two words: spent}"),
        "line 6: labels.two words: task two words: the name of a task has letters",
    ),
    "key of a label": (
        labels("{click: clicked, revenue: {columm: spent}}"),
        "line 6: labels.revenue: unknown key 'columm': did you mean 'column'?",
    ),
    "column of a label": (
        labels("{click: clicked, revenue: {kind: amount}}"),
        "line 6: labels.revenue: the key 'column' is missing; add it",
    ),
    "no column of a label": (
        labels("{click: clicked, revenue: {column: spend, kind: amount}}"),
        "line 6: labels.revenue.column: {folder}/clicks.csv: unknown column 'spend'",
    ),
    "text as amount": (
        labels("{click: clicked, revenue: {column: device, kind: amount}}"),
        "clicks.csv:2: device is 'phone'; expected a finite number of 0 or more, or nothing where",
    ),
    "a number as label": (
        labels("{click: clicked, like: at}"),
        "clicks.csv:2: at is '2026-01-01 00:00:00'; expected 0 or 1, or nothing where it is not",
    ),
    "shares no item": (
        feature("{name: x, side: user, kind: sequence, length: 2, column: seen, shares: device}"),
        "features: feature x shares 'device', which is no categorical of the items",
    ),
    "shares other ids": (
        feature(
            "{name: x, side: user, kind: bag, length: 2, column: seen, shares: product, "
            "min_count: 2}"
        ),
        "features: feature x has min_count 2, and product, whose ids it shares, has 1",
    ),
    "syntax": (
        line("label: clicked", "label: clicked: x"),
        "line 6: mapping values are n",
    ),
    "tab": (line("label:", "\tlabel:"), "line 6: "),
    "duplicate": (
        line("title: name", "time: name"),
        "line 8: the key 'time' stands in line 7",
    ),
}


@pytest.mark.parametrize("fault", SCHEMA_FAULTS)
def test_a_wrong_schema_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    change, message = SCHEMA_FAULTS[fault]
    schema = write_shop(tmp_path, change(SCHEMA))
    command = ["--data", "table", "--schema", str(schema), "--out", str(tmp_path / "out")]
    assert status(main, command) == 1
    assert message.format(folder=tmp_path) in error(capsys)
    assert not (tmp_path / "out").exists()


def parquet(name: str, damage: bool = False, **columns: Any) -> Callable[[Path], Any]:
    """A Parquet table in place of a CSV, with some columns replaced."""

    def write(folder: Path) -> None:
        table: dict[str, Any] = {**shop()[name], **columns}
        write_parquet(folder / f"{name}.parquet", table)
        if damage:
            (folder / f"{name}.parquet").write_text("no Parquet at all")
        text = SCHEMA.replace(f"{name}.csv", f"{name}.parquet")
        (folder / "schema.yaml").write_text(text)

    return write


def content(name: str, text: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(text)


FILE_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (
        content("clicks.csv", b""),
        "clicks.csv cannot be read: Empty CSV file",
    ),
    "no row": (
        content("clicks.csv", b"user_id,item_id,clicked,at,device,seen\n"),
        "clicks.csv: there is no row; expected interactions",
    ),
    "no items": (content("items.csv", b"item_id,name,price,tags\n"), "an item that the items list"),
    "not UTF-8": (
        content("users.csv", b"user_id,city,age\nu1,\xff,3\n"),
        "users.csv cannot be read: In CSV column #1: Row #2: CSV conversion error to string: inv",
    ),
    "column twice": (
        content("users.csv", b"user_id,city,city,age\nu1,a,b,3\n"),
        "users.csv has 2 columns 'city'; rename all but one",
    ),
    "half a gzip": (
        content("users.csv", gzip.compress(b"user_id,city,age\nu1,a,3\n" * 99)[:-9]),
        "users.csv cannot be read: Compressed file ended before the end-of-stream marker",
    ),
    "no Parquet": (
        parquet("items", damage=True),
        "items.parquet cannot be read: Parquet magic bytes not found in footer",
    ),
    "float as category": (
        parquet("users", city=[1.0] * 30),
        "line 11: features[1].name: the column 'city' of {folder}/users.parquet holds double, as "
        "'1.0'; expected strings or integers",
    ),
    "float as item": (
        parquet("items", item_id=[float(number) for number in range(40)]),
        "line 4: item: the column 'item_id' of {folder}/items.parquet holds double, as '0.0'; ",
    ),
    "number as list": (
        parquet("items", tags=[1.5] * 40),
        "the column 'tags' of {folder}/items.parquet holds double, as '1.5'; expected lists",
    ),
    "lists of numbers": (
        parquet("items", tags=[[1.5]] * 40),
        "the column 'tags' of {folder}/items.parquet holds list<element: double>, as '[1.5]'",
    ),
    "list as time": (
        parquet("clicks", at=[[1]] * 600),
        "line 7: time: the column 'at' of {folder}/clicks.parquet holds list<element: int64>, as",
    ),
    "list as label": (
        parquet("clicks", clicked=[[1]] * 600),
        "the column 'clicked' of {folder}/clicks.parquet holds list<element: int64>, as '[1]'",
    ),
    "member with a bar": (
        parquet("items", tags=[["a"], ["a|b"]] * 20),
        "items.parquet, row 2: tags is \"['a|b']\"; expected a list, or text joined by |",
    ),
    "column in both": (
        parquet("clicks", city=["Oslo"] * 600),
        "line 11: features[1].name: both interactions and users have a column 'city'; add `t",
    ),
    "one time": (
        parquet("clicks", at=[5] * 600),
        "the input is too small: no row is left",
    ),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_wrong_file_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    change, message = FILE_FAULTS[fault]
    schema = write_shop(tmp_path)
    change(tmp_path)
    command = ["--data", "table", "--schema", str(schema), "--out", str(tmp_path / "out")]
    assert status(main, command) == 1
    assert message.format(folder=tmp_path) in error(capsys)


def test_the_schema_goes_with_tables_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert status(main, ["--data", "table", *out]) == 1
    assert "--data table needs --schema FILE" in capsys.readouterr().err
    assert status(main, ["--data", "synthetic", "--schema", "x.yaml", *out]) == 1
    assert "--schema goes with --data table" in capsys.readouterr().err
    assert status(main, ["--data", "table", "--schema", str(tmp_path / "nil.yaml"), *out]) == 1
    assert "there is no file" in capsys.readouterr().err
    write_shop(tmp_path)
    schema = ["--schema", str(tmp_path / "schema.yaml")]
    assert status(main, ["--data", f"table:{tmp_path}/nil.csv", *schema, *out]) == 1
    assert "there is no file" in capsys.readouterr().err
