"""Candidates under filters: as many as without, as long as there are items left.

The search fetches as many more items as are excluded or denied and may be among the best, and drops
these. If `allow` leaves at most K items, they are the candidates; otherwise the index searches
among them, and other allowed items fill the places for which it finds none. A user's candidates
depend on their own filters and the deny list alone, not on the other users of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cascade.artifact import Array
from cascade.encoding import Floats, InvalidInput
from cascade.filters_wire import decode_allow, decode_exclude
from cascade.index import Ids, Index, Mask
from cascade.index.exact import ExactIndex
from cascade.runtime.load import Graph
from cascade.stages.filters.deny import Denied, DenyList
from cascade.stages.filters.items import FilterItems

DENIED_AT_ONCE = 128  # of a longer deny list, so many are expected among the best; else a search


@dataclass(frozen=True)
class UserFilter:
    """The filters of one user: ids [E] in any order; the rows allowed, None = every item."""

    excluded: Ids
    allowed: Mask | None

    def __bool__(self) -> bool:
        return self.allowed is not None or len(self.excluded) > 0


class Filtered:
    """Encoded users and their filters -> K candidates int64 [B, K], -1 pads. Without a deny list,
    `deny` is None. `string_ids` is the schema's."""

    def __init__(
        self,
        tower: Graph,
        index: ExactIndex | Index,
        items: FilterItems,
        deny: DenyList | None,
        candidates: int,
        string_ids: bool = False,
    ) -> None:
        self._string_ids = string_ids
        self._search = _unfiltered(tower, index, candidates)
        self._tower, self._index = tower, index
        self._items, self._deny, self._candidates = items, deny, candidates
        self._nothing = Denied.nothing(items)

    def __call__(
        self,
        user_dense: Array,
        user_ids: Array,
        exclude: Array | None = None,
        allow: Array | None = None,
    ) -> Ids:
        """Best first; if all allowed items are candidates, in the order of their rows. Raises
        InvalidInput for a filter that cannot be read.

        `exclude`, `allow`: object [B, 1] of bytes; None if no user of the batch has the filter.
        """
        denied = self._deny.now() if self._deny else self._nothing
        filters = self._filters(len(user_ids), exclude, allow)
        if not denied.count and not any(filters):
            return self._search(user_dense, user_ids)
        queries = _finite(self._tower(user_dense, user_ids)[0])
        return self._filtered(queries, filters, denied)

    def _filters(
        self, users: int, exclude: Array | None, allow: Array | None
    ) -> Sequence[UserFilter]:
        if exclude is None and allow is None:
            return [_NO_FILTER] * users
        columns = ([b""] * users if sent is None else sent[:, 0] for sent in (exclude, allow))
        return [*map(self._decoded, *columns)]

    def _decoded(self, exclude: bytes, allow: bytes) -> UserFilter:
        values = decode_allow(allow)
        allowed = self._items.having(values) if values else None
        return UserFilter(decode_exclude(exclude, self._string_ids), allowed)

    def _filtered(self, queries: Floats, filters: Sequence[UserFilter], denied: Denied) -> Ids:
        found = np.full((len(filters), self._candidates), -1, np.int64)
        fetched = self._candidates + min(DENIED_AT_ONCE, denied.count)
        free = [user for user, own in enumerate(filters) if not own]
        if free:  # one search for all of them
            for user, rows in zip(free, self._index.search(queries[free], fetched), strict=True):
                self._keep(found[user], rows, filters[user], denied)
        for user, own in enumerate(filters):
            if len(own.excluded) and own.allowed is None:
                query = queries[user : user + 1]
                rows = self._index.search_oversampled(query, fetched, len(own.excluded))[0]
                self._keep(found[user], rows, own, denied)
        # Users with allowed values, and those for whom too few candidates remained.
        for user in np.flatnonzero(found[:, -1] < 0):
            if user in free and not denied.count:
                continue  # the search without filters found all there is
            left = self._left(filters[user], denied)
            found[user] = self._among(queries[user : user + 1], left)
        return found

    def _keep(self, found: Ids, rows: Ids, own: UserFilter, denied: Denied) -> None:
        """Rows [>= K] -> found [K]: those that are neither denied nor excluded."""
        rows = rows[rows >= 0]
        if denied.count:
            rows = rows[~denied.mask[rows]]
        if len(own.excluded):
            rows = rows[~self._items.named(rows, own.excluded)]
        rows = rows[: len(found)]
        found[: len(rows)] = rows

    def _left(self, own: UserFilter, denied: Denied) -> Mask:
        """[N]: the items that the user may get."""
        left = ~denied.mask if own.allowed is None else own.allowed & ~denied.mask
        left[self._items.rows(own.excluded)] = False
        return left

    def _among(self, query: Floats, left: Mask) -> Ids:
        """query [1, D] -> the K best of the items that are `left` [N], or all of fewer."""
        k = self._candidates
        found = np.full(k, -1, np.int64)
        count = int(np.count_nonzero(left))
        if count > k:
            rows = self._index.search_among(query, k, left)[0]
            rows = rows[rows >= 0]
            found[: len(rows)] = rows
            left[rows] = False
            if len(rows) < k:
                found[len(rows) :] = np.flatnonzero(left)[: k - len(rows)]
        else:
            found[:count] = np.flatnonzero(left)
        return found


def _unfiltered(tower: Graph, index: ExactIndex | Index, k: int) -> Callable[..., Ids]:
    """Encoded users -> candidates, for a batch without any filter. Between a tower of the torch
    runtimes and exact search the vectors stay on the device."""
    function = getattr(tower, "function", None)
    if isinstance(index, ExactIndex) and function is not None:
        return index.after(function, k)
    return lambda *users: index.search(_finite(tower(*users)[0]), k)


def _finite(queries: Floats) -> Floats:
    """The vectors of users [B, D]. Raises InvalidInput: one is not finite, and nothing is near."""
    if not np.isfinite(queries).all():
        raise InvalidInput(
            "the numbers of a user give a vector that is not finite: send numbers of the size that "
            "the model was trained on"
        )
    return queries


_NO_FILTER = UserFilter(np.empty(0, np.int64), None)
