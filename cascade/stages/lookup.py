"""Users by id: reads their raw features from a store, in the process of the first stage.

The output is what clients of `recommend` send, so the stages after it are the same. A process of
its own would cost every request a hop, several times as much as the lookup itself. A user whom the
store does not know, and every user while the store is unreachable, gets no features and is marked
as a cold start; the request does not fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cascade.artifact import Array
from cascade.layout import LayoutError, RequestLayout
from cascade.runtime import spans
from cascade.spec import COLD_START, CONTEXT, FEATURES, LOOKUP, USER_ID
from cascade.stages.context import Contexts
from cascade.store import (
    Backend,
    OtherLayout,
    StoredUsers,
    StoreError,
    UserStore,
    check_layout,
)

LOG_PERIOD_S = 60.0
LOOK_S = 1.0  # between two looks at what a store holds that knows none of a batch's users
log = logging.getLogger(__name__)


class CircuitBreaker:
    """Decides whether to ask the store: not for a while after a few failures in a row.

    After M. Nygard, "Release It!" (2007): closed while calls succeed; open for `pause_s` after so
    many `failures` in a row; then one call tries whether the store is back. For one thread, as the
    stages are.
    """

    def __init__(
        self,
        failures: int = 3,
        pause_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._pause_s, self._clock = failures, pause_s, clock
        self._failed = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether calls are being spared."""
        return self._failed >= self._most

    def allows(self) -> bool:
        """Whether to try now. After a try the caller reports `succeeded` or `failed`."""
        return not self.open or self._clock() >= self._until

    def succeeded(self) -> None:
        self._failed = 0

    def failed(self) -> None:
        self._failed += 1
        self._until = self._clock() + self._pause_s


class Lookup:
    """dense [B, F_dense], categorical [B, F_cat], user_id [B, 1], context [B, 1] -> dense,
    categorical, cold_start bool [B, 1]: true if nothing came from the store.

    With an empty id the features stay those of the request; an empty context overrides none.

    OtherLayout: the store holds users of other features.
    """

    inputs: tuple[str, ...] = (*FEATURES, USER_ID, CONTEXT)
    optional: tuple[str, ...] = ()
    outputs: tuple[str, ...] = (*FEATURES, COLD_START)

    def __init__(
        self,
        layout: RequestLayout,
        backend: Backend,
        breaker: CircuitBreaker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layout, self._contexts = layout, Contexts(layout)
        self.needed = layout.needed
        self.schema_hash = layout.layout_hash  # raw features depend on the layout alone
        self._counts = {"users_found": 0, "cold_starts": 0, "store_failures": 0}
        self._backend = backend
        self._users = UserStore(backend, layout)
        self._breaker = breaker or CircuitBreaker()
        self._clock, self._quiet_until = clock, float("-inf")
        self._ours, self._next_look = True, float("-inf")
        try:
            self._ours = check_layout(backend, layout)
        except StoreError as error:
            self._breaker.failed()
            self._tell(str(error))

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        dense, categorical, user_id, context = inputs
        # Before anything is counted: after a bad request the server runs the batch one by one.
        overrides = self._contexts.read(context)
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
        self._contexts.lay(overrides, dense, categorical)
        spans.end(LOOKUP)
        return dense, categorical, ~known[:, None]

    def counts(self) -> dict[str, int]:
        """Users by id since the process started: in the store; unknown to it; without an answer of
        the store, or with unreadable data."""
        return self._counts

    def levels(self) -> dict[str, float]:
        """`store_up` is 0 while the breaker is open, `store_ours` while the store is empty or holds
        users of other features, as one that was emptied or replaced."""
        return {"store_up": float(not self._breaker.open), "store_ours": float(self._ours)}

    def _fetch(self, ids: Sequence[bytes]) -> StoredUsers:
        if not self._breaker.allows():
            self._counts["store_failures"] += len(ids)
            return self._nobody(len(ids))
        try:
            users = self._users.get(ids)
        except StoreError as error:
            self._breaker.failed()
            self._counts["store_failures"] += len(ids)
            self._tell(str(error))
            return self._nobody(len(ids))
        self._breaker.succeeded()
        found = int(users.known.sum())
        self._counts["users_found"] += found
        self._counts["cold_starts"] += len(ids) - found - users.unreadable
        self._counts["store_failures"] += users.unreadable
        if users.unreadable:
            self._tell(f"{self._backend.url} holds users that are not of {self.layout.layout_hash}")
        if found:
            self._ours = True
        elif self._clock() >= self._next_look:
            self._look()
        return users

    def _look(self) -> None:
        """Whether it is still a store of our users, which knows none of some."""
        self._next_look = self._clock() + LOOK_S
        try:
            self._ours = check_layout(self._backend, self.layout)
            problem = "" if self._ours else f"{self._backend.url} is empty"
        except (OtherLayout, LayoutError) as error:
            self._ours, problem = False, str(error)
        except StoreError:
            return  # the next request meets it
        if problem:
            self._tell(problem)

    def _nobody(self, users: int) -> StoredUsers:
        return StoredUsers(*self.layout.empty(users), np.zeros(users, np.bool_), 0)

    def _tell(self, problem: str) -> None:
        """Log a problem, at most once in `LOG_PERIOD_S`: there may be thousands a second."""
        now = self._clock()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_PERIOD_S
            log.warning(
                "lookup: %s; %d users so far were answered without their features",
                problem,
                self._counts["store_failures"],
            )
