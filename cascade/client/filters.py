"""What a user is not to get, and what alone he may get: checked, and in the form of the wire."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.client.errors import InvalidInput, RecommendError
from cascade.client.layout import Layout
from cascade.values import unknown_name

Exclude = Iterable[int] | None
"""Item ids, in any order. None, or none of them = nothing is excluded."""

Allow = Mapping[str, Iterable[str | int]] | None
"""Values by item feature: an item needs one of the values of every feature that is named. None, or
no feature = every item."""

Filter = npt.NDArray[np.object_]
MOST_EXCLUDED = 1000  # the server takes no more of either
MOST_VALUES = 1000


def exclude_bytes(ids: Exclude) -> bytes:
    """Ids as packed little-endian int64; an id that comes twice is sent once.

    Raises:
        InvalidInput: not ids of 64 bits, or more than `MOST_EXCLUDED`.
    """
    if ids is None:
        return b""
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise _wrong("exclude", ids, "a list of item ids")
    ids = list(ids)
    if set(map(type, ids)) - {int}:
        ids = [_id(item) for item in ids]
    try:
        different = np.unique(np.array(ids, "<i8"))
    except OverflowError as error:
        raise _wrong("exclude", ids, "ids of 64 bits") from error
    if len(different) > MOST_EXCLUDED:
        raise InvalidInput(
            f"exclude: {len(different)} ids came; at most {MOST_EXCLUDED} are taken, so send those "
            "that were seen last"
        )
    packed: bytes = different.tobytes()
    return packed


def _id(value: object) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise _wrong("exclude", value, "ints, the ids of items")
    return int(value)


def allow_bytes(allow: Allow, known: Collection[str]) -> bytes:
    """Values by feature as JSON.

    Args:
        known: the item features that there are.

    Raises:
        InvalidInput: an unknown feature, a value that is no text, or more than `MOST_VALUES`.
    """
    if allow is None:
        return b""
    if not isinstance(allow, Mapping):
        raise _wrong("allow", allow, "a dict of lists of values by item feature")
    content = {}
    for feature, values in allow.items():
        if feature not in known:
            raise InvalidInput(f"allow: {unknown_name('item feature', feature, known)}")
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise _wrong(f"allow: feature {feature}", values, "a list of values")
        content[feature] = [_value(feature, value) for value in values]
    count = sum(map(len, content.values()))
    if count > MOST_VALUES:
        raise InvalidInput(f"allow: {count} values came; at most {MOST_VALUES} are taken")
    return json.dumps(content, ensure_ascii=False).encode() if content else b""


def _value(feature: str, value: object) -> str:
    if isinstance(value, Integral) and not isinstance(value, bool | np.bool_):
        return str(int(value))
    if not isinstance(value, str):
        raise _wrong(f"allow: feature {feature}", value, "strings and ints")
    try:
        value.encode()
    except UnicodeError as error:
        raise _wrong(f"allow: feature {feature}", value, "text that UTF-8 can hold") from error
    return str(value)


def columns(
    layout: Layout,
    users: int,
    exclude: Sequence[Exclude] | None,
    allow: Sequence[Allow] | None,
) -> dict[str, Filter]:
    """The filters of so many users by input name, [B, 1] each; what nobody has is left out.

    Raises:
        InvalidInput: not one per user, or one of them cannot be read; says whose.
        RecommendError: the server takes no filters.
    """
    excluded = _column("exclude", exclude, users, exclude_bytes)
    allowed = _column("allow", allow, users, partial(allow_bytes, known=layout.items))
    both = (("exclude", excluded), ("allow", allowed))
    found = {name: values for name, values in both if values is not None}
    if found and not layout.filters:
        raise RecommendError("the served release takes no filters: export it again")
    return found


def _column(
    name: str, values: Sequence[Any] | None, users: int, to_bytes: Callable[[Any], bytes]
) -> Filter | None:
    if values is None:
        return None
    if isinstance(values, str | bytes | Mapping) or len(values) != users:
        raise InvalidInput(
            f"{name}: expected a list with one entry for each of the {users} users (None = no "
            f"filter); {reprlib.repr(values)} came"
        )
    found = np.full((users, 1), b"", np.object_)
    for user, value in enumerate(values):
        try:
            found[user, 0] = to_bytes(value)
        except InvalidInput as error:
            raise InvalidInput(f"user {user}: {error}" if users > 1 else str(error)) from (
                error.__cause__
            )
    return found if any(found[:, 0]) else None


def _wrong(where: str, value: object, expected: str) -> InvalidInput:
    return InvalidInput(
        f"{where}: {reprlib.repr(value)} ({type(value).__name__}) came; expected {expected}"
    )
