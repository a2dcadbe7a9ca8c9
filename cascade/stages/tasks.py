"""The last steps of a stage whose model has several tasks: the final score of every candidate, by a
formula that can be changed without another export, and the best by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascade.artifact import Array, Description
from cascade.config import Product
from cascade.formula import Formula, FormulaError
from cascade.spec import ITEM_IDS, PRERANK, SCORES, TASK_SCORES

RANKED = "ranked"  # an output of plans: what the items were ordered by, -inf at a pad
LOWEST = float(np.finfo(np.float32).min)  # of an item without a finite score; a pad has -inf


def formula_of(stage: str, tasks: Sequence[str], product: Product) -> Formula | None:
    """The formula of a stage whose model has these tasks, none of them where it has one output; no
    formula where the first task is the score. Raises FormulaError: it is none, or of other tasks.
    """
    text = product.score
    if stage == PRERANK:
        text = product.prerank_score or (product.score if _knows(tasks, product.score) else "")
    if not text:
        return None
    if not tasks:
        raise FormulaError(
            f"{stage} has one output, so that no formula can be made of its tasks: {text!r:.80} "
            "came; leave it out"
        )
    return Formula.of(text, tasks)


def _knows(tasks: Sequence[str], text: str) -> bool:
    """Whether these are all that a formula reads; of a text that is none, the ranker tells."""
    try:
        return {*Formula.read(text).names} <= {*tasks}
    except FormulaError:
        return False


class Choice:
    """Tasks float32 [B, K, T] of candidate rows [B, K] -> the outputs of a stage: the best `keep`
    rows or their ids [B, keep], the scores and, behind them, the tasks [B, keep, T].

    A row of -1 is a pad. A candidate of which an output or the score is no finite number comes
    behind all others, with a score and tasks of 0, and counts.

    Attributes:
        not_finite: how many of these came.
    """

    def __init__(
        self, described: Description, formula: Formula | None, item_ids: Array | None
    ) -> None:
        self._described, self._formula, self._item_ids = described, formula, item_ids
        self.not_finite = 0

    def __call__(self, rows: Array, tasks: Array) -> tuple[Array, ...]:
        pads, scores = rows < 0, self._scores(tasks)
        known = np.isfinite(scores) & ~pads
        for task in range(tasks.shape[2]):  # many times as fast as over the last axis
            known &= np.isfinite(tasks[:, :, task])
        self.not_finite += int(np.count_nonzero(~known & ~pads))
        ranked = np.where(known, scores, np.where(pads, -np.inf, LOWEST)).astype(np.float32)
        best = np.argsort(-ranked, axis=1)[:, : self._described.keep]

        def of_best(values: Array) -> Array:
            return np.take_along_axis(values, best, axis=1)

        rows, known = of_best(rows), of_best(known)
        found: dict[str, Array] = {}
        for name in self._described.outputs:
            if name == RANKED:
                found[name] = of_best(ranked)
            elif name == SCORES:
                found[name] = np.where(known, of_best(scores), np.float32(0))
            elif name == TASK_SCORES:
                chosen = np.take_along_axis(tasks, best[:, :, None], axis=1)
                found[name] = np.where(known[:, :, None], chosen, np.float32(0))
            elif name == ITEM_IDS:
                assert self._item_ids is not None
                found[name] = np.where(rows < 0, -1, self._item_ids[np.maximum(rows, 0)])
            else:
                found[name] = rows
        return tuple(found.values())

    def _scores(self, tasks: Array) -> Array:
        if self._formula is None:
            return tasks[:, :, 0]
        places = {name: place for place, name in enumerate(self._described.tasks)}
        return self._formula({name: tasks[:, :, places[name]] for name in self._formula.names})
