"""The filters of a request on the wire: `encode_*` in the client, `decode_*` in the server.

    exclude    item ids that a user is not to get          packed little-endian int64; or JSON, as
                                                           [17, 4] or ["sku-17", "sku-4"]
    allow      values by item feature, of which an item    JSON, {"genre": ["Comedy", "Drama"]}
               needs one for every feature named

Each is one element of bytes, because requests of unequal shape would not batch; empty = no filter.
Plain JSON over HTTP has no form for packed ids. String ids are packed as their keys
(`cascade.item_keys`).

The two forms of `exclude` are told apart by their bytes: what can be read as text is text, and text
that is no JSON list is refused. Packed ids may spell a text, as the eight bytes [123456] do: behind
such ids, a packer puts -1, which is no item and not UTF-8. Only ids above 6e17 can spell one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.encoding import InvalidInput
from cascade.item_keys import PAD, keys_of
from cascade.spec import ALLOW, EXCLUDE
from cascade.values import text, unexpected, unknown_name

Exclude = Iterable[int] | Iterable[str] | None
"""Item ids, in any order; strings where the catalogue names its items by strings. None, or none of
them = nothing is excluded."""

Allow = Mapping[str, Iterable[str | int]] | None
"""Values by item feature: an item needs one of the values of every feature that is named. None, or
no feature = every item."""

MOST_EXCLUDED = 1000  # ids; what a user has seen longer ago may come again
MOST_VALUES = 1000  # of all features together
ID_BYTES = 8
NO_TEXT = np.array([PAD], "<i8").tobytes()
_SPACE = b" \t\r\n"
_NUMBERS = re.compile(rb"\[[-0-9,.\"\s]*\]")
_INTEGER = re.compile(r"-?[0-9]{1,19}")


def encode_exclude(ids: Exclude, string_ids: bool = False) -> bytes:
    """Pack ids, or the keys of string ids; one that comes twice is sent once. Raises InvalidInput
    for what are no ids of 64 bits, or no strings, or more than `MOST_EXCLUDED`."""
    if ids is None:
        return b""
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise unexpected(EXCLUDE, ids, "a list of item ids")
    distinct = np.unique(_keys(list(ids), string_ids)).astype("<i8")
    _check_excluded(len(distinct))
    packed: bytes = distinct.tobytes()
    return packed + NO_TEXT if _is_text(packed) else packed


def decode_exclude(value: bytes, string_ids: bool = False) -> npt.NDArray[np.int64]:
    """Ids [n], or the keys of string ids, as they came. Raises InvalidInput as `encode_exclude`."""
    if _is_json(value):
        return _ids_of_json(value, string_ids)
    spelt = _is_text(value)
    if spelt or len(value) % ID_BYTES:
        read = f"as text they are {value[:40].decode(errors='ignore')!r}; " if spelt else ""
        raise InvalidInput(
            f"{EXCLUDE}: {len(value)} bytes came; {read}ids are packed as little-endian int64, "
            f"{ID_BYTES} bytes each, or a JSON {_expected(string_ids)}"
        )
    _check_excluded((len(value) - value.endswith(NO_TEXT)) // ID_BYTES)
    return np.frombuffer(value, "<i8").astype(np.int64, copy=False)


def _expected(string_ids: bool) -> str:
    kind = '["sku-17", "sku-4"]' if string_ids else "[7, 9]"
    return f"list of {'strings' if string_ids else 'integers'} of items, as {kind}"


def _is_json(value: bytes) -> bool:
    """Whether bytes are read as JSON: a list, or what a list of numbers may have been meant by."""
    text = value.strip(_SPACE)
    if not (text.startswith(b"[") and text.endswith(b"]")):
        return False
    try:
        json.loads(text.decode())
    except (ValueError, RecursionError):
        return _NUMBERS.fullmatch(text) is not None
    return True


def _is_text(value: bytes) -> bool:
    """Whether bytes can be read as text: those of small ids hold zeros, which no text does."""
    try:
        return value != b"" and "".join(value.decode().split()).isprintable()
    except UnicodeDecodeError:
        return False


def _ids_of_json(value: bytes, string_ids: bool) -> npt.NDArray[np.int64]:
    """Integers may be texts: some languages have no integers of 64 bits."""
    try:
        ids = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{EXCLUDE}: {value[:40]!r} is no JSON {_expected(string_ids)}: {error}"
        ) from error
    if not isinstance(ids, list):
        raise unexpected(EXCLUDE, ids, f"a JSON {_expected(string_ids)}")
    _check_excluded(len(ids))
    if not string_ids:
        ids = [int(i) if isinstance(i, str) and _INTEGER.fullmatch(i) else i for i in ids]
    return _keys(ids, string_ids)


def _keys(ids: list[Any], string_ids: bool) -> npt.NDArray[np.int64]:
    if string_ids:
        for item in ids:
            if not isinstance(item, str):
                raise unexpected(EXCLUDE, item, f"a {_expected(string_ids)}")
        # Half a character: no item has it.
        return keys_of((item.encode(errors="surrogatepass") for item in ids), len(ids))
    if set(map(type, ids)) - {int}:
        ids = [_id(item) for item in ids]
    try:
        return np.array(ids, np.int64)
    except OverflowError as error:
        raise unexpected(EXCLUDE, ids, "ids of 64 bits, a list of integers") from error


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
        content = json.loads(value, object_pairs_hook=_once)
    except InvalidInput:
        raise
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises InvalidInput for a name that comes twice: one of its filters would be
    lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise InvalidInput(f"{ALLOW}: feature {twice} came twice; put all its values in one list")
    return content


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
        raise unexpected(EXCLUDE, value, "ints, a list of integers, the ids of items")
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
