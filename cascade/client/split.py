"""Which of two releases a user gets, while a share of the users has the challenger.

The rule runs in the client: a router in the server would cost every request a hop. A user is told
by a key that stays the same from request to request, and so always gets the same release.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cascade import values

LIVE, CHALLENGER = "", "_b"  # what the names of their models end in
SALT = b"cascade:"  # so that other splits by the same keys fall otherwise
Key = str | int | bytes


def arms(
    keys: Sequence[Key] | None, users: int, share: float
) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """The models' endings, each with the places of its users. Who has no key gets the live release.

    Raises:
        InvalidInput: a key that is neither text nor an integer.
        ValueError: not one key for each user.
    """
    everybody = np.arange(users)
    if keys is None or not share:
        return [(LIVE, everybody)]
    if len(keys) != users:
        raise ValueError(f"{len(keys)} keys came for {users} users")
    challenged = np.array([place(key) < share for key in keys], np.bool_)
    both = ((LIVE, everybody[~challenged]), (CHALLENGER, everybody[challenged]))
    return [(ending, some) for ending, some in both if len(some)]


def place(key: Key) -> float:
    """Where a user stands between 0 and 1."""
    return zlib.crc32(SALT + values.category("key", key)) / 2**32
