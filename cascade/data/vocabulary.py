"""How often each value of a feature occurs, counted in chunks without a Python object per value."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from cascade.data.source import DataError
from cascade.schema import Feature, Schema, Side

COMPACT_AT = 1_000_000  # pending distinct values that make merging worth its time


class Counts:
    """Merges the counts of chunks as they come: memory follows the distinct values."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._merged = 0
        self._pending = 0

    def add(self, values: pa.ChunkedArray) -> None:
        """Count strings; null and the empty string are missing values and not counted."""
        counted = pc.value_counts(values.combine_chunks())
        part = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
        self._parts.append(part)
        self._pending += part.num_rows
        if self._pending > max(COMPACT_AT, self._merged):
            self._merge()

    def _merge(self) -> pa.Table:
        table = pa.concat_tables(self._parts).group_by("value").aggregate([("count", "sum")])
        table = table.rename_columns(["value", "count"])
        self._parts, self._merged, self._pending = [table], table.num_rows, 0
        return table

    def vocabulary(self, min_count: int) -> list[bytes]:
        """The values seen `min_count` times or more: most frequent first, ties by value."""
        if not self._parts:
            return []
        table = self._merge()
        known = pc.and_(pc.greater_equal(table["count"], min_count), pc.is_valid(table["value"]))
        table = table.filter(pc.and_kleene(known, pc.not_equal(table["value"], "")))
        table = table.sort_by([("count", "descending"), ("value", "ascending")])
        values: list[bytes] = table["value"].cast(pa.binary()).to_pylist()
        return values


class Vocabularies:
    """The counts of every feature of some sides whose encoding is `vocabulary`."""

    def __init__(self, schema: Schema, sides: tuple[Side, ...]) -> None:
        self._features = [
            f for f in schema.features if f.encoding == "vocabulary" and f.side in sides
        ]
        self._counts = {feature.name: Counts() for feature in self._features}

    def add(self, table: pa.Table) -> None:
        """Count raw columns named by feature; a bag or sequence counts member by member."""
        for feature in self._features:
            values = table[feature.name]
            self._counts[feature.name].add(_members(values) if feature.multivalued else values)

    def fitted(self) -> dict[str, list[bytes]]:
        """Values by feature, in the order of their ids.

        Raises:
            DataError: a value holds a line feed; a vocabulary is stored one value per line.
        """
        return {feature.name: self._values(feature) for feature in self._features}

    def _values(self, feature: Feature) -> list[bytes]:
        values = self._counts[feature.name].vocabulary(feature.min_count)
        broken = next((value for value in values if b"\n" in value), None)
        if broken is not None:
            raise DataError(
                f"feature {feature.name}: the value {broken[:40]!r} holds a line feed, which a "
                "category cannot have; remove it"
            )
        return values


def _members(bags: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(pc.split_pattern(bags, "|"))
