"""The filters of a request, from the wire."""

from __future__ import annotations

import json

import numpy as np

from cascade.encoding import InvalidInput
from cascade.index import Ids
from cascade.spec import ALLOW, EXCLUDE

MOST_EXCLUDED = 1000  # ids; what a user has seen longer ago may come again
MOST_VALUES = 1000  # of all features together
ID_BYTES = 8
Allow = dict[str, list[bytes]]


def excluded_ids(value: bytes) -> Ids:
    """Packed little-endian int64 -> ids [n], as they came.

    Raises:
        InvalidInput: not a whole number of ids, or more than `MOST_EXCLUDED`.
    """
    if len(value) % ID_BYTES:
        raise InvalidInput(
            f"{EXCLUDE}: {len(value)} bytes came; ids are packed as little-endian int64, "
            f"{ID_BYTES} bytes each"
        )
    if len(value) > MOST_EXCLUDED * ID_BYTES:
        raise InvalidInput(
            f"{EXCLUDE}: {len(value) // ID_BYTES} ids came; at most {MOST_EXCLUDED} are taken"
        )
    return np.frombuffer(value, "<i8").astype(np.int64, copy=False)


def allowed_values(value: bytes) -> Allow:
    """JSON `{"genre": ["Comedy", "Drama"]}` -> values by item feature; empty = every item.

    Raises:
        InvalidInput: says what came, and what was expected.
    """
    if not value:
        return {}
    try:
        content = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{ALLOW}: {_shown(value)} is not JSON in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(
            f"{ALLOW}: {_shown(value)} came; expected a JSON object of lists of values by item "
            'feature, as {"genre": ["Comedy"]}'
        )
    count = sum(len(values) for values in content.values() if isinstance(values, list))
    if count > MOST_VALUES:
        raise InvalidInput(f"{ALLOW}: {count} values came; at most {MOST_VALUES} are taken")
    return {feature: _values(feature, values) for feature, values in content.items()}


def _values(feature: str, values: object) -> list[bytes]:
    if not isinstance(values, list):
        raise InvalidInput(
            f"{ALLOW}: feature {feature}: {str(values)[:40]!r} came; expected a list of values"
        )
    return [_value(feature, value) for value in values]


def _value(feature: str, value: object) -> bytes:
    """As it stands in the catalogue, where all values are text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidInput(
            f"{ALLOW}: feature {feature}: {str(value)[:40]!r} came among the values; expected "
            "strings and ints"
        )
    return str(value).encode(errors="surrogatepass")  # half a character: no item has it


def _shown(value: bytes) -> str:
    return repr(value[:40]) + ("…" if len(value) > 40 else "")
