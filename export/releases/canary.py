"""Canary requests: a few users with the answers of the exported stages. A publisher asks the server
for them before and after the switch, and the release stays live only if the answers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cascade import pbtxt
from cascade.artifact import Array
from cascade.errors import CascadeError
from cascade.spec import ENSEMBLE, RECOMMEND_FILTERED
from cascade.stages.pipeline import Pipeline
from export.releases.control import Control
from export.releases.repository import Repository

USERS = 8
BYTES = "surrogateescape"  # a category need not be text
SLACK = 1e-4  # relative above 1: another processor may sum in another order


class CanaryError(CascadeError):
    """A server answers the canary requests wrongly. The release that was live stays live."""


@dataclass(frozen=True, eq=False)
class Canary:
    """Requests with known answers: raw users, and what the exported stages answer."""

    dense: Array  # [B, F_dense]
    categorical: Array  # [B, F_cat]
    item_ids: Array  # [B, R], int64, or object of UTF-8
    scores: Array  # [B, R]

    @classmethod
    def ask(cls, pipeline: Pipeline, users: tuple[Array, Array], drawn: int = 0) -> Canary:
        """Ask a pipeline about the first few of these raw users. The last `drawn` places of an
        answer are drawn at random, and so not recorded."""
        dense, categorical = (values[:USERS] for values in users)
        item_ids, scores = pipeline(dense, categorical)
        known = slice(0, item_ids.shape[1] - drawn)
        return cls(dense, categorical, item_ids[:, known], scores[:, known])

    @property
    def users(self) -> dict[str, Array]:
        """The inputs of a request, by name."""
        return {"dense": self.dense, "categorical": self.categorical}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a missing number is null."""
        return {
            "dense": [[None if np.isnan(x) else x for x in row] for row in self.dense.tolist()],
            "categorical": [[x.decode("utf-8", BYTES) for x in row] for row in self.categorical],
            "item_ids": [[x.decode() for x in row] for row in self.item_ids]
            if self.item_ids.dtype == np.object_
            else self.item_ids.tolist(),
            "scores": _finite(self.scores).tolist(),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Canary:
        texts = [[text.encode("utf-8", BYTES) for text in row] for row in value["categorical"]]
        items = np.array(value["item_ids"], object)
        strings = any(isinstance(item, str) for item in items.flat)
        return cls(
            np.array(value["dense"], np.float32),  # NumPy reads None as NaN
            np.array(texts, object),
            np.vectorize(str.encode, otypes=[object])(items) if strings else items.astype(np.int64),
            np.array(value["scores"], np.float32),
        )

    def differences(self, item_ids: Array, scores: Array) -> Iterator[str]:
        """What is wrong with an answer, [B, R] each; equal items may change places."""
        users, known = self.item_ids.shape
        if len(item_ids) != users or item_ids.shape[1] < known:
            yield f"the answer has shape {item_ids.shape}; expected {self.item_ids.shape}"
            return
        answer = zip(item_ids[:, :known], _finite(scores[:, :known]), strict=True)
        for row, (ids, got) in enumerate(answer):
            expected = _finite(self.scores[row])
            slack = SLACK * np.maximum(1, np.abs(expected))
            worst = float((np.abs(got - expected) / slack).max(initial=0)) * SLACK
            if worst > SLACK:
                yield f"user {row}: a score differs by {worst:.2g}"
                continue
            # Several items may share the last place; all better ones must be there.
            last = expected.min(initial=np.inf)
            above = self.item_ids[row][expected > last + 2 * slack]
            if missing := sorted(set(above.tolist()) - set(ids.tolist())):
                yield f"user {row}: items {missing} are missing"


def _finite(scores: Array) -> Array:
    """Scores with -1 for pads, which have none."""
    return np.where(np.isfinite(scores), scores, -1)


def ask_before_switch(
    repository: Repository, control: Control, number: int, canary: Canary
) -> None:
    """Ask the models of a loaded release that is not live, in turn, as the ensemble would. Raises
    ControlError: there is no answer; CanaryError: the answer is wrong."""
    known, configs = canary.users, pbtxt.configs_of(repository.root, number)
    for member in repository.members():
        inputs = {t.name: known[t.name] for t in configs[member].input if t.name in known}
        known |= control.ask(member, number, inputs)
    _compare(canary, known, f"release {number}")


def ask_after_switch(control: Control, number: int, canary: Canary) -> None:
    """Ask the models that take the user's features, as clients do. Raises ControlError,
    CanaryError."""
    for model in (ENSEMBLE, RECOMMEND_FILTERED):
        answer = control.ask(model, None, canary.users)
        if (found := {*answer["release"][:, 0].tolist()}) != {number}:
            raise CanaryError(
                f"release {number} was switched to, and {sorted(found)} answers as {model}"
            )
        _compare(canary, answer, f"release {number}, live as {model},")


def _compare(canary: Canary, answer: dict[str, Array], release: str) -> None:
    wrong = [*canary.differences(answer["item_ids"], answer["scores"])]
    if wrong:
        raise CanaryError(f"{release} answers the canary requests wrongly: {'; '.join(wrong)}")
