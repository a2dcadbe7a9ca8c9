"""What keeps the records of users: bytes by id, behind one small interface."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

from cascade.errors import CascadeError

READ_TIMEOUT_MS = 10.0
WRITE_TIMEOUT_MS = 30_000.0
EMBEDDED = "lmdb"
REDIS = ("redis", "rediss", "unix")

Change = Callable[[bytes | None], bytes]
"""A record, None where there is none -> the record to keep in its place."""


class StoreError(CascadeError):
    """The store is not there, does not answer in time or refuses; nothing is known of its users."""


class Backend(Protocol):
    """A store of bytes. Opens itself when first asked, and again after a failure.

    Every call raises StoreError. What one call writes is there for all readers of all processes
    when it returns, and no reader ever sees part of a record.
    """

    url: str  # without its password

    def get(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """The record of every id, None where there is none; one round trip."""

    def put(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Write (id, record) pairs, whatever was there."""

    def update(self, changes: Mapping[bytes, Change]) -> None:
        """Replace each record by what its change makes of it. Of writers at the same time none is
        lost: a change may be called again with what another one wrote."""

    def ids(self) -> Iterable[bytes]:
        """Every id at least once; those that come or go meanwhile or not."""

    def remove(self, ids: Sequence[bytes]) -> None:
        """Forget these."""

    def layout(self) -> bytes | None:
        """What `set_layout` wrote, None in a store that is empty."""

    def set_layout(self, layout: bytes) -> None:
        """Write which features the records have."""

    def close(self) -> None:
        """Release what is held."""


def open_backend(url: str, *, writable: bool = False) -> Backend:
    """The store of that URL; `$NAME` in it is taken from the environment, which is where a password
    belongs. Nothing is reached yet.

    Args:
        url: `lmdb:PATH`, or `redis://HOST:PORT/DB` and its kin with an optional `?timeout_ms=`,
            the longest time that a reader waits for a batch.
        writable: writers wait longer; of LMDB they alone may write.

    Raises:
        ValueError: no such kind of store.
        StoreError: the package that it needs is not installed.
    """
    url = os.path.expandvars(url)
    _check_kind(url)
    kind, _, place = url.partition(":")
    if kind == EMBEDDED:
        from cascade.store.embedded import EmbeddedStore

        return EmbeddedStore(Path(place), writable)
    from cascade.store.redis_store import RedisStore

    plain, timeout_ms = _timeout(url)
    return RedisStore(plain, (WRITE_TIMEOUT_MS if writable else timeout_ms) / 1000)


def absolute(url: str) -> str:
    """The URL as it stands in a repository: checked, and the path of an embedded store absolute,
    because the server runs elsewhere. Empty stays empty.

    Raises:
        ValueError: no such kind of store.
    """
    if not url or url.startswith("$"):
        return url
    kind, _, place = url.partition(":")
    _check_kind(url)
    if kind == EMBEDDED and not place.startswith("$"):
        return f"{EMBEDDED}:{Path(place).absolute()}"
    return url


def _check_kind(url: str) -> None:
    kind, _, place = url.partition(":")
    if kind not in (EMBEDDED, *REDIS) or not place:
        raise ValueError(
            f"store {without_password(url)!r}: expected {EMBEDDED}:PATH or one of "
            f"{', '.join(REDIS)}://..."
        )


def _timeout(url: str) -> tuple[str, float]:
    """The URL without `timeout_ms`, and its value."""
    base, _, text = url.partition("?")
    query = dict(parse_qsl(text))
    try:
        timeout_ms = float(query.pop("timeout_ms", READ_TIMEOUT_MS))
    except ValueError:
        timeout_ms = 0.0
    if not 0 < timeout_ms < float("inf"):
        raise ValueError(f"store {without_password(url)!r}: timeout_ms is a number above 0")
    return f"{base}?{urlencode(query)}" if query else base, timeout_ms


def without_password(url: str) -> str:
    """The URL as it may stand in a log."""
    before, at, after = url.partition("?")[0].rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else after


def need(package: str) -> Any:
    """Import what the extra `store` brings.

    Raises:
        StoreError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise StoreError(
            f"a store of users needs {error.name}, which is not installed here; "
            "run: pip install 'cascade[store]'"
        ) from error


def batches(ids: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Up to `size` at a time."""
    batch: list[bytes] = []
    for one in ids:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
