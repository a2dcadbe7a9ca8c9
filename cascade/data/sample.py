"""Which rows of a split to look at where not all can be: drawn over its users, not its first.

Rows lie in the order of time, and one user's lie together, so the first thousand rows are a few
dozen users on one day.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cascade.data.parts import Group, read_groups, row_count
from cascade.encoding import Floats, Ids

Rows = npt.NDArray[np.int64]

GROUPS = 32  # row groups that rows without users are drawn from: 4 million rows


class OfUsers(Protocol):
    """B rows that know their users, or not."""

    @property
    def label(self) -> Floats: ...

    @property
    def user(self) -> Ids | None: ...


def distinct_users(*parts: OfUsers) -> int:
    """How many users some rows are of; a row whose user is not said is of a user of its own."""
    nobody = (np.full(len(rows.label), -1) for rows in parts if rows.user is None)
    users = np.concatenate([*(rows.user for rows in parts if rows.user is not None), *nobody])
    known = users[users >= 0]
    return len(np.unique(known)) + len(users) - len(known)


def draw(
    groups: Sequence[Group], has_users: bool, count: int, seed: int, positives: str = ""
) -> Rows:
    """Up to `count` rows of a split, by their number in it, in the order in which they are drawn.

    Users come in random order with one random row each, then with a second one, until there are
    `count` rows, so that the first rows drawn are a sample over users, too. Where the rows have no
    users they are drawn alike, from `GROUPS` random row groups, or from more where those have not
    enough of them. Beside a user and a number for each row, one row group is in memory.

    Args:
        positives: a column of labels; draw from the rows of label 1 alone.
    """
    random = np.random.default_rng(seed)
    starts = np.cumsum([0, *map(row_count, groups)])
    names = [*(["@user"] if has_users else []), *([positives] if positives else [])]
    found: list[Rows] = []
    users: list[Ids] = []
    for turn, at in enumerate(random.permutation(len(groups))):
        if not has_users and turn >= GROUPS and sum(map(len, found)) >= count:
            break
        rows = np.arange(starts[at], starts[at + 1])
        columns = read_groups([groups[at]], names) if names else {}
        kept = columns[positives] > 0 if positives else slice(None)
        found.append(rows[kept])
        if has_users:
            users.append(columns["@user"][kept])
    rows = np.concatenate(found)
    if has_users:
        return rows[over_users(np.concatenate(users), count, random)]
    return np.asarray(random.permutation(rows)[:count])


def over_users(user: Ids, count: int, random: np.random.Generator) -> Rows:
    """Users of R rows, -1 = not said -> up to `count` places among them, as `draw` says."""
    nobody = user < 0
    user = np.where(nobody, user.max(initial=-1) + np.cumsum(nobody), user)
    order = random.permutation(len(user))
    order = order[np.argsort(user[order], kind="stable")]
    first = np.flatnonzero(np.diff(user[order], prepend=-1))
    lengths = np.diff(first, append=len(user))
    turn = np.arange(len(user)) - np.repeat(first, lengths)
    place = np.repeat(random.permutation(len(first)), lengths)
    last = np.searchsorted(np.cumsum(np.bincount(turn)), count)
    kept = np.flatnonzero(turn <= last)
    kept = kept[np.lexsort((place[kept], turn[kept]))][:count]
    return np.asarray(order[kept])
