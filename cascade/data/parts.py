"""Parquet in parts: tables of any length in, row groups of one size out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice, takewhile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

ROW_GROUP = 131_072  # rows that are read, and shuffled, at once
GROUPS_PER_PART = 32  # 4 million rows: a part is written and read within seconds

Columns = dict[str, npt.NDArray[Any]]
Group: TypeAlias = ds.ParquetFileFragment  # of one row group


def write_file(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write a Parquet file, a row group for every table; without tables there is no file.
    -> the number of rows."""
    tables = iter(tables)
    first, rows = next(tables, None), 0
    if first is not None:
        with pq.ParquetWriter(path, first.schema, compression="zstd") as file:
            for table in chain((first,), tables):
                file.write_table(table)
                rows += table.num_rows
    return rows


def write_parts(folder: Path, tables: Iterable[pa.Table]) -> int:
    """Write part-00000.parquet, part-00001.parquet, … into a new folder; -> the number of rows."""
    folder.mkdir(parents=True)
    groups = regrouped(tables)
    paths = (folder / f"part-{part:05d}.parquet" for part in count())
    written = (write_file(path, islice(groups, GROUPS_PER_PART)) for path in paths)
    return sum(takewhile(bool, written))


def regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `ROW_GROUP` rows; the last may be shorter, none is empty."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(part.num_rows for part in pending) < ROW_GROUP:
            continue
        joined = pa.concat_tables(pending)
        whole = joined.num_rows // ROW_GROUP * ROW_GROUP
        for start in range(0, whole, ROW_GROUP):
            yield joined.slice(start, ROW_GROUP).combine_chunks()
        pending = [joined.slice(whole)]
    if any(part.num_rows for part in pending):
        yield pa.concat_tables(pending).combine_chunks()


def row_groups(folder: Path) -> list[Group]:
    """The row groups that `write_parts` wrote into a folder, in order."""
    parquet, disk = ds.ParquetFileFormat(), LocalFileSystem()
    paths = sorted(folder.glob("part-*.parquet"))
    files = (parquet.make_fragment(str(path), disk) for path in paths)
    return [group for file in files for group in file.split_by_row_group()]


def row_count(group: Group) -> int:
    """Rows of a row group, from the metadata."""
    return int(group.row_groups[0].num_rows)


def read_groups(wanted: Sequence[Group], names: list[str]) -> Columns:
    """Some columns of some row groups, as arrays: lists as [B, F], strings as bytes."""
    table = pa.concat_tables([group.to_table(columns=names) for group in wanted])
    return {name: _numpy(table[name]) for name in names}


def read_rows(groups: Sequence[Group], names: list[str], rows: npt.NDArray[np.int64]) -> Columns:
    """Some columns of some rows [B], numbered over the row groups of a folder, in any order. One
    row group at a time is in memory."""
    starts = np.cumsum([0, *map(row_count, groups)])
    order = np.argsort(rows, kind="stable")
    ends = np.searchsorted(rows[order], starts)
    tables: list[pa.Table] = []
    for at, group in enumerate(groups):
        wanted = rows[order[ends[at] : ends[at + 1]]] - starts[at]
        if len(wanted) or (at == len(groups) - 1 and not tables):
            tables.append(group.to_table(columns=names).take(pa.array(wanted)))
    table = pa.concat_tables(tables).take(pa.array(np.argsort(order, kind="stable")))
    return {name: _numpy(table[name]) for name in names}


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
