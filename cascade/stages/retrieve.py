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
from cascade.spec import ALLOW, CONTEXT, EXCLUDE, FEATURES
from cascade.stages.context import Contexts
from cascade.stages.filters.deny import DenyList
from cascade.stages.filters.items import FilterItems
from cascade.stages.filters.search import Filtered


class Retrieve:
    """Raw user -> encoded user and candidates.

    dense [B, F_dense], categorical [B, F_cat] -> user_dense [B, F_dense], user_ids [B, C],
    candidates [B, K]: catalogue rows, best first, -1 pads. `deny_list` is a file of the items that
    no user may get.
    """

    inputs: tuple[str, ...] = FEATURES
    optional: tuple[str, ...] = (EXCLUDE, ALLOW, CONTEXT)
    outputs: tuple[str, ...] = ("user_dense", "user_ids", "candidates")

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
        deny = DenyList(deny_list, items, string_ids=strings) if deny_list else None
        self._search = Filtered(tower, self.index, items, deny, candidates, strings)
        self._kept = 0

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        dense, categorical, exclude, allow, context = (*inputs, None, None, None)[:5]
        if context is not None:
            dense, categorical = self._contexts.over(context, dense, categorical)
        user_dense, user_ids = self.encoder.encode("user", dense, categorical)
        spans.end("encode")
        if not len(user_ids):
            return user_dense, user_ids, np.empty((0, self.candidates), np.int64)
        rows = self._search(user_dense, user_ids, exclude, allow)
        spans.end("search")
        self._kept += int(np.count_nonzero(rows >= 0))
        return user_dense, user_ids, rows

    def counts(self) -> Mapping[str, int]:
        return {"kept": self._kept}

    def levels(self) -> Mapping[str, float]:
        return {"items": len(self.index)}
