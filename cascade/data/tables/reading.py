"""Parquet and CSV as converted columns, block by block; an error names the file and the row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from cascade import values
from cascade.columns.checked import plain
from cascade.columns.convert import Wanted, WrongType
from cascade.data.source import BadRows, DataError
from cascade.files import UNPACKING_ERRORS, unpacked
from cascade.located import Node

Asked: TypeAlias = tuple[Node, str, Wanted]  # where the column is named, its name, how it is read

ROWS = 131_072
BLOCK_BYTES = 16 << 20
SHOWN = 40


def column_names(path: Path) -> list[str]:
    """The columns of a file. What cannot be read is a `DataError`."""
    try:
        if _is_parquet(path):
            return [*pq.read_schema(path).names]
        return [*_open_csv(path, csv.ConvertOptions(), None).schema.names]
    except (pa.ArrowException, *UNPACKING_ERRORS) as error:
        raise _unreadable(path, error) from error


def read(paths: Sequence[Path], asked: Sequence[Asked], bad: BadRows) -> pa.Table:
    """The asked columns of some files, converted, by the names of `Wanted`, in the order of the
    rows. Rows with a value that cannot be used go to `bad`. Text is dictionary-encoded."""
    tables = [table for path in paths for table in _converted(path, asked, bad)]
    try:
        return pa.concat_tables(tables).unify_dictionaries()
    except pa.ArrowException as error:
        names = ", ".join(map(str, paths))
        raise DataError(f"{names}: a column has two types: {error}; give it one") from error


def _converted(path: Path, asked: Sequence[Asked], bad: BadRows) -> Iterator[pa.Table]:
    there = column_names(path)
    for node, column, _ in asked:
        if there.count(column) != 1:
            unknown = values.unknown_name("column", column, there)
            many = f"{path} has {there.count(column)} columns {column!r}; rename all but one"
            raise node.error(many if column in there else f"{path}: {unknown}")
    names = list(dict.fromkeys(column for _, column, _ in asked))
    empty = True
    for batch, lines in _batches(path, names, bad):
        empty = False
        yield _of_batch(path, batch, lines, asked, bad)
    if empty:
        yield _of_batch(path, _no_rows(path, names), [], asked, bad)


def _of_batch(
    path: Path, batch: Any, lines: Sequence[int | str], asked: Sequence[Asked], bad: BadRows
) -> pa.Table:
    columns: dict[str, Any] = {}
    good = np.ones(len(batch), np.bool_)
    for node, name, wanted in asked:
        column = batch.column(name)
        try:
            columns[wanted.name], wrong = wanted.convert(column, not _is_parquet(path))
        except WrongType as error:
            raise node.error(
                f"the column {name!r} of {path} holds {_shown(column)}; expected {error}"
            ) from error
        for row in [] if wrong is None else np.flatnonzero(wrong & good):
            what = f"{name} is {_value(column[int(row)])}; expected {wanted.expected}"
            bad.add(path, lines[row], what)
        if wrong is not None:
            good &= ~wrong
    table = pa.table(columns)
    if not good.all():
        table = table.filter(pa.array(good))
    encoded = {
        name: column.dictionary_encode() if column.type == pa.string() else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return pa.table(encoded)


def _batches(
    path: Path, names: list[str], bad: BadRows
) -> Iterator[tuple[pa.RecordBatch, Sequence[int | str]]]:
    """Batches of raw columns, and where each row stands: its line in a CSV, else its number."""
    start, left_out = 1, _LeftOut(path, bad)
    try:
        if _is_parquet(path):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS, columns=names):
                    yield batch, _Rows(start, len(batch))
                    start += len(batch)
            return
        convert = csv.ConvertOptions(
            include_columns=names,
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        for batch in _open_csv(path, convert, left_out):
            left_out.tell()
            lines = left_out.lines(start, len(batch))
            yield batch, lines
            start += len(batch)
        left_out.tell()
    except (pa.ArrowException, *UNPACKING_ERRORS) as error:
        left_out.tell()
        raise _unreadable(path, error) from error


class _Rows(Sequence[Any]):
    """`row 1`, `row 2`, …: made where they are asked for."""

    def __init__(self, start: int, count: int) -> None:
        self._start, self._count = start, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        return f"row {self._start + int(row)}"


class _LeftOut:
    """Rows of a CSV with too many or too few fields. Arrow calls this in the midst of its reading,
    where an exception would be lost: they are told afterwards."""

    def __init__(self, path: Path, bad: BadRows) -> None:
        self._path, self._bad = path, bad
        self._pending: list[tuple[int, str]] = []
        self._numbers: list[int] = []

    def __call__(self, row: Any) -> str:
        came = f"{row.actual_columns} fields came, {row.expected_columns} were expected"
        self._pending.append((row.number, came))
        self._numbers.append(row.number)
        return "skip"

    def tell(self) -> None:
        pending, self._pending = self._pending, []
        for number, what in pending:
            self._bad.add(self._path, number, what)

    def lines(self, start: int, count: int) -> Sequence[int]:
        """The lines of `count` good rows of which the first is the `start`th; line 1 is the
        header."""
        lines = np.arange(start + 1, start + 1 + count)
        for number in self._numbers:
            lines[lines >= number] += 1
        return [*map(int, lines)]


def _open_csv(path: Path, convert: csv.ConvertOptions, left_out: _LeftOut | None) -> Any:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    return csv.open_csv(
        unpacked(path),
        csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        csv.ParseOptions(delimiter=delimiter, invalid_row_handler=left_out or (lambda row: "skip")),
        convert,
    )


def _no_rows(path: Path, names: list[str]) -> pa.RecordBatch:
    if _is_parquet(path):
        schema = pq.read_schema(path)
        kinds = [schema.field(name).type for name in names]
    else:
        kinds = [pa.string()] * len(names)
    return pa.record_batch([pa.array([], kind) for kind in kinds], names)


def _unreadable(path: Path, error: Exception) -> DataError:
    kind = "Parquet" if _is_parquet(path) else "CSV in UTF-8 with a header"
    return DataError(f"{path} cannot be read: {error}; expected {kind}")


def _is_parquet(path: Path) -> bool:
    return path.name.endswith(".parquet")


def _value(value: Any) -> str:
    if not value.is_valid:
        return "missing"
    text = str(plain(value))
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def _shown(column: Any) -> str:
    there = column.drop_null()
    return f"{column.type}{f', as {_value(there[0])}' if len(there) else ''}"
