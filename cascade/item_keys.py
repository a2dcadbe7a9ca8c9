"""The key of an item whose id is a string.

Graphs, filters and the deny list know every item by an int64. Where ids are integers, that is the
id. Where they are strings, it is a hash of the id, and the last step of the ranking stage puts the
string in its place (`cascade.stages.names`). An export checks that no two items share a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

PAD = -1  # in place of an item, where a list is short; among strings, the empty one
KEY_BYTES = 8
_POSITIVE = 2**63 - 1


def key_of(item: str | bytes) -> int:
    """The key of an id, from 0 to 2^63 - 1: the first 8 bytes of its UTF-8's BLAKE2b, little-endian
    and with the top bit cleared. Raises UnicodeError for text that UTF-8 cannot hold."""
    text = item.encode() if isinstance(item, str) else item
    return int.from_bytes(blake2b(text, digest_size=KEY_BYTES).digest(), "little") & _POSITIVE


def keys_of(items: Iterable[str | bytes], count: int = -1) -> npt.NDArray[np.int64]:
    """Keys int64 [n] of ids; `count` is n, where it is known."""
    return np.fromiter(map(key_of, items), np.int64, count)


def as_keys(ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Ids of any shape -> keys of that shape: integers are their own keys, of object arrays every
    string or UTF-8 is hashed, and the empty one is `PAD`."""
    if ids.dtype != np.object_:
        return ids.astype(np.int64, copy=False)
    keys = keys_of(ids.ravel(), ids.size)
    keys[[not item for item in ids.ravel()]] = PAD
    return keys.reshape(ids.shape)
