"""The stage before the others where users come by id: their raw features out of a store.

What it hands on is what clients of `recommend` send, so the stages behind it are the same. It never
fails for want of a user: who is unknown to the store, and everybody while the store is gone, is a
user of whom nothing is known, and marked as one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.encoding import InvalidInput
from cascade.serving import marks
from cascade.serving.runtime import Array, ArtifactError
from cascade.store import Backend, StoreError, UserLayout, Users, UserStore
from cascade.store.breaker import Breaker
from cascade.store.users import check_layout

LAYOUT_FILE = "layout.json"
LOG_PERIOD_S = 60.0
MAX_CONTEXT_BYTES = 65_536
log = logging.getLogger(__name__)


@dataclass
class LookupCounts:
    """Users since the process started.

    Args:
        found: they were in the store.
        cold: it does not know them.
        failed: it did not answer, or with something that cannot be read.
    """

    found: int = 0
    cold: int = 0
    failed: int = 0


class Lookup:
    """user_id [B, 1] and context [B, 1], empty = none -> dense [B, F_dense], categorical
    [B, F_cat], cold_start bool [B, 1].

    Args:
        folder: its version folder, which says which features a user has.
        backend: where the users are.
        breaker: when to ask it.
        clock: seconds on a monotonic clock.

    Raises:
        ArtifactError: the folder is damaged.
        OtherLayout: the store holds users of other features.
    """

    inputs: tuple[str, ...] = ("user_id", "context")
    outputs: tuple[str, ...] = ("dense", "categorical", "cold_start")
    schema_hash = ""  # it serves every schema of its layout

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layout = read_layout(folder)
        self.counts = LookupCounts()
        self._backend = backend
        self._users = UserStore(backend, self.layout)
        self._breaker = breaker or Breaker()
        self._clock, self._quiet_until = clock, float("-inf")
        try:
            check_layout(backend, self.layout)
        except StoreError as error:
            self._breaker.failed()
            self._tell(str(error))

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        ids, contexts = (column[:, 0].tolist() for column in inputs)
        # Before anything is counted: a bad request makes the server run its batch one by one.
        overrides = [(row, self._context(text)) for row, text in enumerate(contexts) if text]
        users = self._fetch(ids)
        marks.mark("lookup")
        for row, features in overrides:
            self.layout.fill(features, users.dense[row], users.categorical[row])
        return users.dense, users.categorical, ~users.known[:, None]

    def _fetch(self, ids: Sequence[bytes]) -> Users:
        if not self._breaker.allows():
            self.counts.failed += len(ids)
            return self._nobody(len(ids))
        try:
            users = self._users.get(ids)
        except StoreError as error:
            self._breaker.failed()
            self.counts.failed += len(ids)
            self._tell(str(error))
            return self._nobody(len(ids))
        self._breaker.succeeded()
        found = int(users.known.sum())
        self.counts.found += found
        self.counts.cold += len(ids) - found - users.unreadable
        self.counts.failed += users.unreadable
        if users.unreadable:
            self._tell(f"{self._backend.url} holds users that are not of {self.layout.hash}")
        return users

    def _nobody(self, users: int) -> Users:
        return Users(*self.layout.nobody(users), np.zeros(users, np.bool_), users)

    def _context(self, text: bytes) -> dict[str, Any]:
        """The features that a request brings itself, checked.

        Raises:
            InvalidInput: not a JSON object, an unknown feature, or a value that cannot be read.
        """
        if len(text) > MAX_CONTEXT_BYTES:
            raise InvalidInput(
                f"context: {len(text)} bytes came; at most {MAX_CONTEXT_BYTES} are read"
            )
        try:
            features = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"context: {text[:40]!r} is not JSON: {error}") from error
        if not isinstance(features, dict):
            raise InvalidInput(
                f"context: a JSON {type(features).__name__} came; expected an object of feature "
                "values by name"
            )
        dense, categorical = self.layout.nobody()
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
                self.counts.failed,
            )


def read_layout(folder: Path) -> UserLayout:
    """The features that a version folder of `lookup` is for.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    path = folder / LAYOUT_FILE
    try:
        return UserLayout.from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: {error}. Export again with --store.") from error
