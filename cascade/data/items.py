"""Which row of the catalogue an impression shows.

A source either lists its items (MovieLens) or only shows their features (Criteo). In the second
case two impressions show the same item when all raw item features are equal. They are compared by
a 64-bit hash of the features: among 30 million items the odds of any collision at all are
n^2 / 2^65 = 2.4e-5, and it would merge two items, no more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cascade.data.parts import PartWriter
from cascade.data.source import DataError
from cascade.schema import Schema

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


class ListedItems:
    """Items that the source lists: found by their id.

    Raises:
        DataError: an id occurs twice in the list.
    """

    def __init__(self, catalogue: pa.Table) -> None:
        ids = catalogue["item_id"].to_numpy()
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]
        twice = self._sorted[1:][self._sorted[1:] == self._sorted[:-1]]
        if len(twice):
            raise DataError(f"the item list names item {twice[0]} more than once")
        self.count = len(ids)

    def rows(self, chunk: pa.Table) -> Rows:
        """`item_id` of B impressions -> rows of the catalogue [B]."""
        return self.find(chunk["item_id"].to_numpy())

    def find(self, ids: Rows) -> Rows:
        """Item ids [B] -> rows of the catalogue [B].

        Raises:
            DataError: an id is not in the list.
        """
        found = np.searchsorted(self._sorted, ids).clip(max=max(0, self.count - 1))
        known = self._sorted[found] == ids if self.count else np.zeros(len(ids), bool)
        if not known.all():
            raise DataError(f"item {ids[~known][0]} is shown, but the item list does not have it")
        rows: Rows = self._order[found]
        return rows


class DistinctItems:
    """Items known by their features only: numbered as they first appear, and written out then."""

    def __init__(self, schema: Schema, writer: PartWriter) -> None:
        self._features = schema.side("item")
        self._writer = writer
        self._known = _HashRows()
        self.count = 0

    def rows(self, chunk: pa.Table) -> Rows:
        """Raw item features of B impressions -> rows of the catalogue [B]."""
        hashes, first, inverse = np.unique(
            self._hashes(chunk), return_index=True, return_inverse=True
        )
        rows = self._known.find(hashes)
        new = np.flatnonzero(rows < 0)
        if len(new):
            new = new[np.argsort(first[new])]  # in order of appearance
            rows[new] = np.arange(self.count, self.count + len(new))
            self.count += len(new)
            added = np.sort(new)
            self._known.add(hashes[added], rows[added])
            names = [feature.name for feature in self._features]
            self._writer.add(chunk.select(names).take(pa.array(first[new])))
        found: Rows = rows[inverse]
        return found

    def _hashes(self, chunk: pa.Table) -> Hashes:
        """[B]: every distinct value is hashed once, then mixed over the columns."""
        mixed = np.zeros(chunk.num_rows, np.uint64)
        for feature in self._features:
            column = pc.fill_null(pc.cast(chunk[feature.name], pa.string()), "")
            encoded = column.combine_chunks().dictionary_encode()
            values = _hash_strings(encoded.dictionary)
            mixed = _mix(mixed ^ values[encoded.indices.to_numpy()])
        return mixed


class _HashRows:
    """hash -> row, growing to tens of millions: 16 bytes an entry.

    Sorted runs, each at least twice as long as the next; a new run is merged into those that are
    too short. Adding costs O(log N) moves per entry altogether, looking up one binary search per
    run.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Hashes, Rows]] = []

    def find(self, hashes: Hashes) -> Rows:
        """Rows [B], -1 where a hash is new."""
        rows = np.full(len(hashes), -1, np.int64)
        for run, run_rows in self._runs:
            at = np.searchsorted(run, hashes).clip(max=len(run) - 1)
            known = run[at] == hashes
            rows[known] = run_rows[at[known]]
        return rows

    def add(self, hashes: Hashes, rows: Rows) -> None:
        """Add entries that are new, sorted by hash."""
        while self._runs and len(self._runs[-1][0]) < 2 * len(hashes):
            run, run_rows = self._runs.pop()
            hashes, rows = np.concatenate((run, hashes)), np.concatenate((run_rows, rows))
            order = np.argsort(hashes, kind="stable")  # two sorted runs: one merge
            hashes, rows = hashes[order], rows[order]
        self._runs.append((hashes, rows))


def _hash_strings(strings: pa.StringArray) -> Hashes:
    """[B]: eight bytes at a time, so that short strings of one length cannot collide at all."""
    _, bounds, content = strings.buffers()
    ends = np.frombuffer(bounds, np.int32)[strings.offset : strings.offset + len(strings) + 1]
    starts, lengths = ends[:-1].astype(np.int64), np.diff(ends)
    padded = np.frombuffer((content.to_pybytes() if content else b"") + bytes(8), np.uint8)
    words: Hashes = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))  # one at every byte
    hashes = _mix(lengths.astype(np.uint64))
    for done in range(0, int(lengths.max(initial=0)), 8):
        rows = np.flatnonzero(lengths > done)
        unused = 8 * (8 - np.minimum(lengths[rows] - done, 8)).astype(np.uint64)
        word = words[starts[rows] + done] << unused  # what follows the string is shifted out
        hashes[rows] = _mix(hashes[rows] ^ word)
    return hashes


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that spreads all bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed
