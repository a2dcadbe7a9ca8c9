"""Users by id: their raw features out of a store, in the process of the stage that needs them.

What it hands on is what clients of `recommend` send, so the stages behind it are the same. A
process of its own would cost every request a hop, several times as much as the lookup itself. It
never fails for want of a user: who is unknown to the store, and everybody while the store is gone,
is a user of whom nothing is known, and marked as one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade.artifact import Array
from cascade.encoding import InvalidInput
from cascade.layout import RequestLayout
from cascade.runtime import spans
from cascade.spec import COLD_START, CONTEXT, FEATURES, LOOKUP, USER_ID
from cascade.store import (
    Backend,
    CircuitBreaker,
    StoredUsers,
    StoreError,
    UserStore,
    check_layout,
)

if TYPE_CHECKING:
    from cascade.stages.stage import Stage

LOG_PERIOD_S = 60.0
MAX_CONTEXT_BYTES = 65_536
log = logging.getLogger(__name__)


@dataclass
class LookupCounts:
    """Users who came by id since the process started.

    Args:
        found: they were in the store.
        cold: it does not know them.
        failed: it did not answer, or with something that cannot be read.
    """

    found: int = 0
    cold: int = 0
    failed: int = 0


class Lookup:
    """dense [B, F_dense], categorical [B, F_cat], user_id [B, 1], context [B, 1] -> dense,
    categorical, cold_start bool [B, 1]: nothing came from the store.

    An empty id leaves the features as they came, an empty context overrides none.

    Args:
        layout: the features of a user.
        backend: where the users are.
        breaker: when to ask it.
        clock: seconds on a monotonic clock.

    Raises:
        OtherLayout: the store holds users of other features.
    """

    def __init__(
        self,
        layout: RequestLayout,
        backend: Backend,
        breaker: CircuitBreaker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layout = layout
        self.counted = LookupCounts()
        self._backend = backend
        self._users = UserStore(backend, layout)
        self._breaker = breaker or CircuitBreaker()
        self._clock, self._quiet_until = clock, float("-inf")
        try:
            check_layout(backend, layout)
        except StoreError as error:
            self._breaker.failed()
            self._tell(str(error))

    def __call__(
        self, dense: Array, categorical: Array, user_id: Array, context: Array
    ) -> tuple[Array, Array, Array]:
        # Before anything is counted: a bad request makes the server run its batch one by one.
        texts = enumerate(context[:, 0].tolist())
        overrides = [(row, self._features(text)) for row, text in texts if text]
        ids = user_id[:, 0].tolist()
        rows = [row for row, user in enumerate(ids) if user]
        known = np.zeros(len(ids), np.bool_)
        if len(rows) < len(ids):
            dense, categorical = dense.copy(), categorical.copy()
        if rows:
            users = self._fetch([ids[row] for row in rows])
            known[rows] = users.known
            if len(rows) == len(ids):
                dense, categorical = users.dense, users.categorical
            else:
                dense[rows], categorical[rows] = users.dense, users.categorical
        for row, features in overrides:
            self.layout.fill(features, dense[row], categorical[row])
        spans.mark(LOOKUP)
        return dense, categorical, ~known[:, None]

    def counts(self) -> dict[str, int]:
        """Users since the process started, for its metrics."""
        counted = self.counted
        return {
            "users_found": counted.found,
            "cold_starts": counted.cold,
            "store_failures": counted.failed,
        }

    def levels(self) -> dict[str, float]:
        """Whether the store is asked now, or spared."""
        return {"store_up": float(not self._breaker.open)}

    def _fetch(self, ids: Sequence[bytes]) -> StoredUsers:
        if not self._breaker.allows():
            self.counted.failed += len(ids)
            return self._nobody(len(ids))
        try:
            users = self._users.get(ids)
        except StoreError as error:
            self._breaker.failed()
            self.counted.failed += len(ids)
            self._tell(str(error))
            return self._nobody(len(ids))
        self._breaker.succeeded()
        found = int(users.known.sum())
        self.counted.found += found
        self.counted.cold += len(ids) - found - users.unreadable
        self.counted.failed += users.unreadable
        if users.unreadable:
            self._tell(f"{self._backend.url} holds users that are not of {self.layout.layout_hash}")
        return users

    def _nobody(self, users: int) -> StoredUsers:
        return StoredUsers(*self.layout.empty(users), np.zeros(users, np.bool_), 0)

    def _features(self, context: bytes) -> dict[str, Any]:
        """The features that a request brings itself, checked.

        Raises:
            InvalidInput: not a JSON object, an unknown feature, or a value that cannot be read.
        """
        if len(context) > MAX_CONTEXT_BYTES:
            raise InvalidInput(
                f"context: {len(context)} bytes came; at most {MAX_CONTEXT_BYTES} are read"
            )
        try:
            features = json.loads(context)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"context: {context[:40]!r} is not JSON: {error}") from error
        if not isinstance(features, dict):
            raise InvalidInput(
                f"context: a JSON {type(features).__name__} came; expected an object of feature "
                "values by name"
            )
        dense, categorical = self.layout.empty()
        try:
            self.layout.fill(features, dense[0], categorical[0])
        except InvalidInput as error:
            raise InvalidInput(f"context: {error}") from error.__cause__
        return features

    def _tell(self, problem: str) -> None:
        """Once in a while: the requests go on, and there may be thousands a second."""
        now = self._clock()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_PERIOD_S
            log.warning(
                "lookup: %s; %d users so far were answered as if nothing were known of them",
                problem,
                self.counted.failed,
            )


class ById:
    """A stage, or several, whose users may come by id as well (`cascade.spec.by_id`)."""

    def __init__(self, lookup: Lookup, stage: Stage) -> None:
        self.inputs = (*stage.inputs, USER_ID, CONTEXT)
        self.optional = stage.optional
        self.outputs = (*stage.outputs, COLD_START)
        self.schema_hash = stage.schema_hash
        self.lookup = lookup
        self.stages = (lookup, *getattr(stage, "stages", (stage,)))  # a chain has several
        self._stage = stage

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        values = dict(zip((*self.inputs, *self.optional), inputs, strict=False))
        asked = (values[name] for name in (*FEATURES, USER_ID, CONTEXT))
        *found, cold = self.lookup(*asked)
        values.update(zip(FEATURES, found, strict=True))
        wanted = (values.get(name) for name in self.optional)
        return (*self._stage(*(values[name] for name in self._stage.inputs), *wanted), cold)
