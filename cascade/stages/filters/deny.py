"""The deny list: a file of item ids that no user may get, watched while requests are answered.

One id per line; a `#` begins a comment, with string ids at the beginning or behind space. Every
process checks the file's time and size while it answers a request, at most twice a second, so a
change is in force within a second and needs no release. Replace the file by a rename, so that no
process reads half of it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade.errors import CascadeError
from cascade.index import Ids, Mask
from cascade.item_keys import ids_in, keys_of
from cascade.stages.filters.items import FilterItems

CHECK_S = 0.5
INT64 = range(-(2**63), 2**63)
LOG = logging.getLogger(__name__)
Stamp = tuple[int, int, int] | None  # None: there is no file


@dataclass(frozen=True)
class Denied:
    """Rows that are denied: a mask [N], and the count of its true values."""

    mask: Mask
    count: int

    @classmethod
    def of(cls, ids: Ids, items: FilterItems) -> Denied:
        """The rows of the ids that this catalogue has."""
        mask = np.zeros(len(items), bool)
        mask[items.rows(ids)] = True
        return cls(mask, int(np.count_nonzero(mask)))


class DenyListError(CascadeError, ValueError):
    """A deny list with a line that is not an item id."""


class DenyList:
    """The items that a file denies at present; a missing file denies nothing."""

    def __init__(
        self,
        path: Path,
        items: FilterItems,
        clock: Callable[[], float] = time.monotonic,
        string_ids: bool = False,
    ) -> None:
        self._path, self._items, self._clock = path, items, clock
        self._string_ids = string_ids
        self._denied = Denied.of(np.empty(0, np.int64), items)
        self._stamp: Stamp = None
        self._complaint = ""
        self._next_check_s = -np.inf

    def now(self) -> Denied:
        """The denied rows. A file that cannot be read is reported in the log, once, and the last
        good content stays in force."""
        now_s = self._clock()
        if now_s >= self._next_check_s:
            self._next_check_s = now_s + CHECK_S
            self._check()
        return self._denied

    def _check(self) -> None:
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            text = self._path.read_bytes() if stamp else b""
            self._stamp = stamp  # also of an unreadable file: it is not read again
            self._denied = Denied.of(self._parse(text), self._items)
            self._complaint = ""
        except (OSError, ValueError) as error:
            if str(error) != self._complaint:
                LOG.error("deny list: %s; the last good one stays in force", error)
            self._complaint = str(error)

    def _parse(self, text: bytes) -> Ids:
        return keys_of(ids_in(text, self._path)) if self._string_ids else parse(text, self._path)


def parse(text: bytes, path: Path) -> Ids:
    """The integer ids of a deny list, in its order. DenyListError names a line that is no id."""
    ids = []
    for number, line in enumerate(text.splitlines(), 1):
        if content := line.partition(b"#")[0].strip():
            try:
                ids.append(int(content))
                if ids[-1] not in INT64:
                    raise ValueError
            except ValueError as error:
                raise DenyListError(
                    f"{path}, line {number}: {content[:40]!r} is not an item id, an integer of 64 "
                    "bits"
                ) from error
    return np.array(ids, np.int64)


def _stamp(path: Path) -> Stamp:
    """Values that change when a file is edited or replaced."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
