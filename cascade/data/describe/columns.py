"""What is counted of one feature, chunk by chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cascade.data.source import typed
from cascade.schema import Feature

COMPACT_AT = 1_000_000


class Distinct:
    """The distinct values of a column; null is none."""

    def __init__(self) -> None:
        self._parts: list[Any] = []

    def add(self, column: Any) -> None:
        self._parts.append(pc.drop_null(pc.unique(column)))
        if sum(map(len, self._parts[1:])) > COMPACT_AT:
            self._compact()

    def _compact(self) -> None:
        chunks = [c for part in self._parts for c in getattr(part, "chunks", [part])]
        self._parts = [pc.unique(pa.chunked_array(chunks))] if chunks else []

    @property
    def count(self) -> int:
        self._compact()
        return sum(map(len, self._parts))


class Column:
    """One feature: missing and distinct values, the range of a number, the lengths of lists."""

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self.rows = self.missing = 0
        self.least, self.most = np.inf, -np.inf
        self.distinct = Distinct()
        self.lengths = np.zeros(1, np.int64)  # how many rows have so many members

    def add(self, table: pa.Table) -> None:
        """Count raw rows [B], a column of which has the feature's name."""
        column = typed([self.feature], table)[self.feature.name].combine_chunks()
        self.rows += len(column)
        if self.feature.kind == "dense":
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float32()), column)
            if len(column) > column.null_count:
                bounds = pc.min_max(column)
                self.least = min(self.least, bounds["min"].as_py())
                self.most = max(self.most, bounds["max"].as_py())
        else:
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        self.missing += column.null_count
        if self.feature.multivalued:
            lists = pc.split_pattern(pc.fill_null(column, ""), "|")
            self.distinct.add(pc.list_flatten(lists).filter(pc.not_equal(lists.flatten(), "")))
            lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
            empty = pc.is_null(column).to_numpy(zero_copy_only=False)
            counted = np.bincount(np.where(empty, 0, lengths))
            size = max(len(counted), len(self.lengths))
            self.lengths = np.pad(self.lengths, (0, size - len(self.lengths)))
            self.lengths[: len(counted)] += counted
        else:
            self.distinct.add(column)

    def found(self) -> dict[str, Any]:
        """All of it as JSON."""
        feature = self.feature
        about: dict[str, Any] = {
            "name": feature.name,
            "side": feature.side,
            "kind": feature.kind,
            "encoding": feature.encoding,
            "rows": self.rows,
            "missing": self.missing,
            "distinct": self.distinct.count,
        }
        if feature.kind == "dense" and self.least <= self.most:
            about |= {"least": float(self.least), "most": float(self.most)}
        if feature.multivalued:
            about |= {"length": feature.length, "members": spread(self.lengths)}
            about["cut"] = int(self.lengths[feature.length + 1 :].sum())
        return about


def spread(counts: npt.NDArray[np.int64]) -> dict[str, int]:
    """How many there are of each size -> the least, the median and the largest size."""
    ends = np.cumsum(counts)
    if not ends[-1]:
        return {"least": 0, "median": 0, "most": 0}
    places = (1, (ends[-1] + 1) // 2, ends[-1])
    sizes = (int(np.searchsorted(ends, place)) for place in places)
    return dict(zip(("least", "median", "most"), sizes, strict=True))
