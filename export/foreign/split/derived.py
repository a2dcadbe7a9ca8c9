"""The two graphs that a flat graph is taken apart into, and what they cost beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from export.foreign.split.values import BOTH, ITEM, USER, Cost, Part, Side

NAMES: dict[Side, str] = {USER: "user", ITEM: "item", BOTH: "candidate"}


@dataclass(frozen=True)
class Kept:
    """An operation that runs per candidate although a part of what it reads is of one side.

    Args:
        operation: its ONNX type.
        reads: the sides of what it reads: user, item, candidate.
        why: what keeps it from being split.
    """

    operation: str
    reads: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return f"{self.operation} of {' and '.join(self.reads)} ({self.why})"


@dataclass(frozen=True)
class Derived:
    """The two graphs.

    Args:
        items: from the items' inputs [N, ...] to `parts` [N, *shape]; None where the score depends
            on no item.
        pairs: from the users' inputs [B, ...], `parts` [B * K, *shape] and `ROWS` to the output
            [B * K, ...].
        parts: what pairs read of an item.
        output: the output's name in `pairs`.
        layers: the weights of `pairs` that whole layers of the flat graph multiply pairs by.
        kept: what is computed per candidate, and how often.
        costs: per user, per item and per candidate; a candidate's state counts as a table.
        flat: per candidate in the flat graph; the item's features count as a table.
    """

    items: onnx.ModelProto | None
    pairs: onnx.ModelProto
    parts: tuple[Part, ...]
    output: str
    layers: frozenset[str]
    kept: Counter[Kept]
    costs: Mapping[Side, Cost]
    flat: Cost

    def facts(self) -> dict[str, Any]:
        """For release.json: multiply-adds of products and bytes read of tables and states, per
        user, per item, per candidate and, before the split, per candidate; what was kept."""
        named = {NAMES[side]: cost for side, cost in self.costs.items()} | {"flat": self.flat}
        return {
            "multiply_adds": {name: cost.multiply_adds for name, cost in named.items()},
            "bytes_read": {name: cost.table_bytes for name, cost in named.items()},
            "state_numbers": sum(part.size for part in self.parts),
            "kept": {str(kept): count for kept, count in self.kept.most_common()},
        }

    def report(self) -> str:
        """What was moved where, in two lines."""
        facts = self.facts()
        lines = []
        for key, title in (("multiply_adds", "multiply-adds"), ("bytes_read", "bytes read")):
            counted = dict(facts[key])
            flat = counted.pop("flat")
            parts = ", ".join(f"{value:,} per {name}" for name, value in counted.items())
            lines.append(f"{title} {parts}; flat {flat:,} per candidate")
        kept = ", ".join(f"{count}x {text}" for text, count in facts["kept"].items()) or "nothing"
        size = facts["state_numbers"]
        return (
            f"{'; '.join(lines)}. An item's state has {size:,} numbers.\n"
            f"Computed per candidate though one side has a part of it: {kept}"
        )
