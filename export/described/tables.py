"""Tables that the file names: Parquet, CSV or JSON lines, as raw columns."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.json as json
import pyarrow.parquet as pq

from cascade.columns import convert
from cascade.columns.checked import Fault, checked
from cascade.columns.convert import Wanted
from cascade.located import Node
from cascade.schema import Feature
from cascade.values import unknown_name

SUFFIXES = (".parquet", ".csv", ".jsonl")


def read(node: Node, texts: Collection[str] | None = ()) -> pa.Table:
    """The table that a node names; of a CSV file the columns `texts`, or where it is None all, are
    strings, whatever they look like. Raises LocatedError: no such file, or not of its kind."""
    path = node.file_path()
    if path.suffix not in SUFFIXES:
        raise node.error(f"{path.name} came; expected a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise node.error(f"there is no file {path}")
    try:
        table = _read(path, texts)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        reason = f"{error}".splitlines()[0]
        raise node.error(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from error
    twice = {name for name in table.column_names if table.column_names.count(name) > 1}
    if twice:
        raise node.error(f"{path} has two columns {', '.join(sorted(twice))}; names occur once")
    return table


def _read(path: Path, texts: Collection[str] | None) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    if path.suffix == ".jsonl":
        return json.read_json(path)
    names = csv.open_csv(path).schema.names if texts is None else texts
    types = dict.fromkeys(names, pa.string())
    return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))


def column(node: Node, table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column by its name. Raises LocatedError: there is none."""
    if name not in table.column_names:
        raise node.error(unknown_name("column", name, table.column_names))
    return table[name]


def numbers(node: Node, name: str, values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """float32 [n], NaN where a value is missing."""
    kind = values.type
    if pa.types.is_null(kind):
        return np.full(len(values), np.nan, np.float32)
    found: np.ndarray[Any, Any] = _checked(node, name, values, convert.number(name)).to_numpy()
    return found


def texts(node: Node, name: str, values: pa.ChunkedArray) -> pa.Array:
    """Strings [n], "" where a value is missing. Raises LocatedError: neither text nor integers."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return pc.fill_null(_plain(node, name, values), "")


def features(node: Node, table: pa.Table, wanted: dict[str, tuple[Feature, str]]) -> pa.Table:
    """The columns of some features, raw: float32 and strings; `wanted` has the column of each."""
    found: dict[str, Any] = {}
    for name, (feature, source) in wanted.items():
        values = column(node, table, source)
        if feature.kind == "dense":
            found[name] = numbers(node, source, values)
        else:
            wanted_here = replace(convert.feature(feature), name=source)
            found[name] = pc.fill_null(_checked(node, source, values, wanted_here), "")
    return pa.table(found)


def _checked(
    node: Node, name: str, values: pa.ChunkedArray, wanted: Wanted, of_text: bool = False
) -> pa.ChunkedArray:
    """A column by the rules of training. Raises LocatedError."""

    def error(fault: Fault) -> Exception:
        of_row = "" if fault.row is None else f", row {fault.row},"
        return node.error(f"column {name}{of_row} is {fault.came}; expected {fault.expected}")

    return checked(values, wanted, error, of_text)


def labels(node: Node, name: str, values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """float32 [n], 0 or 1, of a column that a CSV file gives as text. Raises LocatedError."""
    wanted = Wanted(name, convert.label, "a label, 0 or 1")
    found: np.ndarray[Any, Any] = _checked(node, name, values, wanted, is_text(node)).to_numpy()
    return found


def known_ids(node: Node, name: str, values: pa.ChunkedArray, items: pa.Array) -> pa.Array:
    """Ids of items [n], integers or strings as the `items` have them, though not of these alone.
    Raises LocatedError: what is no such id."""
    strings = not pa.types.is_integer(items.type)
    read_as = convert.item_name(None) if strings else convert.item_id(None)
    expected = "strings that are not empty" if strings else "integers from 0 to 2^63 - 1"

    def convert_one(column: pa.Array, of_text: bool) -> convert.Converted:
        try:
            return read_as(column, of_text)
        except convert.WrongType as error:
            raise convert.WrongType(f"item ids as the items have: {expected}") from error

    wanted = Wanted(name, convert_one, f"an id as the items have: {expected}")
    return _checked(node, name, values, wanted, is_text(node)).cast(items.type).combine_chunks()


def rows_of(node: Node, name: str, values: pa.ChunkedArray, items: pa.Array) -> Any:
    """The rows [n] of the items that a column names. Raises LocatedError: no id, or not that of an
    item."""
    ids = known_ids(node, name, values, items)
    rows = pc.index_in(ids, value_set=items)
    if rows.null_count:
        first = ids.filter(rows.is_null())[0].as_py()
        raise node.error(
            f"{rows.null_count} rows of column {name} have an item that is not in the catalogue, "
            f"{first!r} among them"
        )
    return rows.to_numpy()


def is_text(node: Node) -> bool:
    """Whether all values of a file are text."""
    return node.file_path().suffix in (".csv", ".txt")


def item_ids(node: Node, name: str, values: pa.ChunkedArray) -> pa.Array:
    """int64 or strings [n], each once. Raises LocatedError: missing, negative, or twice."""
    found = values.combine_chunks()
    if pa.types.is_dictionary(found.type):
        found = found.dictionary_decode()
    if found.null_count:
        row = int(np.argmax(np.asarray(found.is_null())))
        raise node.error(f"{name} is missing in row {row}; every item needs an id")
    if not len(found):
        raise node.error(f"{node.file_path()} has no rows; a catalogue needs an item")
    if pa.types.is_integer(found.type):
        if pc.max(found).as_py() >= 1 << 63:
            raise node.error(f"{name} has {pc.max(found).as_py()}; ids are below 2^63")
        found = found.cast(pa.int64())
        if pc.min(found).as_py() < 0:
            raise node.error(f"{name} has {pc.min(found).as_py()}; ids are 0 or more")
    elif _is_text(found.type):
        found = found.cast(pa.large_string())
        if pc.any(pc.equal(found, "")).as_py():
            raise node.error(f"{name} has an empty id; every item needs one")
    else:
        raise node.error(f"column {name} is {found.type}; expected integers or strings")
    counts = pc.value_counts(found)
    many = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(many):
        first = many[0].as_py()
        raise node.error(f"{name} has {first['values']!r} {first['counts']} times; ids occur once")
    return found


def _plain(node: Node, name: str, values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_null(values.type) or pa.types.is_integer(values.type):
        return values.cast(pa.large_string())
    if not _is_text(values.type):
        advice = "; numbers with a fraction are no ids" if pa.types.is_floating(values.type) else ""
        raise node.error(f"column {name} is {values.type}; expected strings or integers{advice}")
    return values.cast(pa.large_string())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
