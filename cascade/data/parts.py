"""Parquet files in parts: tables of any length in, row groups of one size out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 131_072  # rows that are read, and shuffled, at once
GROUPS_PER_PART = 32  # 4 million rows: a part is written and read within seconds

Columns = dict[str, npt.NDArray[Any]]


class PartWriter:
    """Writes part-00000.parquet, part-00001.parquet, … into a folder, which it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._groups = 0
        self._pending: list[pa.Table] = []
        self._file: pq.ParquetWriter | None = None
        folder.mkdir(parents=True)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._pending:
            self._write(pa.concat_tables(self._pending))
        if self._file is not None:
            self._file.close()

    def add(self, table: pa.Table) -> None:
        """Take rows; they are on disk once there are enough of them, or on exit."""
        self.rows += table.num_rows
        self._pending.append(table)
        if sum(part.num_rows for part in self._pending) < ROW_GROUP:
            return
        table = pa.concat_tables(self._pending)
        whole = table.num_rows // ROW_GROUP * ROW_GROUP
        for start in range(0, whole, ROW_GROUP):
            self._write(table.slice(start, ROW_GROUP))
        self._pending = [table.slice(whole)] if whole < table.num_rows else []

    def _write(self, table: pa.Table) -> None:
        if self._file is None or self._groups % GROUPS_PER_PART == 0:
            if self._file is not None:
                self._file.close()
            path = self.folder / f"part-{self._groups // GROUPS_PER_PART:05d}.parquet"
            self._file = pq.ParquetWriter(path, table.schema, compression="zstd")
        self._file.write_table(table.combine_chunks(), row_group_size=ROW_GROUP)
        self._groups += 1


@dataclass(frozen=True)
class Group:
    """A row group: its file, its number there, its rows."""

    path: Path
    number: int
    rows: int


def groups(folder: Path) -> list[Group]:
    """All row groups that a `PartWriter` wrote into a folder, in order."""
    found = []
    for path in sorted(folder.glob("part-*.parquet")):
        metadata = pq.read_metadata(path)
        for number in range(metadata.num_row_groups):
            found.append(Group(path, number, metadata.row_group(number).num_rows))
    return found


def read_tables(folder: Path) -> Iterator[pa.Table]:
    """What a `PartWriter` wrote into a folder, a row group at a time."""
    for group in groups(folder):
        yield _read(group)


def read_groups(wanted: Sequence[Group], names: list[str]) -> Columns:
    """Some columns of some row groups, as arrays: lists as [B, F], strings as bytes."""
    tables = (_read(group, names) for group in wanted)
    return concatenate([{name: _numpy(table[name]) for name in names} for table in tables])


def _read(group: Group, names: list[str] | None = None) -> pa.Table:
    with pq.ParquetFile(group.path) as file:
        return file.read_row_group(group.number, columns=names)


def concatenate(parts: Sequence[Columns]) -> Columns:
    """The rows of several sets of the same columns; an empty set counts for nothing."""
    parts = [part for part in parts if part]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    if pa.types.is_fixed_size_list(column.type):
        return matrix(column)
    if pa.types.is_string(column.type):
        return np.asarray(column.cast(pa.binary()).fill_null(b"").to_numpy(), object)
    return np.asarray(column.to_numpy())  # a missing number is NaN


def matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """B lists of F numbers -> [B, F]."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values).reshape(len(column), column.type.list_size)


def fixed_size_list(matrix: npt.NDArray[np.generic]) -> pa.FixedSizeListArray:
    """[B, F] -> B lists of F numbers: one column of a table."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
