"""The last step of the ranking stage where the ids of items are strings: int64 keys become ids.

The ids lie in mapped files beside the ranker's graph, one after the other in the order of their
keys, as one string of bytes and the positions where each begins. A lookup is a binary search in
pages that all processes share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.artifact import (
    Array,
    ArtifactError,
    Mapped,
    check_format,
    check_schema,
    mapped_from,
    read_json,
    save_described,
)
from cascade.item_keys import PAD
from cascade.spec import ITEM_IDS, ITEM_NAMES
from cascade.stages.scoring import Score

FORMAT = 1


@dataclass(frozen=True)
class NamesDescription:
    """item_names.json. `mapped` are `keys` int64 [N], ascending; `text` uint8 and `starts` int64
    [N + 1], the UTF-8 of the id of each."""

    schema_hash: str
    mapped: dict[str, Mapped]

    def save(self, folder: Path) -> None:
        save_described(folder / ITEM_NAMES, FORMAT, self)

    @classmethod
    def load(cls, folder: Path, schema_hash: str) -> NamesDescription:
        """Read and check. ArtifactError: missing, damaged, of another schema, or a short file."""
        path = folder / ITEM_NAMES

        def parse(content: Any) -> NamesDescription:
            check_format(path, content, FORMAT)
            return cls(content["schema_hash"], mapped_from(content))

        found = read_json(path, parse)
        check_schema(path, found.schema_hash, schema_hash)
        for file in found.mapped.values():
            file.check(folder)
        return found


class Named:
    """A ranking stage whose `item_ids` are keys -> the same with ids: object [B, R] of UTF-8, empty
    for a pad. ArtifactError: item_names.json or a file beside it is damaged."""

    def __init__(self, ranker: Score, folder: Path) -> None:
        self._ranker, self._folder = ranker, folder
        self.inputs, self.needed, self.optional = ranker.inputs, ranker.needed, ranker.optional
        self.outputs, self.schema_hash = ranker.outputs, ranker.schema_hash
        self.item_ids = ranker.item_ids
        self._place = ranker.outputs.index(ITEM_IDS)
        described = NamesDescription.load(folder, ranker.schema_hash).mapped
        arrays = {name: np.asarray(file.open(folder)) for name, file in described.items()}
        self._keys, self._starts = arrays["keys"], arrays["starts"]
        self._text = arrays["text"].data

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        answers = [*self._ranker(*inputs)]
        answers[self._place] = self.names(answers[self._place])
        return tuple(answers)

    def names(self, keys: Array) -> Array:
        """Keys int64 of any shape -> object of that shape. Raises ArtifactError for one that the
        files do not have."""
        flat = keys.ravel()
        found = np.full(flat.shape, b"", np.object_)
        real = np.flatnonzero(flat != PAD)
        places = np.searchsorted(self._keys, flat[real]).clip(max=len(self._keys) - 1)
        if len(unknown := flat[real][self._keys[places] != flat[real]]):
            raise ArtifactError(f"{self._folder}: no id has the key {unknown[0]}: export again")
        ends = (self._starts[places].tolist(), self._starts[places + 1].tolist())
        for at, first, end in zip(real.tolist(), *ends, strict=True):
            found[at] = bytes(self._text[first:end])
        return found.reshape(keys.shape)

    def counts(self) -> Mapping[str, int]:
        return self._ranker.counts()

    def levels(self) -> Mapping[str, float]:
        return self._ranker.levels()
