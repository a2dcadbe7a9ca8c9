"""The first stage: encodes the user and finds the candidates among all items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cascade.artifact import Array
from cascade.config import Serving
from cascade.encoding import Encoder
from cascade.index.files import open_index
from cascade.layout import RequestLayout
from cascade.runtime import spans
from cascade.runtime.load import load_graph
from cascade.spec import ALLOW, CONTEXT, EXCLUDE, FEATURES, UNKNOWN_VALUES
from cascade.stages.context import Contexts
from cascade.stages.filters.deny import DenyList, Memory
from cascade.stages.filters.items import FilterItems
from cascade.stages.filters.search import Filtered

Counts = Mapping[str, int | Mapping[str, int]]
Levels = Mapping[str, float | Mapping[str, float]]


class Retrieve:
    """Raw user -> encoded user and candidates.

    dense [B, F_dense], categorical [B, F_cat] -> user_dense [B, F_dense], user_ids [B, C],
    candidates [B, K]: catalogue rows, best first, -1 pads; unknown_values [B, 1]: how many of the
    user's values are not in the vocabularies. `deny_list` is a file of the items that
    no user may get. Raises DenyListError: it cannot be read.
    """

    inputs: tuple[str, ...] = FEATURES
    optional: tuple[str, ...] = (EXCLUDE, ALLOW, CONTEXT)
    outputs: tuple[str, ...] = ("user_dense", "user_ids", "candidates", UNKNOWN_VALUES.name)

    def __init__(
        self, folder: Path, serving: Serving, candidates: int, deny_list: Path | None = None
    ) -> None:
        self.candidates = candidates
        self.encoder = Encoder.load(folder, sides=("user",))
        self.schema_hash = self.encoder.schema.hash
        layout = RequestLayout.of(self.encoder.schema)
        self.needed, self._contexts = layout.needed, Contexts(layout)
        _, tower = load_graph(folder, self.encoder.schema, serving)
        tower = spans.traced("tower", tower)
        self.index = open_index(folder, self.encoder.schema.hash, serving)
        items = FilterItems(folder, self.encoder.schema.hash)
        strings = self.encoder.schema.string_ids
        self._deny = None
        if deny_list:
            memory = Memory.of_server(deny_list)
            self._deny = DenyList(deny_list, items, string_ids=strings, memory=memory)
        self._search = Filtered(tower, self.index, items, self._deny, candidates, strings)
        self._names = [feature.name for feature in self.encoder.schema.ids("user")]
        self._kept, self._unknown = 0, np.zeros(len(self._names), np.int64)

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        dense, categorical, exclude, allow, context = (*inputs, None, None, None)[:5]
        if context is not None:
            dense, categorical = self._contexts.over(context, dense, categorical)
        unknown = np.zeros((len(categorical), len(self._names)), np.int64)
        seen = self.encoder.unknown_seen
        user_dense, user_ids = self.encoder.encode("user", dense, categorical, unknown)
        spans.end("encode")
        if not len(user_ids):
            none = np.empty((0, self.candidates), np.int64)
            return user_dense, user_ids, none, np.empty((0, 1), np.int64)
        rows = self._search(user_dense, user_ids, exclude, allow)
        spans.end("search")
        self._kept += int(np.count_nonzero(rows >= 0))
        of_users = np.zeros((len(rows), 1), np.int64)
        if self.encoder.unknown_seen != seen:  # sums cost microseconds, and most users have none
            of_users = unknown.sum(1, keepdims=True)
            self._unknown += unknown.sum(0)
        return user_dense, user_ids, rows, of_users

    def counts(self) -> Counts:
        """Candidates, and by feature the values of users that are not in its vocabulary."""
        by_feature = dict(zip(self._names, self._unknown.tolist(), strict=True))
        return {"kept": self._kept, UNKNOWN_VALUES.name: by_feature}

    def levels(self) -> Levels:
        """Items, and the state of the deny list."""
        return {"items": len(self.index), **(self._deny.levels() if self._deny else {})}
