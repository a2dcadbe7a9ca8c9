"""Arrays that are checked whole: what a sample does not meet is served, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cascade.artifact import Array, ArtifactError
from cascade.schema import Schema, Side

if TYPE_CHECKING:
    from export.context import Catalogue


class NotHeld(ArtifactError):
    """A number that is finite, but not in the type in which it is to be stored."""


ROWS = 1 << 16  # looked at together


def first_not_finite(rows: Array) -> int | None:
    """Of [N, V] the first row with a number that is not finite; None where all are finite."""
    for start in range(0, len(rows), ROWS):
        good = np.isfinite(rows[start : start + ROWS]).all(axis=1)
        if not good.all():
            return start + int(np.argmin(good))
    return None


def check_items(items: Catalogue, schema: Schema, where: Path) -> None:
    """Raises ArtifactError: an item has a number that is not finite, or an id that no row of its
    feature's table has; names `where`, the row and the item."""
    _check_rows(items.dense, items.ids, schema, "item", where)


def check_held_out(
    users: tuple[Array, Array],
    schema: Schema,
    item: Array,
    label: Array,
    count: int,
    where: Path,
) -> None:
    """Raises ArtifactError: a row of held-out users [n, ...] has a number that is not finite, or an
    id that no table has; an item is none of the `count`, or a label neither 0 nor 1."""
    _check_rows(*users, schema, "user", where)
    for name, wrong, expected in (
        ("item", (item < 0) | (item >= count), f"a row of the {count:,} items"),
        ("label", ~np.isin(label, (0, 1)), "a label, 0 or 1"),
    ):
        if wrong.any():
            row = int(np.argmax(wrong))
            value = {"item": item, "label": label}[name][row]
            raise ArtifactError(f"{where}, row {row + 1}: {name} is {value}; expected {expected}")


def check_states(states: Array, start: int, name: str, dtype: str) -> Array:
    """States of items [n, V], the first that of row `start` -> the same in the type in which they
    are stored. Raises ArtifactError: a number is not finite; NotHeld: it is not in that type."""
    with np.errstate(over="ignore"):
        stored: Array = states.astype(dtype, copy=False)
    if stored.dtype.kind != "f" or (row := first_not_finite(stored)) is None:
        return stored
    where = f"{name}: the row of item {start + row} is not finite"
    if np.isfinite(states[row]).all():
        raise NotHeld(f"{where} in {dtype}: export with --state float32")
    raise ArtifactError(f"{where}: its features, or the model, give numbers that are too large")


def _check_rows(dense: Array, ids: Array, schema: Schema, side: Side, where: Path) -> None:
    if (row := first_not_finite(dense)) is not None:
        raise ArtifactError(
            f"{where}, row {row + 1}: a number of the {side} is not finite; prepare the data again"
        )
    column = 0
    for feature in schema.ids(side):
        block = ids[:, column : column + feature.length]
        column += feature.length
        if len(block) and (block.min() < 0 or block.max() >= feature.cardinality):
            wrong = ((block < 0) | (block >= feature.cardinality)).any(axis=1)
            row = int(np.argmax(wrong))
            raise ArtifactError(
                f"{where}, row {row + 1}: feature {feature.name} has the id "
                f"{[*map(int, block[row])]}; expected ids from 0 to {feature.cardinality - 1}"
            )
