"""The raw features of users by id: written, read and appended to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade.encoding import InvalidInput
from cascade.layout import Categorical, Dense, RequestLayout
from cascade.store.backend import Backend, Change, StoreError
from cascade.store.factory import open_backend
from cascade.store.records import OtherLayout, Records, layout_record, read_layout

LONGEST_ID = 480  # bytes; the keys of LMDB are hardly longer
REMOVED_AT_ONCE = 10_000


class StoredUsers(NamedTuple):
    """What a store knows of B users: their features as clients send them, all missing where a user
    is not known; how many of those have a record of another layout, or a damaged one."""

    dense: Dense
    categorical: Categorical
    known: npt.NDArray[np.bool_]
    unreadable: int


@dataclass(frozen=True)
class Event:
    """New members of the bag `feature` of a user, the latest last."""

    user_id: str | int | bytes
    feature: str
    values: Sequence[Any]


class UserStore:
    """Users of one layout in a backend. Every call raises StoreError when the store cannot be
    reached, and InvalidInput for a value that cannot be stored."""

    def __init__(self, backend: Backend, layout: RequestLayout) -> None:
        self.layout = layout
        self._backend = backend
        self._records = Records(layout)

    @property
    def url(self) -> str:
        """Which store it is, without its password."""
        return self._backend.url

    @classmethod
    def open(cls, url: str) -> UserStore:
        """The store of that URL, to append to it; its layout is the recorded one.

        Raises StoreError: no such kind of store, it cannot be reached, or nothing was written yet.
        """
        with _opened(url) as backend:
            text = backend.layout()
            if text is None:
                raise StoreError(f"{backend.url} is empty: write users with python -m export users")
            return cls(backend, read_layout(text))

    @classmethod
    def create(cls, url: str, layout: RequestLayout, replace: bool = False) -> UserStore:
        """The store of that URL, to write users of that layout into it.

        Raises OtherLayout: it holds users of another one, and is not to `replace` them; StoreError:
        no such kind of store, or it cannot be reached.
        """
        with _opened(url) as backend:
            if not replace:
                check_layout(backend, layout)
            backend.set_layout(layout_record(layout))
            return cls(backend, layout)

    def get(self, ids: Sequence[bytes]) -> StoredUsers:
        """What is stored of these users, in their order."""
        if not ids:
            return StoredUsers(*self.layout.empty(0), np.zeros(0, np.bool_), 0)
        found = self._backend.get(ids)
        readable = [record is not None and self._records.readable(record) for record in found]
        records = [
            record if record is not None and good else self._records.empty
            for record, good in zip(found, readable, strict=True)
        ]
        unreadable = len(found) - found.count(None) - sum(readable)
        dense, categorical = self._records.decode(records)
        return StoredUsers(dense, categorical, np.array(readable, np.bool_), unreadable)

    def put(self, ids: Sequence[Any], dense: Dense, categorical: Categorical) -> None:
        """Write users, whatever was stored of them. LMDB shows a reader all users of the call or
        none of them; Redis shows each user as soon as it is written."""
        records = self._records.encode(dense, categorical)
        self._backend.put([*zip(map(key, ids), records, strict=True)])

    def append(self, user_id: str | int | bytes, feature: str, values: Sequence[Any]) -> None:
        """Add new members, the latest last, to a user's bag."""
        self.append_many([Event(user_id, feature, values)])

    def append_many(self, events: Iterable[Event]) -> None:
        """The same for many events: all of them, or, after InvalidInput, none. An unknown user is
        stored with these members alone."""
        by_user: dict[bytes, list[Event]] = {}
        for event in events:
            self.check(event)
            by_user.setdefault(key(event.user_id), []).append(event)
        self._backend.update({user: self._change(some) for user, some in by_user.items()})

    def check(self, event: Event) -> None:
        """Raises InvalidInput for an event that no user's record can take."""
        key(event.user_id)
        self._records.append(None, event.feature, event.values)

    def _change(self, events: Sequence[Event]) -> Change:
        def change(record: bytes | None) -> bytes:
            for event in events:
                record = self._records.append(record, event.feature, event.values)
            assert record is not None  # every user has an event
            return record

        return change

    def keep_only(self, ids: Collection[bytes]) -> int:
        """Remove all other users; returns how many."""
        removed = 0
        gone = (user for user in self._backend.ids() if user not in ids)
        while batch := [*islice(gone, REMOVED_AT_ONCE)]:
            self._backend.remove(batch)
            removed += len(batch)
        return removed

    def close(self) -> None:
        self._backend.close()

    def __enter__(self) -> UserStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _opened(url: str) -> Iterator[Backend]:
    """The backend of that URL, to write to it; it is closed where the block fails."""
    backend = open_backend(url, writable=True)
    try:
        yield backend
    except BaseException:
        backend.close()
        raise


def check_layout(backend: Backend, layout: RequestLayout) -> bool:
    """Whether users of that layout were ever written to the store. Raises OtherLayout: it holds
    those of another one; LayoutError: what it says of its layout cannot be read."""
    text = backend.layout()
    if text is None or (stored := read_layout(text)).layout_hash == layout.layout_hash:
        return text is not None
    differ = sorted({*stored.names} ^ {*layout.names})
    what = f"only one of the two has {', '.join(differ)}" if differ else "same names"
    raise OtherLayout(
        f"{backend.url} was written for layout {stored.layout_hash}, but the layout here is "
        f"{layout.layout_hash} ({what}). Write the users anew: python -m export users --replace"
    )


def key(user_id: object) -> bytes:
    """A user's id as the store knows it: the bytes that clients send.

    Raises InvalidInput: neither text nor an integer, or too long.
    """
    text: object = user_id
    if isinstance(text, Integral) and not isinstance(text, bool | np.bool_):
        text = str(int(text))
    if isinstance(text, str):
        with suppress(UnicodeEncodeError):  # half a character
            text = text.encode()
    if not isinstance(text, bytes) or not 0 < len(text) <= LONGEST_ID:
        raise InvalidInput(
            f"user id {user_id!r:.60}: expected a text of 1 to {LONGEST_ID} bytes in "
            "UTF-8, or an integer"
        )
    return text
