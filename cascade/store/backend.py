"""The interface of a store of users: bytes by id. `factory` opens one, by its URL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from cascade import errors
from cascade.errors import CascadeError

LMDB = "lmdb"

Change = Callable[[bytes | None], bytes]
"""A record, None where there is none -> the record to keep in its place."""


class StoreError(CascadeError):
    """The store is not there, does not answer in time or refuses; nothing is known of its users."""


class Backend(Protocol):
    """A store of bytes, which opens itself on the first call, and again after a failure. Every call
    raises StoreError. What one call wrote is visible to all readers of all processes when it
    returns, and no reader ever sees part of a record."""

    url: str  # without its password

    def get(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """The record of every id, None where there is none; one round trip."""

    def put(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Write (id, record) pairs, whatever was there."""

    def update(self, changes: Mapping[bytes, Change]) -> None:
        """Replace each record by what its change makes of it. Concurrent updates lose nothing: a
        change may be called again with what another writer wrote."""

    def ids(self) -> Iterable[bytes]:
        """Every id at least once; ids that come or go meanwhile may be missing."""

    def remove(self, ids: Sequence[bytes]) -> None:
        """Remove these records."""

    def layout(self) -> bytes | None:
        """What `set_layout` wrote, None in a store that is empty."""

    def set_layout(self, layout: bytes) -> None:
        """Write which features the records have."""

    def close(self) -> None:
        """Release what is held."""


# Imports a package of the extra `store`; its absence is a `StoreError`.
need = partial(errors.need, purpose="a store of users", extra="store", error=StoreError)
