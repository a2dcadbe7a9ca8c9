"""Prerank and rank: candidate rows of the catalogue to the best of them.

A stage is built from one version folder and knows nothing of Triton: the same object runs in the
server, in the in-process pipeline and in the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cascade.artifact import Array
from cascade.config import DEFAULT_PRODUCT, Product, Serving
from cascade.encoding import InvalidInput
from cascade.runtime import spans
from cascade.runtime.load import load_graph
from cascade.spec import CATALOGUE_IDS, NOT_FINITE, SCORES
from cascade.stages.tasks import Choice, formula_of


class Score:
    """Preranker or ranker: user and candidate rows -> the outputs of the exported graph.

    user_dense [B, F_dense], user_ids [B, C], rows [B, K] -> survivors [B, K'], or item ids and
    scores [B, K'], finite numbers. A candidate that the model has none for comes last. A ranker of
    several tasks also gives these, [B, K', T].

    FormulaError: the formula of `product` is not one of the model's tasks.
    """

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def __init__(self, folder: Path, serving: Serving, product: Product = DEFAULT_PRODUCT) -> None:
        description, self._graph = load_graph(folder, None, serving)
        formula = formula_of(description.stage, description.tasks, product)
        self.inputs, self.outputs = description.inputs, description.outputs
        self.schema_hash = description.schema_hash
        self._sorted, self._scored = f"{description.stage}.sort", description.stage
        ids = description.mapped.get(CATALOGUE_IDS)
        self.item_ids = None if ids is None else ids.open(folder)[:, 0]
        self._items = min((m.shape[0] for m in description.mapped.values()), default=sys.maxsize)
        self._choice = Choice(description, formula, self.item_ids) if description.tasks else None
        self._scores = self.outputs.index(SCORES) if SCORES in self.outputs else None
        self._kept = self._not_finite = 0

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        *users, rows = inputs
        # In catalogue order: near rows share pages, and the gather waits less. Pads come first.
        rows = np.sort(rows, axis=1)
        # A gather beyond the last row does something else on every device.
        if rows[:, -1:].max(initial=-1) >= self._items:
            raise InvalidInput(
                f"{self.inputs[-1]}: row {rows.max()} came, but the catalogue has {self._items} "
                "items. Do all stages serve one release?"
            )
        if not len(inputs[0]):  # ONNX Runtime 1.19 ends the process over TopK of no rows
            one = [np.zeros((1, *x.shape[1:]), x.dtype) for x in inputs]
            return tuple(output[:0] for output in self._run(*one))
        spans.end(self._sorted)
        found = self._run(*users, rows)
        spans.end(self._scored)
        self._kept += int(np.count_nonzero(found[0] >= 0))
        # Graphs of earlier versions answer with what they computed.
        if self._scores is not None and not np.isfinite(found[self._scores]).all():
            return self._finite(found)
        return found

    def _run(self, *inputs: Array) -> tuple[Array, ...]:
        found = self._graph(*inputs)
        return self._choice(inputs[-1], found[0]) if self._choice else tuple(found)

    def _finite(self, found: tuple[Array, ...]) -> tuple[Array, ...]:
        """The same answers, in which items without a finite score come last, with a score of 0."""
        assert self._scores is not None
        pads, known = found[0] < 0, np.isfinite(found[self._scores])
        self._not_finite += int(np.count_nonzero(~known & ~pads))
        order = np.argsort(~known * 1 + pads * 2, axis=1, kind="stable")
        scores = np.where(known & ~pads, found[self._scores], 0).astype(np.float32)
        changed = [*found[: self._scores], scores, *found[self._scores + 1 :]]
        return tuple(np.take_along_axis(values, order, axis=1) for values in changed)

    def counts(self) -> Mapping[str, int]:
        """Items that were handed on, and candidates whose score is no finite number."""
        counted = getattr(self._choice or self._graph, "not_finite", 0)
        return {"kept": self._kept, NOT_FINITE.name: self._not_finite + counted}

    def levels(self) -> Mapping[str, float]:
        return {"items": self._items} if self._items < sys.maxsize else {}
