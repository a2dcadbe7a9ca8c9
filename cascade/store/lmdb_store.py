"""Users in an LMDB file: mapped by every process of a machine, written in transactions.

A read transaction sees whole commits only, waits for no writer and costs microseconds. Writers of
all processes take turns, so a change needs no second attempt. A process may open a file only once,
so its threads share one object.

What is mapped is read and written by the kernel, which ends a process by SIGBUS where the file has
become shorter, or the disk has no room for a page. So a file that is too short is not read, and the
pages of the lock file get their room before they are written.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from cascade.store.backend import LMDB, Change, StoreError, need
from cascade.telling import tell

MAP_BYTES = 1 << 40  # room to grow: addresses, neither memory nor disk
MOST_READERS = 1024  # threads of all processes
USER, LAYOUT = b"u", b"layout"
SCANNED = 10_000  # ids in one transaction: a long one keeps old pages alive
LONGEST_KEY = 511  # of LMDB
CHECK_PERIOD_S = 1.0
TOLD_AFTER_S = 2.0  # of waiting for another writer
DATA, LOCK = "data.mdb", "lock.mdb"
PAGE = os.sysconf("SC_PAGE_SIZE")
NO_ROOM = 1 << 20
PARTLY_WRITTEN = os.strerror(errno.EIO)  # what LMDB says of pages that a full disk took in part

Look = tuple[tuple[int, int], tuple[int, int]]
"""Which files lie there: device and inode of the data's and of the lock's."""


class LmdbStore:
    """See `Backend`. The path is a folder, which the first writer makes."""

    def __init__(self, path: Path, writable: bool) -> None:
        self.url = f"{LMDB}:{path}"
        self._path, self._writable = path, writable
        self._lmdb: Any = need("lmdb")
        self._environment: Any = None
        self._seen: Look | None = None
        self._size = 0  # of the data at the last look
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
        if self._writable and not self._data_size():
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
            environment = self._opened()
            with self._begun(environment) if write else environment.begin() as transaction:
                yield transaction
            if write:
                self._lengthen(environment)
        except (self._lmdb.Error, OSError) as error:
            raise self._failed(error) from error

    def _begun(self, environment: Any) -> Any:
        """A transaction that writes. LMDB waits for the one of another process as long as that
        takes, and cannot be told to give up: so the wait is told."""
        waits = threading.Timer(
            TOLD_AFTER_S, tell, [f"{self.url}: another process writes to it; waiting\n"]
        )
        waits.daemon = True
        waits.start()
        try:
            return environment.begin(write=True)
        finally:
            waits.cancel()

    def _failed(self, error: Exception) -> StoreError:
        self.close()
        if PARTLY_WRITTEN in str(error) and shutil.disk_usage(self._path).free < NO_ROOM:
            return StoreError(f"{self.url}: {os.strerror(errno.ENOSPC)} ({error})")
        return StoreError(f"{self.url}: {error}")

    def _opened(self) -> Any:
        """The environment of the files that lie there now, if they are whole: files that were moved
        or deleted would answer for ever, and what was cut off ends the process. To look costs
        several times the reading, so it happens once a second."""
        now = time.monotonic()
        if self._environment is not None and now < self._check_at:
            return self._environment
        self._check_at = now + CHECK_PERIOD_S
        if self._environment is not None and self._seen == self._look():
            size = self._data_size()  # LMDB never makes it shorter
            if size >= self._size:
                self._size = size
                return self._environment
        self.close()
        if self._writable:
            self._path.mkdir(parents=True, exist_ok=True)
            self._make_room_for_locks()
        size = self._data_size()
        try:
            self._environment = self._lmdb.open(
                os.fsencode(self._path),  # LMDB itself would encode it otherwise than Python does
                map_size=MAP_BYTES,
                readonly=not self._writable,
                readahead=False,  # reads are in no order
                max_readers=MOST_READERS,
            )
        except self._lmdb.Error:
            if not size and self._writable and self._data_size() < 2 * PAGE:
                with suppress(OSError):  # half of its first two pages is no store
                    (self._path / DATA).unlink()
            raise
        self._check_whole()
        self._environment.reader_check()  # frees the slots of processes that were killed
        self._seen = self._look()
        return self._environment

    def _make_room_for_locks(self) -> None:
        """Raises OSError: the disk has no room for the pages of the lock file."""
        with (self._path / LOCK).open("ab") as file:
            size = os.fstat(file.fileno()).st_size
            os.posix_fallocate(file.fileno(), 0, max(1, size))

    def _check_whole(self) -> None:
        """Raises StoreError: the file ends before its last page."""
        self._size, whole = self._data_size(), self._whole_size(self._environment)
        if self._size < whole:
            self.close()
            raise StoreError(
                f"{self.url}: {DATA} has {self._size} bytes of {whole}, because it was cut off: "
                "put a copy in its place, or remove the folder and write all users again by "
                "python -m export users"
            )

    def _lengthen(self, environment: Any) -> None:
        """Let the file hold its last page, which LMDB does not write where it became free in the
        transaction that took it. Raises OSError: the disk has no room for it."""
        whole, size = self._whole_size(environment), self._data_size()
        if 0 < size < whole:
            with (self._path / DATA).open("ab") as file:
                os.posix_fallocate(file.fileno(), size, whole - size)

    @staticmethod
    def _whole_size(environment: Any) -> int:
        pages = int(environment.info()["last_pgno"]) + 1
        return pages * int(environment.stat()["psize"])

    def _data_size(self) -> int:
        """0 where there is no file."""
        try:
            return os.stat(self._path / DATA).st_size
        except FileNotFoundError:
            return 0

    def _look(self) -> Look | None:
        found = []
        for name in (DATA, LOCK):
            try:
                file = os.stat(self._path / name)
            except FileNotFoundError:
                return None
            found.append((file.st_dev, file.st_ino))
        return found[0], found[1]
