"""The rows of the catalogue by item id and by feature value: mapped files beside the index.

The values of all features lie one after the other, sorted within a feature, as one string of bytes
and the positions where each begins; their rows likewise. Nothing is read when a process starts: a
lookup is a binary search in pages that all processes share.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.artifact import (
    Mapped,
    check_format,
    check_schema,
    mapped_from,
    read_json,
    save_described,
)
from cascade.encoding import InvalidInput
from cascade.index import Ids, Mask
from cascade.spec import ALLOW

DESCRIPTION = "filters.json"
FORMAT = 2


@dataclass(frozen=True)
class FilterDescription:
    """filters.json. `mapped` are `row_ids` int64 [N], the id of each row; `ids` int64 [N], sorted,
    and `id_rows` int32 [N], the row of each; `text` uint8 and `text_starts` int64 [V + 1], the
    values of all features; `rows` int32 and `row_starts` int64 [V + 1], the rows that have each
    value, ascending."""

    schema_hash: str
    mapped: dict[str, Mapped]
    features: dict[str, tuple[int, int]]  # first and end position of each one's values among the V
    left_out: dict[str, str]  # features that cannot be filtered by, and why

    def save(self, folder: Path) -> None:
        save_described(folder / DESCRIPTION, FORMAT, self)

    @classmethod
    def load(cls, folder: Path, schema_hash: str) -> FilterDescription:
        """Read and check. ArtifactError: missing, damaged, of another schema, or a short file."""
        path = folder / DESCRIPTION

        def parse(content: Any) -> FilterDescription:
            check_format(path, content, FORMAT)
            features = {name: (first, end) for name, (first, end) in content["features"].items()}
            return cls(content["schema_hash"], mapped_from(content), features, content["left_out"])

        found = read_json(path, parse)
        check_schema(path, found.schema_hash, schema_hash)
        for value in found.mapped.values():
            value.check(folder)
        return found


class FilterItems:
    """The items of a release, by id and by value.

    ArtifactError: the folder was exported without these files, or one is damaged.
    """

    def __init__(self, folder: Path, schema_hash: str) -> None:
        described = FilterDescription.load(folder, schema_hash)
        # Plain views of the mappings: indexing a memmap costs a microsecond each time.
        arrays = {name: np.asarray(file.open(folder)) for name, file in described.mapped.items()}
        self._row_ids = arrays["row_ids"]
        self._ids, self._id_rows = arrays["ids"], arrays["id_rows"]
        self._text, self._text_starts = arrays["text"], arrays["text_starts"]
        self._rows, self._row_starts = arrays["rows"], arrays["row_starts"]
        self._features, self._left_out = described.features, described.left_out

    def __len__(self) -> int:
        return len(self._ids)

    def rows(self, ids: Ids) -> Ids:
        """External ids [n] -> the rows that have them, int64 [<= n], in any order."""
        ids = np.sort(ids)  # near ids lie in the same pages
        places = np.searchsorted(self._ids, ids).clip(max=len(self) - 1)
        rows: Ids = self._id_rows[places[self._ids[places] == ids]].astype(np.int64)
        return rows

    def known(self, ids: Ids) -> Mask:
        """Whether an item has each of the ids [n], bool [n]."""
        places = np.searchsorted(self._ids, ids).clip(max=len(self) - 1)
        found: Mask = self._ids[places] == ids
        return found

    def named(self, rows: Ids, ids: Ids) -> Mask:
        """Whether each of these distinct rows [n] has one of the ids, bool [n]. Much faster than a
        search for the rows of the ids."""
        own = self._row_ids[rows]
        order = np.argsort(own)
        own, ids = own[order], np.sort(ids)
        places = np.searchsorted(own, ids)
        places = places[places < len(own)]
        found = np.zeros(len(rows), bool)
        found[order[places[own[places] == ids[: len(places)]]]] = True
        return found

    def having(self, allow: Mapping[str, Sequence[bytes]]) -> Mask:
        """[N]: whether an item has, for each feature named, one of its values.

        InvalidInput: there is no such feature, or it cannot be filtered by.
        """
        found = np.ones(len(self), bool)
        for feature, values in allow.items():
            self._check(feature)
            some = np.zeros(len(self), bool)
            for value in values:
                some[self._having(feature, value)] = True
            found &= some
        return found

    def _check(self, feature: str) -> None:
        if feature in self._left_out:
            raise InvalidInput(
                f"{ALLOW}: feature {feature} cannot be asked for: {self._left_out[feature]}"
            )
        if feature not in self._features:
            known = ", ".join(self._features) or "none: this release was exported without"
            raise InvalidInput(f"{ALLOW}: no item feature is called {feature!r}; known: {known}")

    def _having(self, feature: str, value: bytes) -> Ids:
        first, end = self._features[feature]
        place = bisect_left(range(end), value, lo=first, key=self._value)
        if place == end or self._value(place) != value:
            return self._rows[:0]
        found: Ids = self._rows[self._row_starts[place] : self._row_starts[place + 1]]
        return found

    def _value(self, place: int) -> bytes:
        found: bytes = self._text[self._text_starts[place] : self._text_starts[place + 1]].tobytes()
        return found
