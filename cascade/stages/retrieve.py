"""The first stage: encodes the user and finds the candidates among all items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cascade import index
from cascade.artifact import Array
from cascade.config import Serving
from cascade.encoding import Encoder
from cascade.index.exact import ExactIndex
from cascade.index.files import open_index
from cascade.runtime import spans
from cascade.runtime.load import Graph, load_graph
from cascade.spec import ALLOW, EXCLUDE
from cascade.stages.filters.deny import DenyList
from cascade.stages.filters.items import FilterItems
from cascade.stages.filters.search import Filtered


class Retrieve:
    """Raw user -> encoded user and candidates.

    dense [B, F_dense], categorical [B, F_cat] -> user_dense [B, F_dense], user_ids [B, C],
    candidates [B, K]: catalogue rows, best first, -1 pads.

    Args:
        deny_list: file of the items that no user may get; None = there is no deny list.
    """

    inputs: tuple[str, ...] = ("dense", "categorical")
    optional: tuple[str, ...] = (EXCLUDE, ALLOW)
    outputs: tuple[str, ...] = ("user_dense", "user_ids", "candidates")

    def __init__(
        self, folder: Path, serving: Serving, candidates: int, deny_list: Path | None = None
    ) -> None:
        self.candidates = candidates
        self.encoder = Encoder.load(folder, sides=("user",))
        self.schema_hash = self.encoder.schema.hash
        _, tower = load_graph(folder, self.encoder.schema, serving)
        self._tower = spans.traced("tower", tower)
        self.index = open_index(folder, self.encoder.schema.hash, serving)
        items = FilterItems(folder, self.encoder.schema.hash)
        deny = DenyList(deny_list, items) if deny_list else None
        search = _searcher(self.index, self._tower, candidates)
        self._search = Filtered(search, self._tower, self.index, items, deny, candidates)
        self._kept = 0

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        dense, categorical, *wanted = inputs
        user_dense, user_ids = self.encoder.encode("user", dense, categorical)
        spans.end("encode")
        if not len(user_ids):
            return user_dense, user_ids, np.empty((0, self.candidates), np.int64)
        rows = self._search(user_dense, user_ids, *wanted)
        spans.end("search")
        self._kept += int(np.count_nonzero(rows >= 0))
        return user_dense, user_ids, rows

    def counts(self) -> Mapping[str, int]:
        return {"kept": self._kept}

    def levels(self) -> Mapping[str, float]:
        return {"items": len(self.index)}


def _searcher(found: ExactIndex | index.Index, tower: Graph, k: int) -> Callable[..., index.Ids]:
    """Encoded users -> catalogue rows int64 [B, k]. Between a tower of the torch runtimes and exact
    search the vectors stay on the device."""
    function = getattr(tower, "function", None)
    if isinstance(found, ExactIndex) and function is not None:
        return found.after(function, k)
    return lambda *users: found.search(tower(*users)[0], k)
