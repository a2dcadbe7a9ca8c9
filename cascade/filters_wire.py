"""The filters of a request on the wire: `encode_*` in the client, `decode_*` in the server.

    exclude    item ids that a user is not to get          packed little-endian int64; or JSON, [7]
    allow      values by item feature, of which an item    JSON, {"genre": ["Comedy", "Drama"]}
               needs one for every feature named

Each is one element of bytes, because requests of unequal shape would not batch; empty = no filter.
Plain JSON over HTTP has no form for packed ids. The two forms of `exclude` are told apart by their
bytes: packed ids that read as a JSON list would end with one above 6.7e18 of nothing but digits,
commas and the like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral

import numpy as np
import numpy.typing as npt

from cascade.encoding import InvalidInput
from cascade.spec import ALLOW, EXCLUDE
from cascade.values import text, unexpected, unknown_name

Exclude = Iterable[int] | None
"""Item ids, in any order. None, or none of them = nothing is excluded."""

Allow = Mapping[str, Iterable[str | int]] | None
"""Values by item feature: an item needs one of the values of every feature that is named. None, or
no feature = every item."""

MOST_EXCLUDED = 1000  # ids; what a user has seen longer ago may come again
MOST_VALUES = 1000  # of all features together
ID_BYTES = 8
_JSON_IDS = re.compile(rb"\[[-0-9,.\"\s]*\]")


def encode_exclude(ids: Exclude) -> bytes:
    """Pack ids; an id that comes twice is sent once. Raises InvalidInput for what are no ids of 64
    bits, or more than `MOST_EXCLUDED`."""
    if ids is None:
        return b""
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise unexpected(EXCLUDE, ids, "a list of item ids")
    ids = list(ids)
    if set(map(type, ids)) - {int}:
        ids = [_id(item) for item in ids]
    try:
        distinct = np.unique(np.array(ids, "<i8"))
    except OverflowError as error:
        raise unexpected(EXCLUDE, ids, "ids of 64 bits") from error
    _check_excluded(len(distinct))
    packed: bytes = distinct.tobytes()
    return packed


def decode_exclude(value: bytes) -> npt.NDArray[np.int64]:
    """Ids [n], as they came. Raises InvalidInput as `encode_exclude`."""
    if value.startswith(b"[") and _JSON_IDS.fullmatch(value):
        return _ids_of_json(value)
    if len(value) % ID_BYTES:
        raise InvalidInput(
            f"{EXCLUDE}: {len(value)} bytes came; ids are packed as little-endian int64, "
            f"{ID_BYTES} bytes each, or a JSON list of integers, as [7, 9]"
        )
    _check_excluded(len(value) // ID_BYTES)
    return np.frombuffer(value, "<i8").astype(np.int64, copy=False)


def _ids_of_json(value: bytes) -> npt.NDArray[np.int64]:
    """Integers, or their texts: some languages have no integers of 64 bits."""
    try:
        ids = [int(item) if isinstance(item, str) else _id(item) for item in json.loads(value)]
        found: npt.NDArray[np.int64] = np.array(ids, np.int64)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{EXCLUDE}: {value[:40]!r} is no JSON list of integers of 64 bits: {error}"
        ) from error
    _check_excluded(len(found))
    return found


def encode_allow(allow: Allow, known: Collection[str]) -> bytes:
    """Values by feature as JSON; `known` are the item features that the server can filter by.
    Raises InvalidInput for another feature, a value that is no text, more than `MOST_VALUES`."""
    if allow is None:
        return b""
    if not isinstance(allow, Mapping):
        raise unexpected(ALLOW, allow, "a dict of lists of values by item feature")
    content = {}
    for feature, values in allow.items():
        if feature not in known:
            raise InvalidInput(f"{ALLOW}: {unknown_name('item feature', feature, known)}")
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise unexpected(f"{ALLOW}: feature {feature}", values, "a list of values")
        content[feature] = [_value(feature, value) for value in values]
    _check_values(sum(map(len, content.values())))
    return json.dumps(content, ensure_ascii=False).encode() if content else b""


def decode_allow(value: bytes) -> dict[str, list[bytes]]:
    """Values by item feature, as they stand in the catalogue; empty = every item. Raises
    InvalidInput as `encode_allow`."""
    if not value:
        return {}
    shown = repr(value[:40]) + ("…" if len(value) > 40 else "")
    try:
        content = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{ALLOW}: {shown} is not JSON in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(
            f"{ALLOW}: {shown} came; expected a JSON object of lists of values by item feature, as "
            '{"genre": ["Comedy"]}'
        )
    _check_values(sum(len(values) for values in content.values() if isinstance(values, list)))
    found = {}
    for feature, values in content.items():
        if not isinstance(values, list):
            came = f"{ALLOW}: feature {feature}: {str(values)[:40]!r} came"
            raise InvalidInput(f"{came}; expected a list of values")
        found[feature] = [_catalogue_value(feature, value) for value in values]
    return found


def _check_excluded(count: int) -> None:
    if count > MOST_EXCLUDED:
        raise InvalidInput(
            f"{EXCLUDE}: {count} ids came; at most {MOST_EXCLUDED} are taken, so send those that "
            "were seen last"
        )


def _check_values(count: int) -> None:
    if count > MOST_VALUES:
        raise InvalidInput(f"{ALLOW}: {count} values came; at most {MOST_VALUES} are taken")


def _id(value: object) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise unexpected(EXCLUDE, value, "ints, the ids of items")
    return int(value)


def _value(feature: str, value: object) -> str:
    if isinstance(value, bytes):
        raise unexpected(f"{ALLOW}: feature {feature}", value, "strings and ints")
    return text(feature, value, "strings and ints", f"{ALLOW}: feature")


def _catalogue_value(feature: str, value: object) -> bytes:
    """In the catalogue all values are text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidInput(
            f"{ALLOW}: feature {feature}: {str(value)[:40]!r} came among the values; expected "
            "strings and ints"
        )
    return str(value).encode(errors="surrogatepass")  # half a character: no item has it
