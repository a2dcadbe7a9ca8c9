"""A stored user as bytes: raw values in the form in which clients send them.

8 bytes      the layout's hash: a record of another layout is recognised by it
4 F_dense    float32, little-endian, NaN = missing
the rest     F_cat texts with 0xFF between them, a byte that no UTF-8 holds; empty = missing
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cascade import values
from cascade.encoding import MAX_VALUE_BYTES, InvalidInput
from cascade.errors import CascadeError
from cascade.layout import Categorical, Dense, IdFeature, LayoutError, RequestLayout, id_feature

BETWEEN = b"\xff"
MEMBER = values.SEPARATOR.encode()


class OtherLayout(CascadeError, ValueError):
    """A store, or a record of it, was written for users of other features."""


class Records:
    """Turns users of one layout into bytes and back."""

    def __init__(self, layout: RequestLayout) -> None:
        self.layout = layout
        self._head = bytes.fromhex(layout.layout_hash)
        self._texts = len(self._head) + 4 * layout.dense_width
        self.empty = self.encode(*layout.empty())[0]

    def encode(self, dense: Dense, categorical: Categorical) -> list[bytes]:
        """dense [B, F_dense], categorical [B, F_cat] -> one record per user.

        Raises InvalidInput: a value that no model could read; it names the feature.
        """
        self._check(dense, categorical)
        numbers = np.ascontiguousarray(dense, "<f4").tobytes()
        size = 4 * self.layout.dense_width
        return [
            self._head + numbers[row * size : (row + 1) * size] + BETWEEN.join(texts)
            for row, texts in enumerate(categorical.tolist())
        ]

    def decode(self, records: Sequence[bytes]) -> tuple[Dense, Categorical]:
        """Records that `readable` accepts -> dense [B, F_dense], categorical [B, F_cat]."""
        start, stop = len(self._head), self._texts
        numbers = b"".join([record[start:stop] for record in records])
        dense = np.frombuffer(numbers, "<f4").reshape(len(records), self.layout.dense_width)
        categorical = np.empty((len(records), self.layout.categorical_width), np.object_)
        categorical[:] = [record[stop:].split(BETWEEN) for record in records]
        return dense.astype(np.float32), categorical

    def readable(self, record: bytes) -> bool:
        """Whether it is a whole record of this layout."""
        return (
            record.startswith(self._head)
            and len(record) >= self._texts
            and record.count(BETWEEN, self._texts) == self.layout.categorical_width - 1
        )

    def append(self, record: bytes | None, name: str, members: Sequence[Any]) -> bytes:
        """The record with new members, the latest last, in front of a bag or at the end of a
        sequence.

        The model reads the beginning of a bag, whose training data begins with the latest member,
        and the end of a sequence (`Encoder.ids`). Members that would not be read are dropped. Where
        there is no record yet, every other value is missing.

        Raises InvalidInput: no such bag, or members that cannot be in one; OtherLayout: the record
        is of another layout.
        """
        feature = self._bag(name)
        if not isinstance(members, list | tuple):
            raise InvalidInput(f"feature {name}: {members!r} came; expected a list of members")
        latest_first = 1 if feature.kind == "bag" else -1
        added = values.bag(name, members[::-1], feature.length)
        record = self.empty if record is None else record
        if not self.readable(record):
            raise OtherLayout(f"a stored user is not of layout {self.layout.layout_hash}")
        texts = record[self._texts :].split(BETWEEN)
        column = self.layout.columns[name]
        old = [m for m in texts[column].split(MEMBER) if m][::latest_first]
        kept = [*[m for m in added.split(MEMBER) if m], *old][: feature.length]
        while sum(map(len, kept)) + len(kept) - 1 > MAX_VALUE_BYTES:
            kept.pop()
        if added and not kept:
            raise InvalidInput(
                f"feature {name}: a member of more than {MAX_VALUE_BYTES} bytes came; so many are "
                "read of a whole bag"
            )
        texts[column] = MEMBER.join(kept[::latest_first])
        return record[: self._texts] + BETWEEN.join(texts)

    def _bag(self, name: str) -> IdFeature:
        if name not in self.layout.names:
            bags = [feature.name for feature in self.layout.categorical if feature.multivalued]
            raise InvalidInput(values.unknown_name("feature", name, bags))
        feature = self.layout.id_features.get(name)
        if feature is None or not feature.multivalued:
            raise InvalidInput(
                f"feature {name} is not a bag; only to a bag can something be appended"
            )
        return feature

    def _check(self, dense: Dense, categorical: Categorical) -> None:
        layout = self.layout
        wanted = (layout.dense_width, layout.categorical_width)
        if (dense.shape[1], categorical.shape[1]) != wanted or len(dense) != len(categorical):
            raise ValueError(
                f"dense {list(dense.shape)} and categorical {list(categorical.shape)} came; "
                f"expected [B, {wanted[0]}] and [B, {wanted[1]}]"
            )
        infinite = np.argwhere(np.isinf(dense))
        if len(infinite):
            row, column = infinite[0]
            raise InvalidInput(
                f"feature {layout.dense[column]}: {dense[row, column]} is not a finite number; "
                "store NaN where the value is missing"
            )
        for feature, texts in zip(layout.categorical, categorical.T.tolist(), strict=False):
            longest = max(map(len, texts), default=0)
            if longest > MAX_VALUE_BYTES:
                raise InvalidInput(
                    f"feature {feature.name}: a value of {longest} bytes came; at most "
                    f"{MAX_VALUE_BYTES} are read"
                )
            joined = b"\0".join(texts)  # one check of all values
            try:
                joined.decode()
            except UnicodeDecodeError as error:
                shown = joined[max(0, error.start - 10) : error.end]
                raise InvalidInput(
                    f"feature {feature.name}: {shown!r} is not UTF-8; store text in UTF-8"
                ) from error


def layout_record(layout: RequestLayout) -> bytes:
    """A layout as a store records it beside its users."""
    bags = {f.name: f.length for f in layout.categorical if f.multivalued}
    content = {
        "dense": layout.dense,
        "categorical": [feature.name for feature in layout.categorical],
        "bags": bags,
        "hash": layout.layout_hash,
        "sequences": [f.name for f in layout.categorical if f.kind == "sequence"],
    }
    return json.dumps(content).encode()


def read_layout(record: bytes) -> RequestLayout:
    """Read back `layout_record`, also of a store that does not know sequences yet.

    Raises LayoutError: the record is damaged.
    """
    try:
        content = json.loads(record)
        bags, sequences = content["bags"], content.get("sequences", ())
        return RequestLayout(
            tuple(content["dense"]),
            tuple(
                id_feature(name, int(bags.get(name, 1)), name in bags, name in sequences)
                for name in content["categorical"]
            ),
            str(content["hash"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LayoutError(f"not the layout of a store: {error!r}") from error
