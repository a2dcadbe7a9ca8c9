"""Which of two releases a user gets, while a share of the users has the challenger: always the same
one, by a key that identifies the user. The rule runs in the client, because a router in the server
would cost every request a hop.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cascade import values

LIVE, CHALLENGER = "", "_b"  # what the names of their models end in
SALT = b"cascade:"  # so that this split is independent of others by the same keys
Key = str | int | bytes


def arms(
    keys: Sequence[Key] | None, users: int, share: float
) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """The models' endings, each with the positions of its users. Without keys, all are live. Raises
    InvalidInput for a key that is no text or integer, ValueError for not one key for each user."""
    positions = np.arange(users)
    if keys is None or not share:
        return [(LIVE, positions)]
    if len(keys) != users:
        raise ValueError(f"{len(keys)} keys came for {users} users")
    challenged = np.array([place(key) < share for key in keys], np.bool_)
    both = ((LIVE, positions[~challenged]), (CHALLENGER, positions[challenged]))
    return [(ending, some) for ending, some in both if len(some)]


def place(key: Key) -> float:
    """A user's position between 0 and 1; the challenger has those below its share."""
    return zlib.crc32(SALT + values.category("key", key)) / 2**32
