"""What the first pass over the rows collects: the distinct items and users, and how often values
occur.

A source either lists its items (MovieLens) or only shows their features (Criteo). In the second
case two impressions show the same item when all raw item features are equal. `DistinctItems`
compares them by a 64-bit hash of the features: among 30 million items the odds of any collision at
all are n^2 / 2^65 = 2.4e-5, and it would merge two items, no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cascade.data.parts import ROW_GROUP
from cascade.data.source import DataError, typed
from cascade.schema import Schema, Side

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

COMPACT_AT = 1_000_000  # pending distinct values that make merging worth its time
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # any odd number


class ListedItems:
    """Items that the source lists, each id once: found by their id."""

    def __init__(self, catalogue: pa.Table) -> None:
        self._catalogue = catalogue
        self._ids = catalogue["item_id"].combine_chunks()
        self.count = len(self._ids)
        names, counts = pc.value_counts(self._ids).flatten()
        twice = names.filter(pc.greater(counts, 1))
        if len(twice):
            raise DataError(f"the item list names item {twice[0]} more than once")

    def tables(self) -> Iterator[pa.Table]:
        yield self._catalogue

    def rows(self, chunk: pa.Table) -> Rows:
        """`item_id` of B impressions -> rows of the catalogue [B]."""
        ids = chunk["item_id"]
        rows = pc.index_in(ids, value_set=self._ids)
        if rows.null_count:
            unknown = ids.filter(rows.is_null())[0]
            raise DataError(f"item {unknown} is shown, but the item list does not have it")
        return np.asarray(rows.to_numpy(), np.int64)


class DistinctItems:
    """Items known by their features only, numbered in the order of their first appearance.

    The hashes of the known items lie in sorted runs, 16 bytes an item, each run at least twice as
    long as the next. Looking up costs one binary search per run; adding merges a new run into those
    that are too short, which costs O(log N) moves per item altogether. The file at `path` takes
    every item's raw features, in the items' order.
    """

    def __init__(self, schema: Schema, path: Path) -> None:
        self._features = schema.side("item")
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._runs: list[tuple[Hashes, Rows]] = []
        self.count = 0

    def tables(self) -> Iterator[pa.Table]:
        """The raw features of all items; an item is named, as `item_id`, by its row."""
        if self._writer is None:
            return
        self._writer.close()
        start = 0
        for batch in pq.ParquetFile(self._path).iter_batches(ROW_GROUP):
            names = pa.array(np.arange(start, start + len(batch)))
            yield pa.Table.from_batches([batch]).append_column("item_id", names)
            start += len(batch)

    def rows(self, chunk: pa.Table) -> Rows:
        """Raw item features of B impressions -> rows of the catalogue [B]."""
        shown = typed(self._features, chunk)
        hashes, first, inverse = np.unique(hash_rows(shown), return_index=True, return_inverse=True)
        rows = self._find(hashes)
        new = np.flatnonzero(rows < 0)
        if len(new):
            appearing = new[np.argsort(first[new])]
            rows[appearing] = np.arange(self.count, self.count + len(new))
            self.count += len(new)
            self._add(hashes[new], rows[new])
            self._writer = self._writer or pq.ParquetWriter(self._path, shown.schema)
            self._writer.write_table(shown.take(pa.array(first[appearing])))
        return np.asarray(rows[inverse])

    def _find(self, hashes: Hashes) -> Rows:
        """Rows [B], -1 where a hash is new."""
        rows = np.full(len(hashes), -1, np.int64)
        for run, run_rows in self._runs:
            at = np.searchsorted(run, hashes).clip(max=len(run) - 1)
            known = run[at] == hashes
            rows[known] = run_rows[at[known]]
        return rows

    def _add(self, hashes: Hashes, rows: Rows) -> None:
        """Add entries that are new, sorted by hash."""
        while self._runs and len(self._runs[-1][0]) < 2 * len(hashes):
            run, run_rows = self._runs.pop()
            both, both_rows = np.concatenate((run, hashes)), np.concatenate((run_rows, rows))
            order = np.argsort(both, kind="stable")  # two sorted runs: one merge
            hashes, rows = both[order], both_rows[order]
        self._runs.append((hashes, rows))


def hash_rows(table: pa.Table) -> Hashes:
    """[B]: Python hashes every distinct value of a column once (64 bits, SipHash); a polynomial
    joins the columns. Null and the empty string are the same value."""
    joined = np.zeros(table.num_rows, np.uint64)
    for column in table.columns:
        text = pc.fill_null(pc.cast(column, pa.string()), "")
        encoded = text.combine_chunks().dictionary_encode()
        texts = encoded.dictionary.to_numpy(zero_copy_only=False)
        values = np.fromiter(map(hash, texts), np.int64, len(texts))
        joined = joined * _FACTOR + values.view(np.uint64)[encoded.indices.to_numpy()]
    return joined


class DistinctUsers:
    """Users numbered in the order of their first appearance, whatever the type of their names."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    @property
    def count(self) -> int:
        return len(self._numbers)

    def rows(self, column: pa.ChunkedArray) -> Rows:
        """Names [B] -> numbers [B], -1 where it is null."""
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        encoded = column.combine_chunks().dictionary_encode()
        names, known = encoded.dictionary.to_pylist(), self._numbers
        found = np.array([known.setdefault(name, len(known)) for name in names], np.int64)
        places = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
        return np.asarray(np.append(found, -1)[places])


class Vocabularies:
    """How often the values of every feature with encoding `vocabulary` occur, for some sides: added
    up in chunks, so that memory follows the distinct values."""

    def __init__(self, schema: Schema, sides: tuple[Side, ...]) -> None:
        self._features = [
            f
            for f in schema.features
            if f.encoding == "vocabulary" and f.side in sides and not f.shares
        ]
        # By feature, tables of value and count: what is merged, then what was counted since.
        self._counts: dict[str, list[pa.Table]] = {f.name: [] for f in self._features}

    def add(self, table: pa.Table) -> None:
        """Count raw columns named by feature; a value of several members counts each of them."""
        columns = typed(self._features, table)
        for feature in self._features:
            values, counts = columns[feature.name], self._counts[feature.name]
            if feature.multivalued:
                values = pc.list_flatten(pc.split_pattern(values, "|"))
            counted = pc.value_counts(values.combine_chunks())
            counts.append(pa.table(counted.flatten(), ["value", "count"]))
            if sum(map(len, counts[1:])) > max(COMPACT_AT, len(counts[0])):
                counts[:] = [_merged(counts)]

    def fitted(self) -> dict[str, list[bytes]]:
        """By feature, the values seen `min_count` times or more, in the order of their ids: most
        frequent first, ties by value. A missing value is none. A value with a line feed is a
        `DataError`: a vocabulary is stored one value per line."""
        fitted = {f.name: _values(self._counts[f.name], f.min_count) for f in self._features}
        for name, values in fitted.items():
            broken = next((value for value in values if b"\n" in value), None)
            if broken is not None:
                raise DataError(
                    f"feature {name}: the value {broken[:40]!r} holds a line feed, which a "
                    "category cannot have; remove it"
                )
        return fitted


def _merged(counts: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(counts).group_by("value").aggregate([("count", "sum")])
    return table.rename_columns(["value", "count"])


def _values(counts: list[pa.Table], min_count: int) -> list[bytes]:
    if not counts:
        return []
    table = _merged(counts).filter((pc.field("count") >= min_count) & (pc.field("value") != ""))
    table = table.sort_by([("count", "descending"), ("value", "ascending")])
    return [*table["value"].cast(pa.binary()).to_pylist()]
