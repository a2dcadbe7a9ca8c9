"""Takes a flat model of (user, item) rows apart: what depends on the user alone is computed once
per request, what depends on the item alone once per release, and the rest per candidate."""

from __future__ import annotations

from export.foreign.split.assemble import ROWS
from export.foreign.split.derive import NotSplit, derive
from export.foreign.split.derived import Derived, Kept
from export.foreign.split.prove import column
from export.foreign.split.values import BOTH, ITEM, USER, Cost, Part, Side

__all__ = [
    "BOTH",
    "ITEM",
    "ROWS",
    "USER",
    "Cost",
    "Derived",
    "Kept",
    "NotSplit",
    "Part",
    "Side",
    "column",
    "derive",
]
