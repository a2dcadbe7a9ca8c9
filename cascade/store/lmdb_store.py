"""Users in an LMDB file: mapped by every process of a machine, written in transactions.

A read transaction sees whole commits only, waits for no writer and costs microseconds. Writers of
all processes take turns, so a change needs no second attempt. A process may open a file only once,
so its threads share one object.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from cascade.store.backend import LMDB, Change, StoreError, need

MAP_BYTES = 1 << 40  # room to grow: addresses, neither memory nor disk
MOST_READERS = 1024  # threads of all processes
USER, LAYOUT = b"u", b"layout"
SCANNED = 10_000  # ids in one transaction: a long one keeps old pages alive
LONGEST_KEY = 511  # of LMDB
CHECK_PERIOD_S = 1.0


class LmdbStore:
    """See `Backend`. The path is a folder, which the first writer makes."""

    def __init__(self, path: Path, writable: bool) -> None:
        self.url = f"{LMDB}:{path}"
        self._path, self._writable = path, writable
        self._lmdb: Any = need("lmdb")
        self._environment: Any = None
        self._file: tuple[int, int] | None = None
        self._check_at = 0.0

    def get(self, ids: Sequence[bytes]) -> list[bytes | None]:
        try:  # not by `_transaction`: its generator would cost as much as the reading
            with self._opened().begin() as transaction:
                get: Callable[[bytes], bytes | None] = transaction.get
                return [get(USER + user) if len(user) < LONGEST_KEY else None for user in ids]
        except (self._lmdb.Error, OSError) as error:
            raise self._failed(error) from error

    def put(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        with self._transaction(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti([(USER + user, record) for user, record in sorted(records)])

    def update(self, changes: Mapping[bytes, Change]) -> None:
        with self._transaction(write=True) as transaction:
            for user, change in changes.items():
                transaction.put(USER + user, change(transaction.get(USER + user)))

    def ids(self) -> Iterable[bytes]:
        start = USER
        while True:
            with self._transaction() as transaction, transaction.cursor() as cursor:
                if not cursor.set_range(start):
                    return
                keys = cursor.iternext(keys=True, values=False)
                found = [*takewhile(lambda key: key.startswith(USER), islice(keys, SCANNED))]
            yield from (key[len(USER) :] for key in found)
            if len(found) < SCANNED:
                return
            start = found[-1] + b"\0"

    def remove(self, ids: Sequence[bytes]) -> None:
        with self._transaction(write=True) as transaction:
            for user in ids:
                transaction.delete(USER + user)

    def layout(self) -> bytes | None:
        if self._writable and self._identity() is None:
            return None  # opening it would make one
        with self._transaction() as transaction:
            found: bytes | None = transaction.get(LAYOUT)
            return found

    def set_layout(self, layout: bytes) -> None:
        with self._transaction(write=True) as transaction:
            transaction.put(LAYOUT, layout)

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
        self._environment = None

    @contextmanager
    def _transaction(self, write: bool = False) -> Iterator[Any]:
        try:
            with self._opened().begin(write=write) as transaction:
                yield transaction
        except (self._lmdb.Error, OSError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        self.close()
        return StoreError(f"{self.url}: {error}")

    def _opened(self) -> Any:
        """The environment of the file that lies there now: one that was moved or deleted would
        answer for ever. To look costs several times the reading, so it happens once a second."""
        now = time.monotonic()
        if self._environment is not None and now < self._check_at:
            return self._environment
        self._check_at = now + CHECK_PERIOD_S
        if self._environment is not None and self._file == self._identity():
            return self._environment
        self.close()
        if self._writable:
            self._path.mkdir(parents=True, exist_ok=True)
        self._environment = self._lmdb.open(
            os.fsencode(self._path),  # LMDB itself would encode it otherwise than Python does
            map_size=MAP_BYTES,
            readonly=not self._writable,
            readahead=False,  # reads are in no order
            max_readers=MOST_READERS,
        )
        self._environment.reader_check()  # frees the slots of processes that were killed
        self._file = self._identity()
        return self._environment

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path / "data.mdb")
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino
