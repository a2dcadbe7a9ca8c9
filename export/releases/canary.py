"""A few requests whose answers are known: what a release is asked before it gets any traffic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cascade.artifact import Array
from cascade.stages.pipeline import Pipeline

USERS = 8
BYTES = "surrogateescape"  # a category need not be text
SLACK = 1e-4  # of a probability: what another processor may add up otherwise


@dataclass(frozen=True, eq=False)
class Canary:
    """Requests whose answers are known.

    Args:
        dense, categorical: raw users, [B, F_dense] and [B, F_cat].
        item_ids, scores: what the exported stages answered, [B, R] each.
    """

    dense: Array
    categorical: Array
    item_ids: Array
    scores: Array

    @classmethod
    def ask(cls, pipeline: Pipeline, users: tuple[Array, Array], drawn: int = 0) -> Canary:
        """Take the first few of these raw users, and what this pipeline answers them.

        Args:
            drawn: places at the end of an answer that are left to chance.
        """
        dense, categorical = (values[:USERS] for values in users)
        item_ids, scores = pipeline(dense, categorical)
        known = slice(0, item_ids.shape[1] - drawn)
        return cls(dense, categorical, item_ids[:, known], scores[:, known])

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: a missing number is null."""
        return {
            "dense": [[None if np.isnan(x) else float(x) for x in row] for row in self.dense],
            "categorical": [
                [value.decode("utf-8", BYTES) for value in row] for row in self.categorical
            ],
            "item_ids": self.item_ids.tolist(),
            "scores": [[float(x) for x in row] for row in _finite(self.scores)],
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Canary:
        dense = [[np.nan if x is None else x for x in row] for row in value["dense"]]
        categorical = [
            [text.encode("utf-8", BYTES) for text in row] for row in value["categorical"]
        ]
        return cls(
            np.array(dense, np.float32),
            np.array(categorical, object),
            np.array(value["item_ids"], np.int64),
            np.array(value["scores"], np.float32),
        )

    def differences(self, item_ids: Array, scores: Array) -> Iterator[str]:
        """What is wrong with a server's answer, [B, R] each; equal items may change places."""
        users, known = self.item_ids.shape
        if len(item_ids) != users or item_ids.shape[1] < known:
            yield f"the answer has shape {item_ids.shape}; expected {self.item_ids.shape}"
            return
        answer = zip(item_ids[:, :known], _finite(scores[:, :known]), strict=True)
        for row, (ids, got) in enumerate(answer):
            expected = _finite(self.scores[row])
            worst = float(np.abs(got - expected).max(initial=0))
            if worst > SLACK:
                yield f"user {row}: a score differs by {worst:.2g}"
                continue
            # The last place may be shared by more items than one; all others must be there.
            above = self.item_ids[row][expected > expected.min(initial=1) + SLACK]
            if missing := sorted(set(above.tolist()) - set(ids.tolist())):
                yield f"user {row}: items {missing} are missing"


def _finite(scores: Array) -> Array:
    """A pad has no score."""
    return np.where(np.isfinite(scores), scores, -1)
