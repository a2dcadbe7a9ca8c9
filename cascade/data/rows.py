"""Delimited text files, plain or gzip, as Arrow tables; an error names a malformed row's line.

Arrow parses a block of lines at once. The rows of a block with a malformed one are examined one by
one, which is slow, but tells the line and the fault.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cascade.data.source import BadRows, DataError
from cascade.encoding import MAX_VALUE_BYTES
from cascade.files import UNPACKING_ERRORS, unpacked

BLOCK_BYTES = 16 << 20  # about 70,000 rows of Criteo: enough to parse columns in parallel
# Arrow takes " 5" and "0x5" for integers; `is_integer` does not. Neither is found in good files.
_LENIENT = (b" ", b"0x", b"0X")
_INTEGER = re.compile(rb"-?\d{1,19}")


@dataclass(frozen=True)
class RowFormat:
    """What a well-formed row is; a quote is an ordinary character."""

    columns: Mapping[str, pa.DataType]  # int64, float64 or string, in the order of the file
    delimiter: bytes
    # Whether all rows of a table that Arrow could read are good, and what is wrong with the fields
    # of one row, None if nothing is. The two must agree.
    well_formed: Callable[[pa.Table], bool]
    fault: Callable[[list[bytes]], str | None]


def line_count(path: Path) -> int:
    """Lines of a file; the last one counts with or without its line feed."""
    return sum(map(_lines_in, _blocks(path)))


def read_rows(
    path: Path, layout: RowFormat, bad: BadRows, start: int = 0, stop: int | None = None
) -> Iterator[pa.Table]:
    """The rows on the lines [start, stop), counted from 0; an empty field is null."""
    line = 0
    for block in _blocks(path):
        count = _lines_in(block)
        first, last = max(0, start - line), count if stop is None else min(count, stop - line)
        if first < last:
            if last - first < count:
                block = b"".join(io.BytesIO(block).readlines()[first:last])
            table = _parse(layout, block)
            if table is None:
                table = _examine(layout, path, line + first + 1, block, bad)
            if table.num_rows:
                yield table
        line += count
        if stop is not None and line >= stop:
            return


def _blocks(path: Path) -> Iterator[bytes]:
    """The content of a file in blocks of whole lines; only the last may lack its line feed."""
    done, rest = 0, b""
    with unpacked(path) as stream:
        try:
            while block := stream.read(BLOCK_BYTES):
                done += len(block)
                end = block.rfind(b"\n") + 1
                if end:
                    yield rest + block[:end]
                    rest = b""
                rest += block[end:]
                if len(rest) > 2 * BLOCK_BYTES:
                    raise DataError(f"{path}: a line has over {len(rest):,} bytes; is this text?")
        except UNPACKING_ERRORS as error:
            raise DataError(
                f"{path}: cannot be unpacked beyond byte {done:,} of its content: {error}. "
                "Fetch the file again"
            ) from error
    if not done:
        raise DataError(f"{path} is empty")
    if rest:
        yield rest


def _lines_in(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _parse(layout: RowFormat, block: bytes) -> pa.Table | None:
    """All rows of a block, None where one of them is malformed."""
    lines, delimiter = _lines_in(block), layout.delimiter
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
    if table.num_rows != lines:  # a stray carriage return also ended a row
        return None
    strings = [column for column in table.columns if column.type == pa.string()]
    if any((pc.max(pc.binary_length(s)).as_py() or 0) > MAX_VALUE_BYTES for s in strings):
        return None
    return table if layout.well_formed(table) else None


def _examine(
    layout: RowFormat, path: Path, first_line: int, block: bytes, bad: BadRows
) -> pa.Table:
    """The good rows of a block; the others go to `bad`, each with what is wrong with it."""
    rows = []
    for line, row in enumerate(block.removesuffix(b"\n").split(b"\n"), first_line):
        fields = row.removesuffix(b"\r").split(layout.delimiter)
        fault = _text_fault(layout, fields) or layout.fault(fields)
        if fault:
            bad.add(path, line, fault)
        else:
            rows.append([field.decode() or None for field in fields])
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(layout.columns)
    table = pa.table([pa.array(column, pa.string()) for column in columns], [*layout.columns])
    return table.cast(pa.schema(layout.columns))


def _text_fault(layout: RowFormat, fields: list[bytes]) -> str | None:
    """What holds for rows of any format: as many fields as columns, each of them text."""
    if len(fields) != len(layout.columns):
        came = "1 column" if len(fields) == 1 else f"{len(fields)} columns"
        names = {b"\t": "tabs", b",": "commas"}
        delimiter = names.get(layout.delimiter, repr(layout.delimiter)[1:])
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
