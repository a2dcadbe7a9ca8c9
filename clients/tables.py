"""Files of users, one user per row, columns named by feature: CSV (`.csv`), JSON lines (`.jsonl`,
`.ndjson`) and, under any other suffix, Parquet.

CSV and JSON lines are read twice: first to count and to check the rows and to learn which types the
kept columns have, then for the users. At any time only a few rows are in memory.
"""

from __future__ import annotations

import csv
import json
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cascade.encoding import InvalidInput
from cascade.errors import need
from cascade.layout import RequestLayout
from cascade.values import of_json, unknown_name
from clients.options import UsageError

CSV, JSON_LINES = (".csv",), (".jsonl", ".ndjson")
RESULT_COLUMNS, task_column = ("item_ids", "scores", "error"), "task_{}".format
# In a column of other texts, 007 and +7 are no numbers.
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")
INT64, UINT64 = range(-(2**63), 2**63), range(2**64)

Batch = tuple[list[dict[str, Any]], Any]
"""B users, and their kept columns: an Arrow record batch, or a dict per row."""


def arrow() -> tuple[Any, ...]:
    """pyarrow and pyarrow.parquet. Raises MissingPackage: they are not installed."""
    return tuple(need(name, "clients.batch", "batch") for name in ("pyarrow", "pyarrow.parquet"))


def is_parquet(path: Path) -> bool:
    """Whether the file is read or written by pyarrow."""
    return path.suffix.lower() not in (*CSV, *JSON_LINES)


def open_users(path: Path, layout: RequestLayout, keep: Sequence[str]) -> UserTable:
    """The file by its suffix. Raises InvalidInput, UsageError: as `UserTable`."""
    if is_parquet(path):
        return ParquetUsers(path, layout, keep)
    kind = CsvUsers if path.suffix.lower() in CSV else JsonUsers
    return kind(path, layout, keep)


class UserTable(ABC):
    """A file of users, of whose columns `keep` are handed through.

    Raises InvalidInput: it has no feature as a column; UsageError: it cannot be read, or lacks a
    column of `keep`. Both name the file, and where one row is at fault, the row.

    Attributes:
        features, absent: those of the layout that are columns, and those that are not.
        rows: how many users.
        kept: the type of every kept column by its name, an Arrow type or the alias of one.
    """

    def __init__(self, path: Path, layout: RequestLayout, keep: Sequence[str]) -> None:
        self.path, self.layout = path, layout
        keep = list(dict.fromkeys(keep))
        columns, self.rows, types = self._look(keep)
        self.features, self.absent = layout.of_columns(columns, str(path))
        for name in keep:
            if name not in columns:
                raise UsageError(f"{path}: --keep: {unknown_name('column', name, columns)}")
            if name in (*RESULT_COLUMNS, *map(task_column, getattr(layout, "tasks", ()))):
                raise UsageError(f"--keep {name}: the output has a column of this name; rename it")
        self.kept: dict[str, Any] = {name: types[name] for name in keep}

    @abstractmethod
    def _look(self, keep: Sequence[str]) -> tuple[list[str], int, Mapping[str, Any]]:
        """The columns, the number of rows, and the types of at least the kept columns."""

    @abstractmethod
    def batches(self, size: int) -> Iterator[Batch]:
        """Up to `size` users at a time, in the order of the file."""


class ParquetUsers(UserTable):
    """A Parquet file; a bag or a sequence is a list, or a text joined by `|`."""

    def _look(self, keep: Sequence[str]) -> tuple[list[str], int, Mapping[str, Any]]:
        pyarrow, parquet = arrow()
        try:
            self._file = parquet.ParquetFile(self.path)
        except pyarrow.ArrowInvalid as error:
            others = ", ".join((*CSV, *JSON_LINES))
            raise UsageError(
                f"{self.path} is not a Parquet file: {error}; other formats are known by their "
                f"suffix, {others}"
            ) from error
        schema = self._file.schema_arrow
        types = {name: schema.field(name).type for name in keep if name in schema.names}
        return schema.names, self._file.metadata.num_rows, types

    def batches(self, size: int) -> Iterator[Batch]:
        columns = list(dict.fromkeys([*self.features, *self.kept]))
        for batch in self._read(size, columns):
            values = [self._values(name, batch[name]) for name in self.features]
            users = [
                dict(zip(self.features, row, strict=True)) for row in zip(*values, strict=True)
            ]
            yield users, batch.select([*self.kept])

    def _read(self, size: int, columns: list[str]) -> Iterator[Any]:
        pyarrow, _ = arrow()
        try:
            yield from self._file.iter_batches(batch_size=size, columns=columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise UsageError(f"{self.path} cannot be read: {error}") from error

    def _values(self, name: str, column: Any) -> list[Any]:
        """A column as a client takes it, by the rules of training; a value that cannot be used
        stays as it is, and the client refuses its row."""
        from cascade.columns import convert

        feature = self.layout.id_features.get(name)
        wanted = convert.number(name) if feature is None else convert.feature(feature)
        try:
            found, wrong = wanted.convert(column, False)
        except convert.WrongType as fault:
            came = f"the column {name} is {column.type}; expected {fault}"
            raise UsageError(f"{self.path}: {came}") from fault
        values: list[Any] = found.to_pylist()
        if feature is not None and feature.multivalued:
            values = [text.split("|") if text else None for text in values]
        for row in () if wrong is None else wrong.nonzero()[0].tolist():
            values[row] = column[row].as_py()
        return values


@dataclass
class _Seen:
    """What the values of a kept column have in common."""

    kinds: set[type] = field(default_factory=set)
    low: int = 0
    high: int = 0

    def add(self, value: Any) -> None:
        if value is not None:
            self.kinds.add(type(value))
        if type(value) is int:
            self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def type(self) -> str:
        """The Arrow type that holds every value exactly; text, where no other does."""
        if self.kinds == {int}:
            fitting = [n for n, r in (("int64", INT64), ("uint64", UINT64)) if self._within(r)]
            return fitting[0] if fitting else "string"
        if self.kinds and self.kinds <= {int, float} and self._within(range(-(2**53), 2**53 + 1)):
            return "double"
        return "bool" if self.kinds == {bool} else "string"

    def _within(self, numbers: range) -> bool:
        return self.low in numbers and self.high in numbers


class _TextUsers(UserTable):
    """A file that is read row by row."""

    def _look(self, keep: Sequence[str]) -> tuple[list[str], int, Mapping[str, Any]]:
        seen = {name: _Seen() for name in keep}
        columns, rows = dict.fromkeys(self._header()), 0
        for record in self._records():
            rows += 1
            columns |= dict.fromkeys(record)
            for name in keep:
                value = self._kept_value(record.get(name))
                self._check(name, value, rows)
                seen[name].add(value)
        self._whole = {name for name, column in seen.items() if column.kinds == {int}}
        return [*columns], rows, {name: column.type for name, column in seen.items()}

    def batches(self, size: int) -> Iterator[Batch]:
        records = self._records()
        while some := [*islice(records, size)]:
            users = [self._user(record) for record in some]
            yield users, [{name: self._keep(name, record) for name in self.kept} for record in some]

    def _check(self, name: str, value: Any, row: int) -> None:
        try:
            (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
        except UnicodeEncodeError as error:
            came = f"{name} is {reprlib.repr(value)}"
            raise UsageError(f"{self.path}, row {row}: {came}; UTF-8 cannot hold it") from error

    def _keep(self, name: str, record: Mapping[str, Any]) -> Any:
        value = record.get(name)
        return self._kept_value(value) if name in self._whole else value

    def _user(self, record: Mapping[str, Any]) -> dict[str, Any]:
        values = ((name, record.get(name)) for name in self.features)
        return {name: self._value(name, value) for name, value in values if value is not None}

    def _lines(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            try:
                yield from file
            except UnicodeDecodeError as error:
                raise UsageError(f"{self.path} is not UTF-8: {error}; save it in UTF-8") from error

    def _header(self) -> Iterable[str]:
        return ()

    @abstractmethod
    def _records(self) -> Iterator[dict[str, Any]]:
        """The rows by column. Raises UsageError: a row is damaged."""

    @abstractmethod
    def _kept_value(self, value: Any) -> Any:
        """A value to hand through."""

    @abstractmethod
    def _value(self, feature: str, value: Any) -> Any:
        """A value as a client takes it."""


class CsvUsers(_TextUsers):
    """A CSV file with a header; an empty cell is a missing value, the members of a bag or a
    sequence are joined by `|`."""

    def _header(self) -> Iterable[str]:
        return next(csv.reader(self._lines()), [])

    def _records(self) -> Iterator[dict[str, Any]]:
        reader = csv.reader(self._lines(), strict=True)
        rows = 0
        try:
            header = next(reader, [])
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise UsageError(f"{self.path}: column {twice[0]!r} comes twice; rename one")
            for cells in reader:
                if not cells:
                    continue
                rows += 1
                if len(cells) != len(header):
                    raise UsageError(
                        f"{self.path}, row {rows} (line {reader.line_num}): {len(cells)} cells "
                        f"came; the header has {len(header)} columns"
                    )
                yield dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UsageError(
                f"{self.path}, row {rows + 1} (line {reader.line_num}): not CSV: {error}"
            ) from error

    def _kept_value(self, value: Any) -> Any:
        if value and _INTEGER.fullmatch(value):
            return int(value)
        return value or None

    def _value(self, feature: str, value: Any) -> Any:
        if not value:
            return None
        return value if feature in self.layout.id_features else _number(value)


class JsonUsers(_TextUsers):
    """JSON lines: an object of raw values by feature name each, as a client takes them."""

    def _records(self) -> Iterator[dict[str, Any]]:
        rows = 0
        for number, line in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            rows += 1
            where = f"{self.path}, row {rows} (line {number})"
            try:
                record = of_json(line)
            except InvalidInput as error:
                raise UsageError(f"{where}: {error}") from error
            if not isinstance(record, dict):
                came = type(record).__name__
                raise UsageError(f"{where}: a {came} came; expected an object of values by feature")
            yield record

    def _kept_value(self, value: Any) -> Any:
        return value

    def _value(self, feature: str, value: Any) -> Any:
        return value


def _number(text: str) -> Any:
    """A number; a text that is none stays, and the client refuses it by the feature's name."""
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return text
