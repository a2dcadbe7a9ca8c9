"""A stored user as bytes: raw values in the form in which clients send them.

8 bytes      the layout's hash, so that no record is read as what it is not
4 F_dense    float32, little-endian, NaN = missing
the rest     F_cat texts with 0xFF between them, a byte that no UTF-8 holds; empty = missing
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cascade import values
from cascade.encoding import MAX_VALUE_BYTES, InvalidInput
from cascade.store.layout import Categorical, Dense, OtherLayout, UserLayout

BETWEEN = b"\xff"
MEMBER = values.SEPARATOR.encode()


class Records:
    """Turns users of one layout into bytes and back."""

    def __init__(self, layout: UserLayout) -> None:
        self.layout = layout
        self._head = bytes.fromhex(layout.hash)
        self._texts = len(self._head) + 4 * layout.width
        self.nobody = self.encode(*layout.nobody())[0]

    def encode(self, dense: Dense, categorical: Categorical) -> list[bytes]:
        """dense [B, F_dense], categorical [B, F_cat] -> one record per user.

        Raises:
            InvalidInput: a value that no model could read; it names the feature.
        """
        self._check(dense, categorical)
        numbers = np.ascontiguousarray(dense, "<f4").tobytes()
        size = 4 * self.layout.width
        return [
            self._head + numbers[row * size : (row + 1) * size] + BETWEEN.join(texts)
            for row, texts in enumerate(categorical.tolist())
        ]

    def decode(self, records: Sequence[bytes]) -> tuple[Dense, Categorical]:
        """Records that `readable` accepts -> dense [B, F_dense], categorical [B, F_cat]."""
        start, stop = len(self._head), self._texts
        numbers = b"".join([record[start:stop] for record in records])
        dense = np.frombuffer(numbers, "<f4").reshape(len(records), self.layout.width)
        categorical = np.empty((len(records), self.layout.columns), np.object_)
        categorical[:] = [record[stop:].split(BETWEEN) for record in records]
        return dense.astype(np.float32), categorical

    def readable(self, record: bytes) -> bool:
        """Whether it is a whole record of this layout."""
        return (
            record.startswith(self._head)
            and len(record) >= self._texts
            and record.count(BETWEEN, self._texts) == self.layout.columns - 1
        )

    def prepend(self, record: bytes | None, feature: str, members: Sequence[Any]) -> bytes:
        """The record with new members in front of a bag, or at the end of a sequence.

        The model reads the beginning of a bag, whose training data begins with the latest member,
        and the end of a sequence (`Encoder.ids`). Members that would not be read are dropped.

        Args:
            record: None for a user who is not stored yet: nothing else is known of him.
            members: in the order in which they happened, the latest last.

        Raises:
            InvalidInput: no such bag, or members that cannot be in one.
            OtherLayout: the record is of another layout.
        """
        column = self._bag(feature)
        length = self.layout.bags[feature]
        if not isinstance(members, list | tuple):
            raise InvalidInput(f"feature {feature}: {members!r} came; expected a list of members")
        newest_last = feature in self.layout.sequences
        added = values.bag(feature, members[::-1], length)
        record = self.nobody if record is None else record
        if not self.readable(record):
            raise OtherLayout(f"a stored user is not of layout {self.layout.hash}")
        texts = record[self._texts :].split(BETWEEN)
        old = [m for m in texts[column].split(MEMBER) if m][:: -1 if newest_last else 1]
        kept = [*[m for m in added.split(MEMBER) if m], *old][:length]  # the latest first
        while sum(map(len, kept)) + len(kept) - 1 > MAX_VALUE_BYTES:
            kept.pop()
        if added and not kept:
            raise InvalidInput(
                f"feature {feature}: a member of more than {MAX_VALUE_BYTES} bytes came; so many "
                "are read of a whole bag"
            )
        texts[column] = MEMBER.join(reversed(kept) if newest_last else kept)
        return record[: self._texts] + BETWEEN.join(texts)

    def _bag(self, feature: str) -> int:
        """The column of a bag."""
        if feature not in self.layout.names:
            raise InvalidInput(values.unknown_name("feature", feature, self.layout.bags))
        if feature not in self.layout.bags:
            raise InvalidInput(
                f"feature {feature} is not a bag; only to a bag can something be appended"
            )
        return self.layout.categorical.index(feature)

    def _check(self, dense: Dense, categorical: Categorical) -> None:
        wanted = (self.layout.width, self.layout.columns)
        if (dense.shape[1], categorical.shape[1]) != wanted or len(dense) != len(categorical):
            raise ValueError(
                f"dense {list(dense.shape)} and categorical {list(categorical.shape)} came; "
                f"expected [B, {wanted[0]}] and [B, {wanted[1]}]"
            )
        infinite = np.argwhere(np.isinf(dense))
        if len(infinite):
            row, column = infinite[0]
            raise InvalidInput(
                f"feature {self.layout.dense[column]}: {dense[row, column]} is not a finite "
                "number; store NaN where the value is missing"
            )
        for feature, column in zip(self.layout.categorical, categorical.T.tolist(), strict=False):
            if max(map(len, column), default=0) > MAX_VALUE_BYTES:
                longest = max(map(len, column))
                raise InvalidInput(
                    f"feature {feature}: a value of {longest} bytes came; at most "
                    f"{MAX_VALUE_BYTES} are read"
                )
            _check_utf8(feature, column)


def _check_utf8(feature: str, column: list[bytes]) -> None:
    """All values at once."""
    texts = b"\0".join(column)
    try:
        texts.decode()
    except UnicodeDecodeError as error:
        shown = texts[max(0, error.start - 10) : error.end]
        raise InvalidInput(
            f"feature {feature}: {shown!r} is not UTF-8; store text in UTF-8"
        ) from error
