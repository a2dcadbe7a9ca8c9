"""Delimited rows to columns: by Arrow as long as they are well formed, one by one where not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cascade.data.lines import blocks, lines_in
from cascade.data.source import BadRows
from cascade.encoding import MAX_VALUE_BYTES

# Arrow takes " 5" and "0x5" for integers; `is_integer` does not. Neither is found in good files.
_LENIENT = (b" ", b"0x", b"0X")
_INTEGER = re.compile(rb"-?\d{1,19}")


@dataclass(frozen=True)
class RowFormat:
    """What a well-formed row is.

    Args:
        columns: int64, float64 or string by name, in the order of the file.
        delimiter: between fields; there are no quotes.
        well_formed: whether all rows of a table that Arrow could read are good.
        fault: what is wrong with the fields of one row, None if nothing is. The two must agree.
    """

    columns: Mapping[str, pa.DataType]
    delimiter: bytes
    well_formed: Callable[[pa.Table], bool]
    fault: Callable[[list[bytes]], str | None]


def read_rows(
    path: Path, layout: RowFormat, bad: BadRows, start: int = 0, stop: int | None = None
) -> Iterator[pa.Table]:
    """The rows on the lines [start, stop), counted from 0; an empty field is null.

    Raises:
        DataError: a malformed row, by file and line, unless such rows are skipped.
    """
    for line, block in blocks(path, start, stop):
        table = _parse(layout, block)
        if table is None:
            table = _examine(layout, path, line, block, bad)
        if table.num_rows:
            yield table


def _parse(layout: RowFormat, block: bytes) -> pa.Table | None:
    """All rows of a block, None where one of them is malformed."""
    lines = lines_in(block)
    delimiter = layout.delimiter
    if any(spelling in block for spelling in _LENIENT):
        return None
    if len(delimiter) > 1:  # Arrow takes one character
        if b"\t" in block:
            return None
        block, delimiter = block.replace(delimiter, b"\t"), b"\t"
    read = csv.ReadOptions(column_names=list(layout.columns), block_size=len(block) + 1)
    parse = csv.ParseOptions(
        delimiter=delimiter.decode(), quote_char=False, ignore_empty_lines=False
    )
    convert = csv.ConvertOptions(
        column_types=dict(layout.columns), null_values=[""], strings_can_be_null=True
    )
    try:
        table = csv.read_csv(pa.BufferReader(block), read, parse, convert)
    except pa.ArrowInvalid:
        return None
    strings = [name for name, type_ in layout.columns.items() if type_ == pa.string()]
    if table.num_rows != lines:  # a stray carriage return also ended a row
        return None
    if any(_longest(table[name]) > MAX_VALUE_BYTES for name in strings):
        return None
    return table if layout.well_formed(table) else None


def _longest(column: pa.ChunkedArray) -> int:
    return pc.max(pc.binary_length(column)).as_py() or 0


def _examine(
    layout: RowFormat, path: Path, first_line: int, block: bytes, bad: BadRows
) -> pa.Table:
    """The good rows of a block; the others go to `bad`, each with what is wrong with it."""
    rows = []
    for line, row in enumerate(block.removesuffix(b"\n").split(b"\n"), first_line):
        fields = row.removesuffix(b"\r").split(layout.delimiter)
        fault = _wrong_text(layout, fields) or layout.fault(fields)
        if fault:
            bad.add(path, line, fault)
        else:
            rows.append([field.decode() or None for field in fields])
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(layout.columns)
    table = pa.table([pa.array(column, pa.string()) for column in columns], [*layout.columns])
    return table.cast(pa.schema(layout.columns))


def _wrong_text(layout: RowFormat, fields: list[bytes]) -> str | None:
    """What holds for rows of any format: as many fields as columns, each of them text."""
    if len(fields) != len(layout.columns):
        came = "1 column" if len(fields) == 1 else f"{len(fields)} columns"
        delimiter = {b"\t": "tabs", b",": "commas"}.get(
            layout.delimiter, repr(layout.delimiter)[1:]
        )
        return f"{came} came, {len(layout.columns)} separated by {delimiter} were expected"
    for name, field in zip(layout.columns, fields, strict=True):
        if len(field) > MAX_VALUE_BYTES:
            return f"{name} has {len(field):,} bytes; at most {MAX_VALUE_BYTES:,} are read"
        if b"\r" in field:
            return f"{name} is {shown(field)}, which holds a carriage return"
        try:
            field.decode()
        except UnicodeDecodeError:
            return f"{name} is {shown(field)}, which is not UTF-8"
    return None


def is_integer(field: bytes) -> bool:
    """Whether a field is a decimal integer of 64 bits."""
    return bool(_INTEGER.fullmatch(field)) and -(2**63) <= int(field) < 2**63


def shown(field: bytes) -> str:
    """A field as an error shows it: short, and readable whatever its bytes."""
    return repr(field[:40])[1:] + ("..." if len(field) > 40 else "")
